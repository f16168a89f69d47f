//! Families that the user names by a prefix: `je_` for `je_malloc`, `je_free` and the rest.

use super::{
    Entry, FAMILIES, Family,
    table::{C, JEMALLOC, PREFIXED, REALLOCARRAY_TOO},
};

/// All families, those of the prefixes first. Made once for a session, and never freed: they are referred to as the ones
/// that are known from the start.
pub fn with_prefixes(prefixes: &[String]) -> &'static [Family] {
    if prefixes.is_empty() {
        return FAMILIES;
    }
    let named = prefixes.iter().filter(|prefix| is_known(prefix).is_none()).map(|prefix| family(prefix));
    Vec::leak(named.chain(FAMILIES.iter().copied()).collect())
}

/// The name of an allocator that has functions of this prefix, and is known with all that it has.
pub fn is_known(prefix: &str) -> Option<&'static str> {
    let mallocs = [format!("{prefix}malloc"), format!("{prefix}Malloc")];
    let has = |family: &&Family| {
        family.functions.iter().any(|(name, _)| mallocs.iter().any(|malloc| name == malloc))
    };
    FAMILIES.iter().find(has).map(|family| family.name)
}

fn family(prefix: &str) -> Family {
    let names = [C, JEMALLOC, PREFIXED, REALLOCARRAY_TOO].concat();
    let mut functions: Vec<Entry> = Vec::new();
    for (name, role) in names {
        functions.push((leak(format!("{prefix}{name}")), role));
        // As in `PyMem_Malloc`.
        functions.push((leak(format!("{prefix}{}", capital(name))), role));
    }
    let pair = |allocate: &str, free: &str| -> &'static [&'static str] {
        Vec::leak(vec![leak(format!("{prefix}{allocate}")), leak(format!("{prefix}{free}"))])
    };
    let pairs = vec![
        pair("malloc", "free"),
        pair("Malloc", "Free"),
        pair("calloc", "free"),
        pair("realloc", "free"),
        pair("mallocx", "dallocx"),
        // Linkers leave out what a program does not call.
        pair("aligned_alloc", "free"),
        pair("memalign", "free"),
        pair("posix_memalign", "free"),
        pair("aligned_malloc", "aligned_free"),
    ];
    Family {
        name: leak(format!("{prefix}*")),
        known: true,
        zero_frees: true,
        local_too: true,
        recognised_by: Vec::leak(pairs),
        functions: Vec::leak(functions),
    }
}

fn leak(text: String) -> &'static str {
    String::leak(text)
}

fn capital(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::family::Role;

    #[test]
    fn a_prefix_makes_a_family_that_goes_before_the_others() {
        assert_eq!(with_prefixes(&[]).len(), FAMILIES.len());
        let families = with_prefixes(&["pool_".to_owned(), "PyMem_".to_owned()]);
        assert_eq!(families.len(), FAMILIES.len() + 2);
        assert_eq!((families[0].name, families[1].name, families[2].name), ("pool_*", "PyMem_*", "glibc"));
        let role = |family: usize, name: &str| -> Option<Role> {
            families[family].functions.iter().find(|entry| entry.0 == name).map(|entry| entry.1)
        };
        let of_c = |name: &str| C.iter().find(|entry| entry.0 == name).map(|entry| entry.1);
        assert_eq!(role(0, "pool_realloc"), of_c("realloc"));
        assert_eq!(role(1, "PyMem_Calloc"), of_c("calloc"));
        assert_eq!(role(0, "malloc"), None);
        assert_eq!(with_prefixes(&["mi_".to_owned()]).len(), FAMILIES.len(), "it is known");
        let known = ["mi_", "tc_", "TCMallocInternal", "_rjem_", "pool_"].map(is_known);
        let names = [Some("mimalloc"), Some("tcmalloc"), Some("tcmalloc"), Some("jemalloc (_rjem_)"), None];
        assert_eq!(known, names);
        assert!(families[0].recognised_by.contains(&&["pool_malloc", "pool_free"][..]));
    }
}

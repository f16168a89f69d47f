//! Which prefixes the allocating functions of an object have: what may have been meant by one that none has.

use std::collections::BTreeSet;

use super::{MAX_STRINGS, ObjectError};
use crate::target::elf::{Elf, ReadAt, stream};

/// What the names of allocators' functions end with, and with which of them their blocks are given back.
const PAIRS: [(&str, &str); 10] = [
    ("malloc", "free"),
    ("Malloc", "Free"),
    ("alloc", "free"),
    ("Alloc", "Free"),
    ("_new", "_free"),
    ("mallocx", "dallocx"),
    ("calloc", "free"),
    ("realloc", "free"),
    ("aligned_alloc", "free"),
    ("aligned_malloc", "aligned_free"),
];

/// Bytes of a name that is kept, and names.
const MAX_NAME: usize = 64;
const MAX_NAMES: usize = 4096;

/// The prefixes before `malloc` and `free`, and their like.
///
/// # Errors
/// When it is no object for this machine, is damaged, exceeds the bounds in [`crate::target::elf`], or can't be read.
pub fn prefixes<R: ReadAt + ?Sized>(file: &R) -> Result<BTreeSet<String>, ObjectError> {
    let elf = Elf::parse(file)?;
    let tables = [elf.dynamic_symbols()?, elf.full_symbols().unwrap_or_default()];
    let mut names = BTreeSet::new();
    for table in tables.into_iter().flatten().filter(|table| table.strings_len <= MAX_STRINGS) {
        let mut name = Vec::new();
        stream(elf.file, table.strings, table.strings_len, |chunk| {
            for &byte in chunk {
                if byte != 0 {
                    if name.len() <= MAX_NAME {
                        name.push(byte);
                    }
                    continue;
                }
                keep(&name, &mut names);
                name.clear();
            }
            names.len() < MAX_NAMES
        })?;
    }
    Ok(paired(&names))
}

fn keep(name: &[u8], names: &mut BTreeSet<String>) {
    // Two underscores begin the names that are the implementation's own.
    let is_own = |name: &str| name.starts_with("__");
    let ends = |name: &str| PAIRS.iter().any(|(takes, gives)| name.ends_with(takes) || name.ends_with(gives));
    if name.len() <= MAX_NAME
        && let Ok(name) = std::str::from_utf8(name)
        && ends(name)
        && !is_own(name)
    {
        names.insert(name.to_owned());
    }
}

/// The prefixes with which both of a pair are there.
fn paired(names: &BTreeSet<String>) -> BTreeSet<String> {
    let mut prefixes = BTreeSet::new();
    for (takes, gives) in PAIRS {
        let of_pair = names.iter().filter_map(|name| name.strip_suffix(takes));
        let has_both = |prefix: &&str| !prefix.is_empty() && names.contains(&format!("{prefix}{gives}"));
        prefixes.extend(of_pair.filter(has_both).map(str::to_owned));
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::testing::Folder;

    #[test]
    fn a_prefix_is_what_both_of_a_pair_have() {
        let folder = Folder::new();
        let source = "void *pool_malloc(int n) { return 0; } void pool_free(void *p) {}\n\
            static void *Py_Malloc(int n) { return 0; } static void Py_Free(void *p) {}\n\
            void *use(void) { Py_Free(0); return Py_Malloc(1); }\n\
            void *__libc_malloc(int n) { return 0; } void __libc_free(void *p) {}\n\
            void *lone_malloc(int n) { return 0; } void malloc_free(void *p) {}\n";
        let file = folder.compile("prefixes.so", source, &["-shared", "-fPIC", "-O0"]);
        let file = std::fs::File::open(file).unwrap();
        let expected = ["Py_", "pool_"].map(str::to_owned);
        assert_eq!(prefixes(&file).unwrap().into_iter().collect::<Vec<_>>(), expected);
    }
}

//! The table of allocator families: how an object that holds one is recognised, which of its functions are
//! probed, and where their arguments are. One more family is one more entry in [`FAMILIES`].

use leakprobe_common::Call;

/// What a function does with a block, and which of its integer arguments (counted from 0) say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Role {
    /// What pairing does with it.
    pub call: Call,
    /// Argument that holds the size in bytes (of one element, where there is a count).
    pub size: Option<u8>,
    /// Argument that holds the number of elements.
    pub count: Option<u8>,
    /// Argument that holds the block given back, or the out pointer.
    pub pointer: Option<u8>,
}

impl Role {
    const fn allocates(size: u8) -> Self {
        Self { call: Call::Allocate, size: Some(size), count: None, pointer: None }
    }

    const fn frees() -> Self {
        Self { call: Call::Free, size: None, count: None, pointer: Some(0) }
    }

    /// Whether its return is probed too.
    pub const fn returns(self) -> bool {
        !matches!(self.call, Call::Free)
    }

    /// Whether a call with a null first argument may be missed without harm: `free(NULL)` does nothing, but
    /// `realloc(NULL, n)` allocates.
    pub const fn null_may_leave(self) -> bool {
        matches!(self.call, Call::Free)
    }

    /// The arguments that the entry probe reads, ascending.
    pub fn arguments(self) -> Vec<u8> {
        let mut arguments: Vec<u8> = [self.size, self.count, self.pointer].into_iter().flatten().collect();
        arguments.sort_unstable();
        arguments
    }

    /// Attaching is not atomic, so probes go in by rising rank: 0 frees, 1 reallocations, 2 allocations. A
    /// block recorded before its free is watched would be reported as live for ever.
    pub const fn attach_rank(self) -> u8 {
        match self.call {
            Call::Free => 0,
            Call::Reallocate => 1,
            Call::Allocate | Call::AllocateOut => 2,
        }
    }
}

/// An allocator and what is probed of it.
#[derive(Debug)]
pub struct Family {
    /// As the report names it.
    pub name: &'static str,
    /// Whether this is an allocator whose behaviour was studied. Where it is not, the C standard's rules
    /// are assumed, and the report must say so.
    pub known: bool,
    /// Whether `realloc(p, 0)` frees `p` and returns NULL.
    pub zero_frees: bool,
    /// The object must define all of these, as global names.
    pub recognised_by: &'static [&'static str],
    /// The functions by name. Where two names share an address, the first one's role counts.
    pub functions: &'static [(&'static str, Role)],
}

const MALLOC: Role = Role::allocates(0);
const CALLOC: Role = Role { call: Call::Allocate, size: Some(1), count: Some(0), pointer: None };
const REALLOC: Role = Role { call: Call::Reallocate, size: Some(1), count: None, pointer: Some(0) };
const REALLOCARRAY: Role = Role { call: Call::Reallocate, size: Some(2), count: Some(1), pointer: Some(0) };
const POSIX_MEMALIGN: Role = Role { call: Call::AllocateOut, size: Some(2), count: None, pointer: Some(0) };
const MEMALIGN: Role = Role::allocates(1);
const FREE: Role = Role::frees();

/// The C interface, under the names of ISO C, POSIX and tradition.
const C_FUNCTIONS: [(&str, Role); 12] = [
    ("malloc", MALLOC),
    ("calloc", CALLOC),
    ("realloc", REALLOC),
    ("posix_memalign", POSIX_MEMALIGN),
    ("aligned_alloc", MEMALIGN),
    ("memalign", MEMALIGN),
    ("valloc", MALLOC),
    ("pvalloc", MALLOC),
    ("free", FREE),
    ("cfree", FREE),
    ("free_sized", FREE),
    ("free_aligned_sized", FREE),
];

/// All families, most specific first: an object belongs to the first one that recognises it. The index is
/// the number in a probe's cookie.
pub static FAMILIES: &[Family] = &[
    Family {
        name: "glibc",
        known: true,
        zero_frees: true,
        // malloc.c's own, exported since 2.2.5 and in the same object file of libc.a. Not `__libc_malloc` and
        // its kin: jemalloc, tcmalloc and mimalloc define those too, to catch what bypasses `malloc`.
        recognised_by: &["__libc_mallopt"],
        // Not reallocarray: it ends in a jump to realloc, which is probed, and no instruction in it is
        // emulated before its arguments are gone. Only calls whose product overflows are not seen; they fail.
        functions: &{
            const INTERNAL: [(&str, Role); 15] = [
                ("__libc_malloc", MALLOC),
                ("__libc_calloc", CALLOC),
                ("__libc_realloc", REALLOC),
                ("__posix_memalign", POSIX_MEMALIGN),
                ("__libc_memalign", MEMALIGN),
                ("__libc_valloc", MALLOC),
                ("__libc_pvalloc", MALLOC),
                ("__libc_free", FREE),
                // In libc.a only. In a static PIE, `__malloc` is malloc's one global name.
                ("__malloc", MALLOC),
                ("__calloc", CALLOC),
                ("__realloc", REALLOC),
                ("__memalign", MEMALIGN),
                ("__valloc", MALLOC),
                ("__pvalloc", MALLOC),
                ("__free", FREE),
            ];
            let mut all = [MALLOC_ENTRY; C_FUNCTIONS.len() + INTERNAL.len()];
            let mut i = 0;
            while i < all.len() {
                all[i] = if i < C_FUNCTIONS.len() { C_FUNCTIONS[i] } else { INTERNAL[i - C_FUNCTIONS.len()] };
                i += 1;
            }
            all
        },
    },
    Family {
        name: "unknown allocator",
        known: false,
        // True for tcmalloc, not for jemalloc and mimalloc, which return a smallest block: then the result
        // is not NULL and shows that.
        zero_frees: true,
        recognised_by: &["malloc", "free"],
        functions: &{
            let mut all = [("reallocarray", REALLOCARRAY); C_FUNCTIONS.len() + 1];
            let mut i = 0;
            while i < C_FUNCTIONS.len() {
                all[i] = C_FUNCTIONS[i];
                i += 1;
            }
            all
        },
    },
];

const MALLOC_ENTRY: (&str, Role) = ("malloc", MALLOC);

/// Objects that define `malloc` and `free` and are nobody's allocator: a symbol that tells them, and why.
pub static NOT_ALLOCATORS: &[(&str, &str)] = &[(
    "_rtld_global",
    "the dynamic linker, whose minimal malloc (exported up to glibc 2.31) serves only itself until libc is loaded",
)];

/// Every name that a search must look for, sorted, once each.
pub fn wanted_names(families: &[Family]) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = families
        .iter()
        .flat_map(|f| f.recognised_by.iter().copied().chain(f.functions.iter().map(|&(name, _)| name)))
        .chain(NOT_ALLOCATORS.iter().map(|&(name, _)| name))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(family: usize, name: &str) -> Role {
        FAMILIES[family].functions.iter().find(|(n, _)| *n == name).unwrap().1
    }

    #[test]
    fn arguments_are_where_the_prototypes_have_them() {
        let places = |name| {
            let r = role(0, name);
            (r.call, r.size, r.count, r.pointer, r.returns())
        };
        use Call::{Allocate, AllocateOut, Free, Reallocate};
        assert_eq!(places("malloc"), (Allocate, Some(0), None, None, true));
        assert_eq!(places("calloc"), (Allocate, Some(1), Some(0), None, true));
        assert_eq!(places("realloc"), (Reallocate, Some(1), None, Some(0), true));
        assert_eq!(role(1, "reallocarray"), REALLOCARRAY);
        assert_eq!(places("posix_memalign"), (AllocateOut, Some(2), None, Some(0), true));
        assert_eq!(places("aligned_alloc"), (Allocate, Some(1), None, None, true));
        assert_eq!(places("memalign"), (Allocate, Some(1), None, None, true));
        assert_eq!(places("__libc_pvalloc"), (Allocate, Some(0), None, None, true));
        assert_eq!(places("free_aligned_sized"), (Free, None, None, Some(0), false));
        assert_eq!(REALLOCARRAY.arguments(), [0, 1, 2]);
        assert_eq!(role(0, "posix_memalign").arguments(), [0, 2]);
    }

    #[test]
    fn only_frees_may_miss_a_null() {
        for (name, role) in FAMILIES.iter().flat_map(|f| f.functions) {
            assert_eq!(role.null_may_leave(), role.call == Call::Free, "{name}");
        }
    }

    #[test]
    fn frees_attach_before_reallocations_before_allocations() {
        let ranks =
            ["free", "cfree", "realloc", "malloc", "posix_memalign"].map(|name| role(0, name).attach_rank());
        assert_eq!(ranks, [0, 0, 1, 2, 2]);
    }

    #[test]
    fn the_table_is_consistent() {
        assert_eq!(FAMILIES[0].functions.len(), 27);
        assert_eq!(FAMILIES[0].functions[12].0, "__libc_malloc");
        let names = wanted_names(FAMILIES);
        assert_eq!(names.len(), 30); // glibc's 27 functions, reallocarray, __libc_mallopt, _rtld_global
        assert!(names.is_sorted());
    }
}

//! Allocator families: how an object that holds one is recognised, which of its functions are probed, and where their
//! arguments are. One more family is one more entry in [`FAMILIES`].

mod prefix;
mod table;

use leakprobe_common::Call;

pub use self::{
    prefix::{is_known, with_prefixes},
    table::{FAMILIES, LINK_STATE, LINKER, OPERATOR_NEW},
};

/// What a function does with a block, and which of its integer arguments (counted from 0) say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Role {
    /// What pairing does with it.
    pub call: Call,
    /// Argument that holds the size in bytes (of one element, where there is a count).
    pub size: Option<u8>,
    /// Argument that holds the number of elements; or how much larger a block may become.
    pub count: Option<u8>,
    /// Argument that holds the block given back, or the out pointer.
    pub pointer: Option<u8>,
    /// Whether it may throw an exception. One that passes a function whose return is probed finds no way on, and the
    /// process is ended: a return probe has replaced the return address.
    pub throws: bool,
}

impl Role {
    /// Returns a block of the size in this argument.
    const fn allocates(size: u8) -> Self {
        Self { call: Call::Allocate, size: Some(size), count: None, pointer: None, throws: false }
    }

    /// Returns a block of a number of elements.
    const fn allocates_elements(count: u8, size: u8) -> Self {
        Self { call: Call::Allocate, size: Some(size), count: Some(count), pointer: None, throws: false }
    }

    /// Gives a block back, and returns its successor.
    const fn reallocates(pointer: u8, size: u8) -> Self {
        Self { call: Call::Reallocate, size: Some(size), count: None, pointer: Some(pointer), throws: false }
    }

    /// The same, of a number of elements.
    const fn reallocates_elements(pointer: u8, count: u8, size: u8) -> Self {
        Self {
            call: Call::Reallocate,
            size: Some(size),
            count: Some(count),
            pointer: Some(pointer),
            throws: false,
        }
    }

    /// Returns a block that holds a string, as large as that; its buffer in that argument, where it has one.
    const fn duplicates(buffer: Option<u8>) -> Self {
        Self { call: Call::Duplicate, size: None, count: None, pointer: buffer, throws: false }
    }

    /// The same, of a function that gives the block back where it has no successor too.
    const fn freeing(self) -> Self {
        Self { call: Call::ReallocateOrFree, ..self }
    }

    /// The same, of a function that may throw.
    const fn throwing(self) -> Self {
        Self { throws: true, ..self }
    }

    /// Gives the block in its first argument back.
    const fn frees() -> Self {
        Self { call: Call::Free, size: None, count: None, pointer: Some(0), throws: false }
    }

    /// Whether its return is probed too.
    pub const fn returns(self) -> bool {
        self.call.returns()
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
            Call::Free | Call::CodeChange | Call::DestroyHeap => 0,
            Call::Reallocate | Call::ReallocateOrFree | Call::ReallocateOut | Call::Resize | Call::Leave => 1,
            Call::Allocate | Call::AllocateOut | Call::Duplicate => 2,
        }
    }
}

/// A function of an allocator's: its name, and what it does.
pub type Entry = (&'static str, Role);

/// An allocator and what is probed of it.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// As the report names it.
    pub name: &'static str,
    /// Whether this is an allocator whose behaviour was studied. Where it is not, the C standard's rules
    /// are assumed, and the report must say so.
    pub known: bool,
    /// Whether `realloc(p, 0)` may free `p` and return NULL. One that returns a smallest block shows that by its result.
    pub zero_frees: bool,
    /// Whether names that are local to an object count, which a program's own static functions have.
    pub local_too: bool,
    /// The object must define all names of one of these, as global ones.
    pub recognised_by: &'static [&'static [&'static str]],
    /// The functions by name. Where two names share an address, the first one's role counts.
    pub functions: &'static [Entry],
}

impl Family {
    /// Whether it hands out blocks; the dynamic linker is watched for other reasons.
    pub fn is_allocator(&self) -> bool {
        self.functions.iter().any(|(_, role)| role.call == Call::Free)
    }
}

/// Objects that define `malloc` and `free` and are nobody's allocator: a symbol that tells them, and why.
pub static NOT_ALLOCATORS: &[(&str, &str)] = &[(
    "_rtld_global",
    "the dynamic linker, whose minimal malloc (exported up to glibc 2.31) serves only itself until libc is loaded",
)];

/// Every name that a search must look for, sorted, once each.
pub fn wanted_names(families: &[Family]) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = families
        .iter()
        .flat_map(|f| {
            f.recognised_by
                .iter()
                .copied()
                .flatten()
                .copied()
                .chain(f.functions.iter().map(|&(name, _)| name))
        })
        .chain(NOT_ALLOCATORS.iter().map(|&(name, _)| name))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(name: &str) -> &'static Family {
        FAMILIES.iter().find(|family| family.name == name).expect("a family of that name")
    }

    fn role(of: &str, name: &str) -> Role {
        family(of).functions.iter().find(|(n, _)| *n == name).expect("a function of that name").1
    }

    /// The call, and the arguments of size, count and pointer.
    type Places = (Call, Option<u8>, Option<u8>, Option<u8>);

    fn places(of: &str, name: &str) -> Places {
        let r = role(of, name);
        (r.call, r.size, r.count, r.pointer)
    }

    #[test]
    fn arguments_are_where_the_prototypes_have_them() {
        use Call::{Allocate, AllocateOut, Free, Reallocate, Resize};
        let of_c: [(&str, Places); 8] = [
            ("malloc", (Allocate, Some(0), None, None)),
            ("calloc", (Allocate, Some(1), Some(0), None)),
            ("realloc", (Reallocate, Some(1), None, Some(0))),
            ("posix_memalign", (AllocateOut, Some(2), None, Some(0))),
            ("aligned_alloc", (Allocate, Some(1), None, None)),
            ("memalign", (Allocate, Some(1), None, None)),
            ("pvalloc", (Allocate, Some(0), None, None)),
            ("free_aligned_sized", (Free, None, None, Some(0))),
        ];
        for name in ["glibc", "musl", "mimalloc", "tcmalloc", "jemalloc", "unknown allocator"] {
            for (function, truth) in of_c {
                assert_eq!(places(name, function), truth, "{name}: {function}");
            }
        }
        let others = [
            ("glibc", "__libc_pvalloc", (Allocate, Some(0), None, None)),
            ("unknown allocator", "reallocarray", (Reallocate, Some(2), Some(1), Some(0))),
            ("jemalloc", "mallocx", (Allocate, Some(0), None, None)),
            ("jemalloc", "rallocx", (Reallocate, Some(1), None, Some(0))),
            ("jemalloc", "xallocx", (Resize, Some(1), Some(2), Some(0))),
            ("jemalloc", "sdallocx", (Free, None, None, Some(0))),
            ("jemalloc", "_ZnamSt11align_val_t", (Allocate, Some(0), None, None)),
            ("jemalloc (_rjem_)", "_rjem_realloc", (Reallocate, Some(1), None, Some(0))),
            ("tcmalloc", "tc_memalign", (Allocate, Some(1), None, None)),
            ("tcmalloc", "tc_delete_sized_aligned", (Free, None, None, Some(0))),
            ("tcmalloc", "TCMallocInternalPosixMemalign", (AllocateOut, Some(2), None, Some(0))),
            ("mimalloc", "mi_heap_calloc", (Allocate, Some(2), Some(1), None)),
            ("mimalloc", "mi_heap_reallocn", (Reallocate, Some(3), Some(2), Some(1))),
            ("mimalloc", "mi_malloc_aligned", (Allocate, Some(0), None, None)),
        ];
        for (name, function, truth) in others {
            assert_eq!(places(name, function), truth, "{name}: {function}");
        }
        assert_eq!(role("unknown allocator", "reallocarray").arguments(), [0, 1, 2]);
        assert_eq!(role("glibc", "posix_memalign").arguments(), [0, 2]);
    }

    #[test]
    fn only_frees_may_miss_a_null() {
        for (name, role) in FAMILIES.iter().flat_map(|f| f.functions) {
            assert_eq!(role.null_may_leave(), role.call == Call::Free, "{name}");
        }
    }

    #[test]
    fn frees_attach_before_reallocations_before_allocations() {
        let ranks = ["free", "cfree", "realloc", "malloc", "posix_memalign"]
            .map(|name| role("glibc", name).attach_rank());
        assert_eq!(ranks, [0, 0, 1, 2, 2]);
    }

    #[test]
    fn the_table_is_consistent() {
        let names = wanted_names(FAMILIES);
        assert!(names.is_sorted());
        for family in FAMILIES {
            let mut functions: Vec<&str> = family.functions.iter().map(|entry| entry.0).collect();
            let all = functions.len();
            functions.sort_unstable();
            functions.dedup();
            assert_eq!(functions.len(), all, "{}: a function stands there twice", family.name);
            assert_eq!(family.is_allocator(), family.name != LINKER, "{}", family.name);
            assert!(family.recognised_by.iter().all(|names| !names.is_empty()), "{}", family.name);
        }
        assert!(FAMILIES.len() <= usize::from(u8::MAX), "the cookie has a byte for it");
    }
}

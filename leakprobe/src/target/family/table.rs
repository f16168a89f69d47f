//! The families that are known, function by function.

use leakprobe_common::Call;

use super::{Entry, Family, Role};

const MALLOC: Role = Role::allocates(0);
/// As [`MALLOC`], of a function that says by an exception that there is no memory.
const NEW: Role = MALLOC.throwing();
const NEW_ELEMENTS: Role = Role::allocates_elements(0, 1).throwing();
const CALLOC: Role = Role::allocates_elements(0, 1);
const REALLOC: Role = Role::reallocates(0, 1);
const REALLOCARRAY: Role = Role::reallocates_elements(0, 1, 2);
const POSIX_MEMALIGN: Role =
    Role { call: Call::AllocateOut, size: Some(2), count: None, pointer: Some(0), throws: false };
const MEMALIGN: Role = Role::allocates(1);
const DUPLICATE: Role = Role::duplicates(None);
const REALLOCARR: Role =
    Role { call: Call::ReallocateOut, size: Some(2), count: Some(1), pointer: Some(0), throws: false };
const REALLOCF: Role = REALLOC.freeing();
const RESIZE: Role =
    Role { call: Call::Resize, size: Some(1), count: Some(2), pointer: Some(0), throws: false };
const FREE: Role = Role::frees();
const DESTROY_HEAP: Role =
    Role { call: Call::DestroyHeap, size: None, count: None, pointer: None, throws: false };
/// What debuggers have a breakpoint in, to be told of objects that come and go.
const CODE_CHANGE: Role =
    Role { call: Call::CodeChange, size: None, count: None, pointer: None, throws: false };

/// Name of the family that hands out no blocks: it tells of code that comes and goes, which is rare.
pub const LINKER: &str = "dynamic linker";

/// Name of the family of those who define C++'s operators and no `malloc`.
pub const OPERATOR_NEW: &str = "operator new";

/// Where the dynamic linker keeps what it tells by `_dl_debug_state`: a `struct r_debug`.
pub const LINK_STATE: &str = "_r_debug";

/// The C interface, under the names of ISO C, POSIX and tradition.
pub(super) const C: &[Entry] = &[
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

/// glibc's own names of the C interface, which others define too, to catch what bypasses `malloc`.
const LIBC: &[Entry] = &[
    ("__libc_malloc", MALLOC),
    ("__libc_calloc", CALLOC),
    ("__libc_realloc", REALLOC),
    ("__posix_memalign", POSIX_MEMALIGN),
    ("__libc_memalign", MEMALIGN),
    ("__libc_valloc", MALLOC),
    ("__libc_pvalloc", MALLOC),
    ("__libc_free", FREE),
];

/// glibc's, in libc.a only. In a static PIE, `__malloc` is malloc's one global name.
const LIBC_STATIC: &[Entry] = &[
    ("__malloc", MALLOC),
    ("__calloc", CALLOC),
    ("__realloc", REALLOC),
    ("__memalign", MEMALIGN),
    ("__valloc", MALLOC),
    ("__pvalloc", MALLOC),
    ("__free", FREE),
];

/// C++'s operators, each for one object and for arrays: plain, aligned, nothrow; deletes sized too. Where an allocator
/// defines them they need not come to its malloc.
const OPERATORS: &[Entry] = &[
    ("_Znwm", NEW),
    ("_Znam", NEW),
    ("_ZnwmRKSt9nothrow_t", MALLOC),
    ("_ZnamRKSt9nothrow_t", MALLOC),
    ("_ZnwmSt11align_val_t", NEW),
    ("_ZnamSt11align_val_t", NEW),
    ("_ZnwmSt11align_val_tRKSt9nothrow_t", MALLOC),
    ("_ZnamSt11align_val_tRKSt9nothrow_t", MALLOC),
    ("_ZdlPv", FREE),
    ("_ZdaPv", FREE),
    ("_ZdlPvRKSt9nothrow_t", FREE),
    ("_ZdaPvRKSt9nothrow_t", FREE),
    ("_ZdlPvm", FREE),
    ("_ZdaPvm", FREE),
    ("_ZdlPvSt11align_val_t", FREE),
    ("_ZdaPvSt11align_val_t", FREE),
    ("_ZdlPvSt11align_val_tRKSt9nothrow_t", FREE),
    ("_ZdaPvSt11align_val_tRKSt9nothrow_t", FREE),
    ("_ZdlPvmSt11align_val_t", FREE),
    ("_ZdaPvmSt11align_val_t", FREE),
];

/// What allocators with a prefix have besides C's.
pub(super) const PREFIXED: &[Entry] =
    &[("aligned_malloc", MALLOC), ("aligned_realloc", REALLOC), ("aligned_free", FREE)];

pub(super) const REALLOCARRAY_TOO: &[Entry] = &[("reallocarray", REALLOCARRAY)];

/// gperftools' own names, then those of the newer tcmalloc, which C's are aliases of.
const TCMALLOC: &[Entry] = &[
    ("tc_malloc", MALLOC),
    ("tc_malloc_skip_new_handler", MALLOC),
    ("tc_calloc", CALLOC),
    ("tc_realloc", REALLOC),
    ("tc_memalign", MEMALIGN),
    ("tc_posix_memalign", POSIX_MEMALIGN),
    ("tc_valloc", MALLOC),
    ("tc_pvalloc", MALLOC),
    ("tc_new", NEW),
    ("tc_new_nothrow", MALLOC),
    ("tc_newarray", NEW),
    ("tc_newarray_nothrow", MALLOC),
    ("tc_new_aligned", NEW),
    ("tc_new_aligned_nothrow", MALLOC),
    ("tc_newarray_aligned", NEW),
    ("tc_newarray_aligned_nothrow", MALLOC),
    ("tc_free", FREE),
    ("tc_free_sized", FREE),
    ("tc_cfree", FREE),
    ("tc_delete", FREE),
    ("tc_delete_sized", FREE),
    ("tc_delete_nothrow", FREE),
    ("tc_deletearray", FREE),
    ("tc_deletearray_sized", FREE),
    ("tc_deletearray_nothrow", FREE),
    ("tc_delete_aligned", FREE),
    ("tc_delete_sized_aligned", FREE),
    ("tc_delete_aligned_nothrow", FREE),
    ("tc_deletearray_aligned", FREE),
    ("tc_deletearray_sized_aligned", FREE),
    ("tc_deletearray_aligned_nothrow", FREE),
    ("TCMallocInternalMalloc", MALLOC),
    ("TCMallocInternalCalloc", CALLOC),
    ("TCMallocInternalRealloc", REALLOC),
    ("TCMallocInternalReallocArray", REALLOCARRAY),
    ("TCMallocInternalMemalign", MEMALIGN),
    ("TCMallocInternalAlignedAlloc", MEMALIGN),
    ("TCMallocInternalPosixMemalign", POSIX_MEMALIGN),
    ("TCMallocInternalValloc", MALLOC),
    ("TCMallocInternalPvalloc", MALLOC),
    ("TCMallocInternalNew", NEW),
    ("TCMallocInternalNewArray", NEW),
    ("TCMallocInternalNewNothrow", MALLOC),
    ("TCMallocInternalNewArrayNothrow", MALLOC),
    ("TCMallocInternalNewAligned", NEW),
    ("TCMallocInternalNewAlignedNothrow", MALLOC),
    ("TCMallocInternalFree", FREE),
    ("TCMallocInternalFreeSized", FREE),
    ("TCMallocInternalFreeAlignedSized", FREE),
    ("TCMallocInternalCfree", FREE),
    ("TCMallocInternalSdallocx", FREE),
    ("TCMallocInternalDelete", FREE),
    ("TCMallocInternalDeleteArray", FREE),
    ("TCMallocInternalDeleteSized", FREE),
    ("TCMallocInternalDeleteArraySized", FREE),
    ("TCMallocInternalDeleteAligned", FREE),
    ("TCMallocInternalDeleteSizedAligned", FREE),
];

/// mimalloc's own names. Not those that are made of calls of these: `mi_cfree`, `mi_wcsdup`, `mi_dupenv_s`. Nor `strdup` and its
/// like: where it stands in for these (since 2.1) they are at the same addresses, and else a static program's are its libc's.
const MIMALLOC: &[Entry] = &[
    ("mi_malloc", MALLOC),
    ("mi_malloc_small", MALLOC),
    ("mi_zalloc", MALLOC),
    ("mi_zalloc_small", MALLOC),
    ("mi_calloc", CALLOC),
    ("mi_mallocn", CALLOC),
    ("mi_realloc", REALLOC),
    ("mi_reallocf", REALLOCF),
    ("mi_rezalloc", REALLOC),
    ("mi_reallocn", REALLOCARRAY),
    ("mi_recalloc", REALLOCARRAY),
    ("mi_reallocarray", REALLOCARRAY),
    ("mi_expand", REALLOC),
    ("mi__expand", REALLOC),
    ("mi_aligned_recalloc", REALLOCARRAY),
    ("mi_aligned_offset_recalloc", REALLOCARRAY),
    ("mi_mbsdup", DUPLICATE),
    ("mi_malloc_aligned", MALLOC),
    ("mi_malloc_aligned_at", MALLOC),
    ("mi_zalloc_aligned", MALLOC),
    ("mi_zalloc_aligned_at", MALLOC),
    ("mi_calloc_aligned", CALLOC),
    ("mi_calloc_aligned_at", CALLOC),
    ("mi_realloc_aligned", REALLOC),
    ("mi_realloc_aligned_at", REALLOC),
    ("mi_rezalloc_aligned", REALLOC),
    ("mi_rezalloc_aligned_at", REALLOC),
    ("mi_recalloc_aligned", REALLOCARRAY),
    ("mi_recalloc_aligned_at", REALLOCARRAY),
    ("mi_posix_memalign", POSIX_MEMALIGN),
    ("mi_memalign", MEMALIGN),
    ("mi_aligned_alloc", MEMALIGN),
    ("mi_valloc", MALLOC),
    ("mi_pvalloc", MALLOC),
    ("mi_new", NEW),
    ("mi_new_nothrow", MALLOC),
    ("mi_new_aligned", NEW),
    ("mi_new_aligned_nothrow", MALLOC),
    ("mi_new_n", NEW_ELEMENTS),
    ("mi_new_realloc", REALLOC.throwing()),
    ("mi_new_reallocn", REALLOCARRAY.throwing()),
    ("mi_heap_malloc", Role::allocates(1)),
    ("mi_heap_malloc_small", Role::allocates(1)),
    ("mi_heap_zalloc", Role::allocates(1)),
    ("mi_heap_calloc", Role::allocates_elements(1, 2)),
    ("mi_heap_mallocn", Role::allocates_elements(1, 2)),
    ("mi_heap_realloc", Role::reallocates(1, 2)),
    ("mi_heap_reallocf", Role::reallocates(1, 2).freeing()),
    ("mi_heap_rezalloc", Role::reallocates(1, 2)),
    ("mi_heap_reallocn", Role::reallocates_elements(1, 2, 3)),
    ("mi_heap_recalloc", Role::reallocates_elements(1, 2, 3)),
    ("mi_heap_malloc_aligned", Role::allocates(1)),
    ("mi_heap_malloc_aligned_at", Role::allocates(1)),
    ("mi_heap_zalloc_aligned", Role::allocates(1)),
    ("mi_heap_zalloc_aligned_at", Role::allocates(1)),
    ("mi_heap_calloc_aligned", Role::allocates_elements(1, 2)),
    ("mi_heap_calloc_aligned_at", Role::allocates_elements(1, 2)),
    ("mi_heap_realloc_aligned", Role::reallocates(1, 2)),
    ("mi_heap_realloc_aligned_at", Role::reallocates(1, 2)),
    ("mi_heap_rezalloc_aligned", Role::reallocates(1, 2)),
    ("mi_heap_rezalloc_aligned_at", Role::reallocates(1, 2)),
    ("mi_heap_recalloc_aligned", Role::reallocates_elements(1, 2, 3)),
    ("mi_heap_recalloc_aligned_at", Role::reallocates_elements(1, 2, 3)),
    ("mi_heap_alloc_new", Role::allocates(1).throwing()),
    ("mi_heap_alloc_new_n", Role::allocates_elements(1, 2).throwing()),
    ("mi_strdup", DUPLICATE),
    ("mi_strndup", DUPLICATE),
    ("mi_realpath", Role::duplicates(Some(1))),
    ("mi_heap_strdup", DUPLICATE),
    ("mi_heap_strndup", DUPLICATE),
    ("mi_heap_realpath", Role::duplicates(Some(2))),
    ("mi_reallocarr", REALLOCARR),
    ("reallocarr", REALLOCARR),
    ("mi_heap_destroy", DESTROY_HEAP),
    ("mi_free", FREE),
    ("mi_free_size", FREE),
    ("mi_free_aligned", FREE),
    ("mi_free_size_aligned", FREE),
    ("vfree", FREE),
];

/// jemalloc's functions beyond C's.
pub(super) const JEMALLOC: &[Entry] =
    &[("mallocx", MALLOC), ("rallocx", REALLOC), ("xallocx", RESIZE), ("dallocx", FREE), ("sdallocx", FREE)];

/// jemalloc's interface under a prefix.
macro_rules! prefixed_jemalloc {
    ($prefix:literal) => {
        Family {
            name: concat!("jemalloc (", $prefix, ")"),
            known: true,
            zero_frees: true,
            local_too: false,
            recognised_by: &[
                &[concat!($prefix, "malloc"), concat!($prefix, "mallocx")],
                &[concat!($prefix, "malloc"), concat!($prefix, "sdallocx")],
                &[concat!($prefix, "mallocx"), concat!($prefix, "sdallocx")],
                &[concat!($prefix, "mallocx"), concat!($prefix, "dallocx")],
            ],
            functions: &[
                (concat!($prefix, "malloc"), MALLOC),
                (concat!($prefix, "calloc"), CALLOC),
                (concat!($prefix, "realloc"), REALLOC),
                (concat!($prefix, "posix_memalign"), POSIX_MEMALIGN),
                (concat!($prefix, "aligned_alloc"), MEMALIGN),
                (concat!($prefix, "memalign"), MEMALIGN),
                (concat!($prefix, "valloc"), MALLOC),
                (concat!($prefix, "pvalloc"), MALLOC),
                (concat!($prefix, "free"), FREE),
                (concat!($prefix, "free_sized"), FREE),
                (concat!($prefix, "free_aligned_sized"), FREE),
                (concat!($prefix, "mallocx"), MALLOC),
                (concat!($prefix, "rallocx"), REALLOC),
                (concat!($prefix, "xallocx"), RESIZE),
                (concat!($prefix, "dallocx"), FREE),
                (concat!($prefix, "sdallocx"), FREE),
            ],
        }
    };
}

/// Puts lists together.
macro_rules! all_of {
    ($($part:expr),+) => {{
        const LEN: usize = 0 $(+ $part.len())+;
        const ALL: [Entry; LEN] = {
            let mut all = [("", FREE); LEN];
            let parts: &[&[Entry]] = &[$($part),+];
            let (mut part, mut at) = (0, 0);
            while part < parts.len() {
                let mut index = 0;
                while index < parts[part].len() {
                    all[at] = parts[part][index];
                    (index, at) = (index + 1, at + 1);
                }
                part += 1;
            }
            all
        };
        &ALL
    }};
}

/// All families. An object may have several: each function belongs to the first that is recognised there and names it,
/// so that the C interface beside a prefixed allocator is whose it is. The index is the number in a probe's cookie.
pub static FAMILIES: &[Family] = &[
    Family {
        name: "glibc",
        known: true,
        zero_frees: true,
        local_too: false,
        // malloc.c's own, exported since 2.2.5 and in the same object file of libc.a. Not `__libc_malloc` and its kin.
        recognised_by: &[&["__libc_mallopt"]],
        // Not reallocarray: it ends in a jump to realloc, which is probed, and no instruction in it is
        // emulated before its arguments are gone. Only calls whose product overflows are not seen; they fail.
        functions: all_of!(C, LIBC, LIBC_STATIC),
    },
    Family {
        name: "mimalloc",
        known: true,
        zero_frees: true,
        local_too: false,
        // Linkers leave those functions out of a static program that it does not call: Rust calls only the aligned ones.
        recognised_by: &[
            &["mi_malloc", "mi_free"],
            &["mi_malloc_aligned", "mi_free"],
            &["mi_calloc", "mi_free"],
            &["mi_realloc", "mi_free"],
        ],
        functions: all_of!(C, MIMALLOC, LIBC, OPERATORS, REALLOCARRAY_TOO),
    },
    Family {
        name: "tcmalloc",
        known: true,
        zero_frees: true,
        local_too: false,
        recognised_by: &[&["tc_malloc", "tc_free"], &["TCMallocInternalMalloc", "TCMallocInternalFree"]],
        functions: all_of!(C, TCMALLOC, LIBC, OPERATORS, REALLOCARRAY_TOO),
    },
    prefixed_jemalloc!("_rjem_"),
    prefixed_jemalloc!("je_"),
    Family {
        name: "jemalloc",
        known: true,
        zero_frees: true,
        local_too: false,
        recognised_by: &[&["malloc", "mallocx", "mallctl"]],
        functions: all_of!(C, JEMALLOC, LIBC, OPERATORS, REALLOCARRAY_TOO),
    },
    Family {
        name: "musl",
        known: true,
        zero_frees: true,
        local_too: false,
        // The dynamic linker's stages in libc.so; in libc.a the two mallocs that there have been.
        recognised_by: &[&["__dls3", "malloc"], &["__libc_malloc_impl"], &["__malloc0", "__expand_heap"]],
        // Not reallocarray: as glibc's.
        functions: all_of!(C, LIBC),
    },
    Family {
        name: "unknown allocator",
        known: false,
        zero_frees: true,
        local_too: false,
        recognised_by: &[&["malloc", "free"]],
        functions: all_of!(C, OPERATORS, REALLOCARRAY_TOO),
    },
    // A program's own. The C++ library's comes to `malloc`: see `symbols::operators`.
    Family {
        name: OPERATOR_NEW,
        known: false,
        zero_frees: true,
        local_too: false,
        recognised_by: &[&["_Znwm", "_ZdlPv"]],
        functions: OPERATORS,
    },
    Family {
        name: LINKER,
        known: true,
        zero_frees: true,
        local_too: false,
        recognised_by: &[&["_dl_debug_state", LINK_STATE]],
        functions: &[("_dl_debug_state", CODE_CHANGE)],
    },
];

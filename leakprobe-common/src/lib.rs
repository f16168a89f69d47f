//! Everything that crosses the kernel boundary, defined once.
//!
//! The BPF programs (`leakprobe-ebpf`) write these records and user space (`leakprobe`) reads them. All
//! of them are `#[repr(C)]` with fixed-width integers and explicit padding, so that the two compilers
//! cannot disagree; sizes and offsets are asserted below. Whoever changes a layout or a meaning raises
//! [`ABI_VERSION`]; a test compares it with the one in each committed BPF object.

#![no_std]

mod cookie;
mod counter;
mod hash;
mod kernel;
mod mismatch;
mod record;
mod unwind;

pub use cookie::{Call, Cookie, NO_REGISTER, PAGE_BITS_OF_PROBES, PAGE_OFFSET, ProbeKey};
pub use counter::{COUNTERS, Counter, LedgerRow};
pub use hash::{copied_hash, mix, stack_id, stack_seed, undescribed_hash, variant_hash};
pub use kernel::{
    BULK_ALLOCATIONS, BULK_FREES, CACHE_NAME, Cache, CacheKey, CacheKind, CacheName, KernelBlock, KernelKey,
    KernelStack, MemoryKind, PendingBulk,
};
pub use mismatch::{LastMismatch, MAX_MISMATCHES, Mismatch, MismatchKey};
pub use record::{
    Block, BlockKey, COPY_PAGE_BYTES, COPY_PAGES, EXECS, Event, EventKind, Kin, LIFETIME_BUCKETS,
    LIFETIME_SHIFT, MAX_FRAMES, NO_STACK, Pending, RangeEvent, RangeOperation, STACK_WINDOW, Site, Stack,
    StackCopy, StackEnd, Target, Thread, forked_generation, lifetime_bucket,
};
pub use unwind::{
    CACHE_ENTRIES, CACHE_RULE_BITS, CHUNK_BITS, CHUNK_ROWS, Chunk, CodePage, CodeRange, FRAME_POINTERS,
    MAX_RANGES, MAX_RULES, NO_RULE, NO_SPACE, NO_TABLE, PAGE_BITS, RANGE_BITS, RULE_STAYS, Rule, STAYS,
    Space, UNDESCRIBED, UNUSED, Unwinding, Walk, cache_index, cfa, guess, link_state, next_epoch, row, saved,
};

/// Raised with every change of a layout or a meaning in this crate.
pub const ABI_VERSION: u32 = 49;

//! Unwinding by tables: from an address to its rule, and what a rule says.
//!
//! User space compiles each mapped object's call frame information. An address is looked up in its process's
//! [`Space`], which gives the object's pages; the page gives a range of rows, sorted by address; the last row that is not
//! above the address gives the number of its [`Rule`].

use core::mem::{offset_of, size_of};

/// How stacks are unwound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Unwinding {
    /// By frame pointers.
    FramePointers = 0,
    /// By tables, and by frame pointers where there are none.
    Auto = 1,
    /// By tables alone.
    Tables = 2,
    /// By the kernel's own walk along frame pointers, for benchmarks.
    Kernel = 3,
    /// Not at all, for benchmarks: the caller alone.
    Caller = 4,
}

/// How a caller's registers are found from those of the function that it called. Offsets are in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Rule {
    /// Added to what [`Rule::cfa`] names, before it is followed.
    pub cfa_offset: i32,
    /// Added to what [`Rule::fp`] names.
    pub fp_offset: i16,
    /// Added to what [`Rule::ra`] names.
    pub ra_offset: i16,
    /// Where the canonical frame address (the caller's stack pointer) comes from: one of [`cfa`]'s numbers.
    pub cfa: u8,
    /// Where the caller's frame pointer is: one of [`saved`]'s numbers.
    pub fp: u8,
    /// Where the return address is: one of [`saved`]'s numbers.
    pub ra: u8,
    /// 1 for a signal trampoline: what it interrupted goes on at its address, not behind a call.
    pub is_signal: u8,
    /// Of [`guess`]'s bits.
    pub is_guess: u8,
    /// Always 0.
    pub _pad: u8,
    /// Added to the word that [`cfa::AT_STACK_POINTER`], [`cfa::AT_FRAME_POINTER`], [`cfa::INTERRUPTED`] and
    /// [`cfa::UNTOUCHED`] find.
    pub cfa_addend: i16,
}

/// Where a canonical frame address comes from.
pub mod cfa {
    /// Nothing is known of this code.
    pub const UNKNOWN: u8 = 0;
    /// The stack pointer.
    pub const STACK_POINTER: u8 = 1;
    /// The frame pointer.
    pub const FRAME_POINTER: u8 = 2;
    /// The word at the stack pointer plus the offset.
    pub const AT_STACK_POINTER: u8 = 3;
    /// The word at the frame pointer plus the offset.
    pub const AT_FRAME_POINTER: u8 = 4;
    /// An entry of a procedure linkage table: the stack pointer plus 8, and 8 more from the offset's byte of each 16 on.
    pub const LINKAGE_TABLE: u8 = 5;
    /// The word at the place of the address that a signal has interrupted plus the offset: another register, where the
    /// signal frame has it. Known of the very function that was interrupted.
    pub const INTERRUPTED: u8 = 6;
    /// The same of a register that calls do not preserve: code that keeps its frame address there across a call relies on
    /// what it calls not to touch it, so it is known of the callers of the function that was interrupted too.
    pub const UNTOUCHED: u8 = 7;
}

/// Where a register of the caller is.
pub mod saved {
    /// It still holds its value.
    pub const SAME: u8 = 0;
    /// In memory, at the canonical frame address plus the offset.
    pub const AT_CFA: u8 = 1;
    /// In memory, at the stack pointer plus the offset.
    pub const AT_STACK_POINTER: u8 = 2;
    /// In memory, at the frame pointer plus the offset.
    pub const AT_FRAME_POINTER: u8 = 3;
    /// Nowhere. Of a return address: this is the outermost function.
    pub const NOWHERE: u8 = 4;
}

/// Bits of [`Rule::is_guess`] and of [`Walk::guessed`].
pub mod guess {
    /// Frame pointers are followed, which may be none.
    pub const FRAME_POINTER: u8 = 1;
    /// The code is not described yet.
    pub const UNDESCRIBED: u8 = 2;
    /// Of a walk alone: it came through code that may be unmapped while the program runs, see [`super::STAYS`].
    pub const PASSING: u8 = 4;
}

/// Number of the rule that says that nothing is known.
pub const NO_RULE: u16 = 0;
/// Number of the rule that takes a frame pointer for one, for code without tables.
pub const FRAME_POINTERS: u16 = 1;
/// Number of the rule for code that was mapped a moment ago, most likely, and is not described yet: as [`FRAME_POINTERS`]
/// where these are followed, else as [`NO_RULE`].
pub const UNDESCRIBED: u16 = 2;
/// Rules that there is room for; their numbers have 14 bits, and [`RULE_STAYS`] is above them.
pub const MAX_RULES: usize = 16_384;
/// Beside the number of an address's rule: the code stays where it is as long as the program runs.
pub const RULE_STAYS: u16 = 1 << 15;

/// Bits of an address that tell one place of a page from another.
pub const PAGE_BITS: u32 = 16;

/// A page's rows: which chunk of [`CHUNK_ROWS`] they are in, and which part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CodePage {
    /// The chunk.
    pub chunk: u32,
    /// Index in it of the first row, which is for the page's first byte.
    pub first: u16,
    /// How many rows; 0 where nothing is known.
    pub rows: u16,
}

/// Rows in a chunk. A row has the lower [`PAGE_BITS`] of its address in its upper half, and the number of its rule in the
/// lower one.
pub const CHUNK_ROWS: usize = 16_384;
/// log2 of that: as many steps find a row in a chunk.
pub const CHUNK_BITS: u32 = CHUNK_ROWS.ilog2();

/// A chunk.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Chunk {
    /// The rows.
    pub rows: [u32; CHUNK_ROWS],
}

/// The row of an address's lower bits.
#[inline(always)]
pub const fn row(low: u16, rule: u16) -> u32 {
    (low as u32) << 16 | rule as u32
}

/// Mappings of code in one process that there is room for.
pub const MAX_RANGES: usize = 512;
/// log2 of that.
pub const RANGE_BITS: u32 = MAX_RANGES.ilog2();
/// Start of a range that is not in use. Compared as a signed number: addresses above are the kernel's.
pub const UNUSED: u64 = i64::MAX as u64;
/// In [`CodeRange::pages`]: the range stays as long as the program runs, whatever else is unmapped.
pub const STAYS: u32 = 1 << 31;
/// [`CodeRange::pages`] of code without tables, of which frame pointers are followed.
pub const NO_TABLE: u32 = STAYS - 1;

/// A mapping of code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CodeRange {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Where `start` is in the object, counted from the first of its pages.
    pub offset: u32,
    /// Number of the object's first [`CodePage`], or [`NO_TABLE`]; with [`STAYS`].
    pub pages: u32,
}

/// Index of the [`Space`] in which no code is known. Each target has two others.
pub const NO_SPACE: u32 = 0;

/// Places in a [`Space`] where an address's rule is remembered.
pub const CACHE_ENTRIES: usize = 4096;
/// Lower bits of an entry: the number of the rule; above it is the address.
pub const CACHE_RULE_BITS: u32 = 16;

/// The code of one process, as it was at one moment.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Space {
    /// Program image of the process that it describes.
    pub generation: u32,
    /// How often objects had been unmapped, as [`next_epoch`] counts.
    pub epoch: u32,
    /// Tells code from other code that was at the same addresses before, see [`crate::variant_hash`].
    pub variant: u32,
    /// Another number each time that the space is written, from its first byte on: a walk that finds
    /// the same one at its end has met nothing of what was written later.
    pub serial: u32,
    /// Sorted by address, and not overlapping; those that are not in use begin at [`UNUSED`].
    pub ranges: [CodeRange; MAX_RANGES],
    /// Rules of addresses that were looked up, by their hash. Written by the programs; one word each, so that none is
    /// ever half of one and half of another.
    pub cache: [u64; CACHE_ENTRIES],
}

/// A walk under way: the registers of the frame that it is at. In the thread's entry, so that the verifier forgets what it
/// knows of them at each step: it would tell apart every way in which they can have come about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Walk {
    /// Address of the code.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub fp: u64,
    /// Where the return address is in a register, that; 0 when it is not any more.
    pub link: u64,
    /// What is taken off `ip` to find its row: 1 behind a call, which may be the last instruction of its function.
    pub back: u64,
    /// Number of the frame's rule.
    pub rule: u64,
    /// The caller's stack pointer, once it is known.
    pub frame: u64,
    /// Address of the copy of the stack.
    pub window: u64,
    /// Words from `window` up to this many bytes above it are in the copy.
    pub reach: u64,
    /// The hash of the frames so far.
    pub hash: u64,
    /// [`guess`]'s bits of the rules so far.
    pub guessed: u64,
    /// 1 when a return address was the kernel's trampoline.
    pub hijacked: u64,
    /// Address of the page of return-probe trampolines, or 0 while unknown.
    pub trampoline: u64,
    /// The bits of a saved code address.
    pub mask: u64,
    /// Number of the process among the targets.
    pub target: u32,
    /// Index of the [`Space`] that describes its code.
    pub space: u32,
    /// 1 when objects have been unmapped since it was described: only what stays is known.
    pub stale: u32,
    /// [`Space::serial`] when the walk began.
    pub serial: u32,
    /// Where the last signal frame has the interrupted address.
    pub interrupted: u64,
}

/// States of `struct r_debug` (`r_state`, in the C library's link.h), and where that is in it, bytes.
pub mod link_state {
    /// Nothing is changed at the moment.
    pub const CONSISTENT: u32 = 0;
    /// Objects are about to be mapped.
    pub const ADD: u32 = 1;
    /// Objects are about to be unmapped.
    pub const DELETE: u32 = 2;
    /// Of the state.
    pub const OFFSET: u64 = 24;
}

/// The epoch of a process's code after the dynamic linker has told of a state: odd while objects are being unmapped, and
/// even again when they are; two more where it is told of
/// a change that the state does not show, that of another namespace (`dlmopen`), whose state is elsewhere. What was described in another epoch says nothing any more, but of code that stays.
#[inline(always)]
pub const fn next_epoch(epoch: u32, state: u32, adding: bool) -> u32 {
    let begins = state == link_state::DELETE && epoch & 1 == 0;
    let ends = state == link_state::CONSISTENT && epoch & 1 == 1;
    let elsewhere = state == link_state::CONSISTENT && epoch & 1 == 0 && !adding;
    epoch.wrapping_add(if elsewhere { 2 } else { (begins || ends) as u32 })
}

/// Where an address's rule is remembered.
#[inline(always)]
pub const fn cache_index(address: u64) -> usize {
    ((address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize) & (CACHE_ENTRIES - 1)
}

const _: () = {
    assert!(size_of::<Rule>() == 16 && offset_of!(Rule, cfa) == 8 && offset_of!(Rule, cfa_addend) == 14);
    assert!(size_of::<CodePage>() == 8 && size_of::<Walk>() == 136);
    assert!(size_of::<CodeRange>() == 24 && offset_of!(CodeRange, offset) == 16);
    assert!(size_of::<Space>() == 16 + 24 * MAX_RANGES + 8 * CACHE_ENTRIES);
    assert!(offset_of!(Space, cache) == 16 + 24 * MAX_RANGES);
    assert!(CHUNK_ROWS.is_power_of_two() && MAX_RANGES.is_power_of_two() && CACHE_ENTRIES.is_power_of_two());
    assert!(MAX_RULES <= RULE_STAYS as usize && CACHE_RULE_BITS == u16::BITS);
};

#[cfg(feature = "user")]
mod pod {
    use super::{Chunk, CodePage, Rule, Space};

    // SAFETY: all are repr(C) of integers without implicit padding (sizes asserted above), so every byte
    // is initialized and every bit pattern is a value.
    unsafe impl aya::Pod for Rule {}
    // SAFETY: as above.
    unsafe impl aya::Pod for CodePage {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Chunk {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Space {}
}

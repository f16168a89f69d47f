//! Map keys, map values and events.

use core::mem::{offset_of, size_of};

use crate::{Cookie, Walk};

/// Frames kept of one stack. The kernel's own default limit (`kernel.perf_event_max_stack`) is 127.
pub const MAX_FRAMES: usize = 128;

/// Words of the stack copied at once when its frames are walked; a power of two. A read of user memory costs
/// about 75 ns however short it is (6.18, hardened usercopy), and 1 KiB holds the frames of 10 ordinary
/// functions.
pub const STACK_WINDOW: usize = 128;

/// The stack ID of blocks whose stack could not be kept.
pub const NO_STACK: u64 = 0;

/// Key of an outstanding block: its address in the address space of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct BlockKey {
    /// The block's address.
    pub address: u64,
    /// Process (thread group) as the initial PID namespace numbers it.
    pub tgid: u32,
    /// Always 0: keys are compared as bytes.
    pub _pad: u32,
}

/// An outstanding block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Block {
    /// Bytes asked for.
    pub size: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds, at the allocation's return.
    pub allocated_ns: u64,
    /// Key in the stack table, or [`NO_STACK`].
    pub stack: u64,
    /// Thread that allocated it.
    pub tid: u32,
    /// Which program image of the process: raised by each exec.
    pub generation: u32,
    /// How many blocks this one stands for; 1 unless sampled.
    pub weight: u32,
    /// Index of the allocator family, with [`Block::FREED_ELSEWHERE`].
    pub family: u32,
}

impl Block {
    /// In [`Block::family`]: its allocator has its blocks given back by another one's functions.
    pub const FREED_ELSEWHERE: u32 = 1 << 8;

    /// Index of the allocator family.
    #[inline(always)]
    pub const fn family_index(&self) -> u8 {
        self.family as u8
    }

    /// Whether a function of a family ought not to be given this block.
    #[inline(always)]
    pub const fn is_mismatch(&self, family: u8) -> bool {
        self.family & Self::FREED_ELSEWHERE == 0 && self.family_index() != family
    }
}

/// How a frame walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum StackEnd {
    /// At a zero frame pointer or a zero return address: the outermost frame.
    Base = 0,
    /// At [`MAX_FRAMES`]: more frames follow.
    Truncated = 1,
    /// At a frame pointer that cannot be one: an object without frame pointers, or the outermost one.
    Lost = 2,
}

impl StackEnd {
    /// The end for its number; unknown numbers are [`StackEnd::Lost`].
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::Base,
            1 => Self::Truncated,
            _ => Self::Lost,
        }
    }
}

/// One distinct stack of one program image.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Stack {
    /// Process it was taken in.
    pub tgid: u32,
    /// Program image it was taken in (see [`Block::generation`]).
    pub generation: u32,
    /// Valid entries of `frames`.
    pub len: u32,
    /// A [`StackEnd`].
    pub end: u32,
    /// 1 where code without tables was walked by frame pointers, which may be none.
    pub guessed: u32,
    /// Always 0.
    pub _pad: u32,
    /// Return addresses, innermost first.
    pub frames: [u64; MAX_FRAMES],
}

/// Pages of [`StackCopy::memory`]: 32 KiB, whichever part of the first one the stack begins in.
pub const COPY_PAGES: usize = 9;
/// Bytes of such a page.
pub const COPY_PAGE_BYTES: usize = 4096;

/// A stack with what it was made from, so that user space can unwind it anew.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StackCopy {
    /// The stack as it was walked.
    pub stack: Stack,
    /// Its ID.
    pub id: u64,
    /// Address of the code where the walk began.
    pub ip: u64,
    /// Stack pointer there.
    pub sp: u64,
    /// Frame pointer there.
    pub fp: u64,
    /// Where the return address was in a register, that.
    pub link: u64,
    /// The bits of a saved code address.
    pub mask: u64,
    /// 1 when the walk came through code that was not described yet.
    pub undescribed: u64,
    /// 1 when it is of the share of all stacks that are copied.
    pub sampled: u64,
    /// Epoch of the process's code, see [`crate::next_epoch`].
    pub epoch: u64,
    /// Valid pages of `memory`, the first of which is the one that `sp` points into.
    pub pages: u64,
    /// The thread's stack upward, from the start of that page on.
    pub memory: [[u8; COPY_PAGE_BYTES]; COPY_PAGES],
}

/// Buckets of the histogram of freed lifetimes.
pub const LIFETIME_BUCKETS: usize = 40;
/// The first bucket holds lifetimes below 2^(shift+1) ns, about 2 us; each further one twice as much.
pub const LIFETIME_SHIFT: u32 = 10;

/// Bucket of a lifetime in nanoseconds.
#[inline(always)]
pub const fn lifetime_bucket(lifetime_ns: u64) -> usize {
    let log2 = 63 - (lifetime_ns | 1).leading_zeros();
    let bucket = log2.saturating_sub(LIFETIME_SHIFT) as usize;
    if bucket < LIFETIME_BUCKETS { bucket } else { LIFETIME_BUCKETS - 1 }
}

/// What one stack has allocated and freed. The allocating fields come first: a map read copies upward, so
/// a copy torn by a running program shows at most what was live, never more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Site {
    /// Blocks ever recorded here.
    pub allocated_blocks: u64,
    /// Bytes ever recorded here.
    pub allocated_bytes: u64,
    /// Blocks of this site given back, however (free, realloc, a missed free, exec).
    pub freed_blocks: u64,
    /// Bytes of this site given back.
    pub freed_bytes: u64,
    /// Longest lifetime of a freed block, nanoseconds.
    pub max_lifetime_ns: u64,
    /// Of the freed blocks, those whose free was not seen: their address was handed out again.
    pub missed_frees: u64,
    /// Of the allocated blocks, those whose stack was walked through code that was not described yet.
    pub undescribed_blocks: u64,
    /// Lifetimes of freed blocks by [`lifetime_bucket`].
    pub lifetimes: [u64; LIFETIME_BUCKETS],
}

impl Site {
    /// What has allocated nothing.
    pub const NOTHING: Self = Self {
        allocated_blocks: 0,
        allocated_bytes: 0,
        freed_blocks: 0,
        freed_bytes: 0,
        max_lifetime_ns: 0,
        missed_frees: 0,
        undescribed_blocks: 0,
        lifetimes: [0; LIFETIME_BUCKETS],
    };
}

/// What BPF knows of a process that is being profiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Target {
    /// Raised by each exec of the process.
    pub generation: u32,
    /// Number of the target: index of the word that says which [`crate::Space`] describes its code.
    pub number: u32,
    /// Address of the page of return-probe trampolines (`[uprobes]` in the maps), or 0 while unknown. The
    /// kernel makes it at the first return probe that is hit.
    pub trampoline: u64,
    /// The number of the image that its [`crate::Space`] is described for: its generation, but for a child that
    /// user space has not taken in yet, which has its parent's; or [`Target::UNDESCRIBED`].
    pub image: u32,
    /// Whose memory it runs in: its own number, but for a child of vfork that has not called exec yet.
    pub owner: u32,
    /// With `--follow`, where cookies are looked up by address: whose.
    pub book: u32,
    /// The number that its first program image had, which with its own number is its identity.
    pub born: u32,
    /// [`Target::FORKED`], [`Target::PENDING`], [`Target::THREADED`].
    pub flags: u32,
    /// 1 from when the dynamic linker has said that it adds objects until it is done.
    pub adding: u32,
}

impl Target {
    /// In [`Target::image`]: its code is not described.
    pub const UNDESCRIBED: u32 = u32::MAX;
    /// In [`Target::flags`]: its program runs in a copy of its parent's memory, blocks included.
    pub const FORKED: u32 = 1;
    /// In [`Target::flags`]: a child that user space has not taken in yet; its place is its parent's.
    pub const PENDING: u32 = 2;
    /// In [`Target::flags`]: with `--follow`, its present program has made threads.
    pub const THREADED: u32 = 4;
}

/// The number of the image of a child, by how many were made before it: no other child of its process number has it, nor
/// the images that come after it by [`EXECS`], nor has one that user space has taken in by itself, which count from 1.
#[inline(always)]
pub const fn forked_generation(births: u32) -> u32 {
    births.wrapping_mul(EXECS) | 1 << 31
}

/// Programs that a child may have, one after the other, and be told from another one of the same number.
pub const EXECS: u32 = 1 << 14;

/// What a process of a tree (`--follow`) holds, and what it had from its parent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Kin {
    /// Blocks of its present program that are outstanding.
    pub live_blocks: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Of its parent's own blocks, those that were outstanding when it was forked; 0 after an exec.
    pub inherited_blocks: u64,
    /// Their bytes.
    pub inherited_bytes: u64,
    /// Blocks from before the fork that it has given back.
    pub inherited_freed: u64,
}

/// A call that was set aside: another one was made while it was pending, which is none of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pending {
    /// As [`Thread::cookie`]; 0 for none.
    pub cookie: u64,
    /// As [`Thread::stack_pointer`].
    pub stack_pointer: u64,
    /// As [`Thread::size`].
    pub size: u64,
    /// As [`Thread::return_address`].
    pub return_address: u64,
    /// As [`Thread::entry`].
    pub entry: u64,
}

/// A thread's pending call and scratch. It stays for the life of the thread: inserting and removing it
/// around every call would cost two more map operations.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Thread {
    /// Process.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// Program image of the process.
    pub generation: u32,
    /// Calls that the pending one has ended in by a jump, at the same stack pointer: one kernel return
    /// event each comes before the pending call's own.
    pub chained: u32,
    /// The pending call's cookie; 0 when none is pending.
    pub cookie: Cookie,
    /// The pending call's stack pointer at entry.
    pub stack_pointer: u64,
    /// Bytes it asks for; `u64::MAX` when size times count overflows.
    pub size: u64,
    /// The block it gives back, or its out pointer; 0 where it has neither.
    pub pointer: u64,
    /// 1 when `taken` holds the record of `pointer`, else 0.
    pub has_taken: u64,
    /// The record that a pending reallocation took out.
    pub taken: Block,
    /// The pending system call of the mmap family; 0 when there is none.
    pub range_kind: u64,
    /// Bytes that it maps.
    pub range_bytes: u64,
    /// Its stack ID.
    pub range_stack: u64,
    /// Where the pending call returns to, if it ends at instructions (see [`Cookie::ends_at_instructions`]).
    pub return_address: u64,
    /// The probed instruction at its entry, if it ends at instructions; else its out pointer, if it gives a block back too;
    /// or how much larger a block may become.
    pub entry: u64,
    /// What the last call returned that was made while `outer` was set aside.
    pub inner: u64,
    /// The call that was pending before; always an allocation that ends at instructions.
    pub outer: Pending,
    /// The walk of a stack.
    pub walk: Walk,
    /// A copy of a piece of the thread's stack, for the walk; the last word is never filled.
    pub window: [u64; STACK_WINDOW + 1],
    /// Where the stack is built before it is kept.
    pub stack: Stack,
}

/// What an [`Event`] announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum EventKind {
    /// A stack was seen for the first time; `a` is its ID. Its objects may have been mapped just now.
    NewStack = 1,
    /// The process replaced its program; `a` is the new generation, and 2^32 more where probes may be lost by that:
    /// another thread than the first one has called for it, or, with `--follow`, it had made threads.
    Exec = 2,
    /// A [`RangeEvent`] follows the head.
    Range = 3,
    /// The dynamic linker has mapped or unmapped objects; `a` is the epoch of the code.
    CodeChange = 4,
    /// The process has made another one, which has a copy of its memory, with the breakpoints in it.
    Fork = 5,
    /// With `--follow`: the process has made another one, which is a target already; `a` is its process number, and 2^32
    /// times the number of its image.
    Born = 6,
}

/// A rare event for user space, at the head of every ring-buffer record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// An [`EventKind`].
    pub kind: u32,
    /// Process it concerns.
    pub tgid: u32,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub at_ns: u64,
    /// Meaning by kind.
    pub a: u64,
}

/// What a [`RangeEvent`] says of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum RangeOperation {
    /// It is mapped now, in place of whatever was there.
    Map = 1,
    /// It is about to be unmapped. Said before the kernel does it, so that no other thread's `Map` of the
    /// same addresses can come first.
    Unmap = 2,
    /// The thread's last `Unmap` did not happen: the system call failed.
    Undo = 3,
    /// The program break is `address` now. With [`NO_STACK`] the allocator itself moved it.
    Break = 4,
}

impl RangeOperation {
    /// The operation for its number; `None` for a number that stands for none.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Map),
            2 => Some(Self::Unmap),
            3 => Some(Self::Undo),
            4 => Some(Self::Break),
            _ => None,
        }
    }
}

/// A change to a process's mappings, in the order in which the changes happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RangeEvent {
    /// The head; its `a` is the stack ID (or [`NO_STACK`]).
    pub head: Event,
    /// First address of the range.
    pub address: u64,
    /// Its size in bytes, as the program gave it (not rounded to pages).
    pub bytes: u64,
    /// A [`RangeOperation`].
    pub operation: u32,
    /// Thread that did it.
    pub tid: u32,
    /// Program image of the process.
    pub generation: u32,
    /// Always 0.
    pub _pad: u32,
}

const _: () = {
    assert!(size_of::<BlockKey>() == 16 && offset_of!(BlockKey, tgid) == 8);
    assert!(size_of::<Block>() == 40 && offset_of!(Block, tid) == 24 && offset_of!(Block, family) == 36);
    assert!(size_of::<Stack>() == 24 + 8 * MAX_FRAMES && offset_of!(Stack, frames) == 24);
    assert!(size_of::<StackCopy>() == size_of::<Stack>() + 80 + COPY_PAGES * COPY_PAGE_BYTES);
    assert!(size_of::<Site>() == 56 + 8 * LIFETIME_BUCKETS && offset_of!(Site, lifetimes) == 56);
    assert!(size_of::<Target>() == 40 && offset_of!(Target, trampoline) == 8 && size_of::<Kin>() == 40);
    assert!(size_of::<Thread>() == 320 + 8 * (STACK_WINDOW + 1) + size_of::<Stack>());
    assert!(offset_of!(Thread, cookie) == 16 && offset_of!(Thread, taken) == 56);
    assert!(
        offset_of!(Thread, walk) == 184
            && offset_of!(Thread, window) == 320
            && offset_of!(Thread, outer) == 144
            && STACK_WINDOW.is_power_of_two()
    );
    assert!(size_of::<Event>() == 24 && offset_of!(Event, a) == 16);
    assert!(size_of::<RangeEvent>() == 56 && offset_of!(RangeEvent, operation) == 40);
};

#[cfg(feature = "user")]
mod pod {
    use super::{Block, BlockKey, Kin, Site, Stack, Target};
    use crate::ProbeKey;

    // SAFETY: all are repr(C) of integers without implicit padding (sizes asserted above), so every byte
    // is initialized and every bit pattern is a value.
    unsafe impl aya::Pod for BlockKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ProbeKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Block {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Stack {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Site {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Target {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Kin {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_fall_into_doubling_buckets() {
        assert_eq!(lifetime_bucket(0), 0);
        assert_eq!(lifetime_bucket(2047), 0);
        assert_eq!(lifetime_bucket(2048), 1);
        assert_eq!(lifetime_bucket(4096), 2);
        assert_eq!(lifetime_bucket(u64::MAX), LIFETIME_BUCKETS - 1);
    }
}

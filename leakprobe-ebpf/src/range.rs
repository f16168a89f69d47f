//! The mmap family, by system-call tracepoints: each change of a target's mappings becomes an event.
//!
//! BPF maps cannot be searched by range, so user space keeps the ranges. The ring buffer keeps the order:
//! an unmapping is said at the call's entry, before the kernel can hand the addresses out again.

use aya_ebpf::{EbpfContext, helpers::bpf_ktime_get_ns, programs::TracePointContext};
use leakprobe_common::{Counter, Event, EventKind, NO_STACK, RangeEvent, RangeOperation, Thread};

use crate::{
    ledger::count,
    maps::{EVENTS, closing},
    stack,
    thread::{self, Missing},
};

const MMAP: u64 = 1;
const MREMAP: u64 = 2;
const MUNMAP: u64 = 3;
const BRK: u64 = 4;
/// A munmap or mremap that gave nothing back at its entry.
const REMOVES_NOTHING: u64 = 1 << 8;
/// Made inside an allocator's call: only the program break is of interest.
const NESTED: u64 = 1 << 9;
/// User space was not told of what it removes.
const UNTOLD: u64 = 1 << 10;

const MREMAP_DONTUNMAP: u64 = 4;
/// Smallest page of any supported machine.
const PAGE_MASK: u64 = 0xfff;

#[inline(always)]
fn argument(ctx: &TracePointContext, index: usize) -> u64 {
    // A system call's tracepoint has 8 bytes of common fields, 8 of call number, then 8 an argument.
    // SAFETY: the verifier checks the access against the tracepoint's size.
    unsafe { *ctx.as_ptr().cast::<u64>().add(2 + index) }
}

/// `mmap(addr, length, ...)`
#[inline(always)]
pub fn mmap_enter(ctx: &TracePointContext) -> u32 {
    map::<false>(ctx)
}

/// As [`mmap_enter`]; its stack is walked by tables, which needs what only kernels have that call each step.
#[inline(always)]
pub fn mmap_looped(ctx: &TracePointContext) -> u32 {
    map::<true>(ctx)
}

#[inline(always)]
fn map<const LOOPED: bool>(ctx: &TracePointContext) -> u32 {
    begin::<LOOPED>(ctx, MMAP, argument(ctx, 1));
    0
}

/// `mremap(old_address, old_size, new_size, flags, ...)`
#[inline(always)]
pub fn mremap_enter(ctx: &TracePointContext) -> u32 {
    remap::<false>(ctx)
}

/// See [`mmap_looped`].
#[inline(always)]
pub fn mremap_looped(ctx: &TracePointContext) -> u32 {
    remap::<true>(ctx)
}

#[inline(always)]
fn remap<const LOOPED: bool>(ctx: &TracePointContext) -> u32 {
    let Some(thread) = begin::<LOOPED>(ctx, MREMAP, argument(ctx, 2)) else { return 0 };
    let (address, bytes, flags) = (argument(ctx, 0), argument(ctx, 1), argument(ctx, 3));
    remove(thread, address, bytes, bytes == 0 || flags & MREMAP_DONTUNMAP != 0);
    0
}

/// `munmap(addr, length)`
#[inline(always)]
pub fn munmap_enter(ctx: &TracePointContext) -> u32 {
    let Some(thread) = begin::<false>(ctx, MUNMAP, 0) else { return 0 };
    let (address, bytes) = (argument(ctx, 0), argument(ctx, 1));
    remove(thread, address, bytes, bytes == 0);
    0
}

/// `brk(addr)`
#[inline(always)]
pub fn brk_enter(ctx: &TracePointContext) -> u32 {
    begin::<false>(ctx, BRK, 0);
    0
}

/// See [`mmap_looped`].
#[inline(always)]
pub fn brk_looped(ctx: &TracePointContext) -> u32 {
    begin::<true>(ctx, BRK, 0);
    0
}

/// The call's end, for all four.
#[inline(always)]
pub fn exit(ctx: &TracePointContext) -> u32 {
    if closing() {
        return 0;
    }
    let Ok(thread) = thread::current() else { return 0 };
    let kind = thread.range_kind;
    if kind == 0 {
        return 0;
    }
    thread.range_kind = 0;
    let result = argument(ctx, 0);
    // An error is -4095 to -1.
    let failed = result > u64::MAX - 4095;
    match kind & 0xff {
        BRK => {
            // Never fails as such: it returns the break that holds.
            let sent = send(thread, RangeOperation::Break, result, 0, thread.range_stack);
            if kind & NESTED == 0 {
                count(if sent { Counter::RangesReported } else { Counter::RangesLost });
            }
        }
        _ if failed => {
            let undone = kind & (REMOVES_NOTHING | UNTOLD) != 0
                || kind & 0xff == MMAP
                || send(thread, RangeOperation::Undo, 0, 0, NO_STACK);
            count(if undone { Counter::RangesFailed } else { Counter::RangesLost });
        }
        MUNMAP if kind & UNTOLD == 0 => count(Counter::RangesReported),
        MUNMAP => count(Counter::RangesLost),
        _ => {
            let sent = send(thread, RangeOperation::Map, result, thread.range_bytes, thread.range_stack);
            count(if sent && kind & UNTOLD == 0 { Counter::RangesReported } else { Counter::RangesLost });
        }
    }
    0
}

/// Remembers a call of a target; `None` when it is not to be followed. `LOOPED`: see [`mmap_looped`].
#[inline(always)]
fn begin<const LOOPED: bool>(ctx: &TracePointContext, kind: u64, bytes: u64) -> Option<&'static mut Thread> {
    if closing() {
        return None;
    }
    let thread = match thread::current() {
        Ok(thread) => thread,
        Err(Missing::NotATarget) => return None,
        Err(Missing::MapFull) => {
            count(Counter::RangesEntered);
            count(Counter::RangesLost);
            return None;
        }
    };
    count(Counter::RangesEntered);
    thread.range_bytes = bytes;
    thread.range_stack = NO_STACK;
    if thread::still_pending(thread, None) {
        count(Counter::RangesNested);
        thread.range_kind = if kind == BRK { BRK | NESTED } else { 0 };
        return None;
    }
    thread.range_kind = kind;
    if kind != MUNMAP {
        thread.range_stack = if LOOPED {
            stack::capture_system_call(ctx, thread)
        } else {
            stack::capture_by_kernel(ctx, thread)
        };
    }
    Some(thread)
}

/// Announces that a range is about to go, unless the kernel will refuse or keep it.
#[inline(always)]
fn remove(thread: &mut Thread, address: u64, bytes: u64, keeps: bool) {
    if keeps || address & PAGE_MASK != 0 {
        thread.range_kind |= REMOVES_NOTHING;
    } else if !send(thread, RangeOperation::Unmap, address, bytes, NO_STACK) {
        thread.range_kind |= UNTOLD;
    }
}

#[inline(always)]
fn send(thread: &Thread, operation: RangeOperation, address: u64, bytes: u64, stack: u64) -> bool {
    let Some(mut entry) = EVENTS.reserve::<RangeEvent>(0) else { return false };
    // SAFETY: the helper has no preconditions.
    let at_ns = unsafe { bpf_ktime_get_ns() };
    entry.write(RangeEvent {
        head: Event { kind: EventKind::Range as u32, tgid: thread.tgid, at_ns, a: stack },
        address,
        bytes,
        operation: operation as u32,
        tid: thread.tid,
        generation: thread.generation,
        _pad: 0,
    });
    entry.submit(0);
    true
}

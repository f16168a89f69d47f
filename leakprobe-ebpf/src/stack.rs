//! Stacks: walked along the frame pointers, then kept once each.
//!
//! The walk starts at a return probe, where the registers are the caller's: no frame of the allocator is
//! on the stack, and the first caller is the instruction pointer itself. Tables from `.eh_frame` can take
//! the place of [`walk`]; everything else works on its result.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_USER_STACK, BPF_NOEXIST},
    helpers::{bpf_ktime_get_ns, generated},
};
use leakprobe_common::{
    Counter, Event, EventKind, MAX_FRAMES, NO_STACK, STACK_WINDOW, Site, StackEnd, Thread, mix,
};

use crate::{
    ledger::count,
    maps::{EVENTS, NEW_SITE, SITES, STACKS},
    registers::Registers,
};

/// Walks the stack of the pending call's caller, keeps it, and returns its ID and its site.
#[inline(always)]
pub fn capture<C: EbpfContext>(
    ctx: &C,
    thread: &mut Thread,
    registers: &Registers,
) -> (u64, Option<*mut Site>) {
    let (own, hijacked) = walk(thread, registers);
    // From 6.11 on the kernel puts back the return addresses that return probes have replaced; before, user
    // space marks what is left.
    let id = if hijacked { walk_by_kernel(ctx, thread).unwrap_or(own) } else { own };
    if let Some(site) = SITES.get_ptr_mut(id) {
        return (id, Some(site)); // a site is made after its stack was kept
    }
    let id = intern(thread, id);
    (id, site(id))
}

/// Keeps the stack built in `thread.stack` under `id`; [`NO_STACK`] when there is no room.
#[inline(always)]
pub fn intern(thread: &mut Thread, id: u64) -> u64 {
    thread.stack.tgid = thread.tgid;
    thread.stack.generation = thread.generation;
    match STACKS.insert(id, &thread.stack, BPF_NOEXIST as u64) {
        Ok(()) => {
            announce(thread.tgid, id);
            id
        }
        Err(-17) => id, // EEXIST: another thread was first
        Err(_) => {
            count(Counter::StackMapFull);
            NO_STACK
        }
    }
}

/// The site of a stack ID, made on first use.
#[inline(always)]
fn site(id: u64) -> Option<*mut Site> {
    if let Some(site) = SITES.get_ptr_mut(id) {
        return Some(site);
    }
    let new = NEW_SITE.get(0)?;
    // Another thread may be first; either way it is there afterwards.
    let _ = SITES.insert(id, new, BPF_NOEXIST as u64);
    SITES.get_ptr_mut(id)
}

/// Follows the frame pointers from the caller's registers into `thread.stack` and returns the stack's ID: a hash of its frames.
/// Own reads are cheaper than bpf_get_stack, and can say how the walk ended.
///
/// Also returns whether a return address looks like the kernel's trampoline, which stands at the start of a
/// page: another tracer has a return probe on a function of the target's that has not returned.
#[inline(always)]
fn walk(thread: &mut Thread, registers: &Registers) -> (u64, bool) {
    let ip = registers.instruction_pointer();
    let mut hash = mix(seed(thread.tgid, thread.generation), ip);
    let mut fp = registers.frame_pointer();
    let mut lowest = registers.stack_pointer();
    let mask = registers.code_mask();
    let mut end = StackEnd::Truncated;
    let mut len = 1;
    let mut hijacked = false;
    // The window holds whole frames up to `reach` bytes above its start; none yet, as no frame lies at the
    // top of the address space.
    let (mut window, mut reach) = (u64::MAX, 0);
    thread.stack.frames[0] = ip;
    for frame in &mut thread.stack.frames[1..] {
        if fp == 0 {
            end = StackEnd::Base;
            break;
        }
        // Frames lie one above the other; anything else is a register used for another purpose.
        if fp < lowest || fp & 7 != 0 {
            end = StackEnd::Lost;
            break;
        }
        if fp.wrapping_sub(window) > reach {
            window = fp;
            if copy(&mut thread.window, fp, WINDOW_BYTES as u32) {
                reach = WINDOW_BYTES - 16;
            } else if copy(&mut thread.window, fp, 16) {
                // Less than a window was left of the stack, or its next page is not in memory.
                reach = 0;
            } else {
                end = StackEnd::Lost;
                break;
            }
        }
        let index = (fp.wrapping_sub(window) >> 3) as usize & (STACK_WINDOW - 1);
        let (next, address) = (thread.window[index], thread.window[index + 1] & mask);
        if address == 0 {
            end = StackEnd::Base;
            break;
        }
        *frame = address;
        hijacked |= address & 0xfff == 0;
        hash = mix(hash, address);
        len += 1;
        lowest = fp + 16;
        fp = next;
    }
    thread.stack.len = len;
    thread.stack.end = end as u32;
    (id(hash), hijacked)
}

/// Builds the stack anew by the kernel's own walk along the frame pointers; `None` when it finds nothing.
/// Leaves `thread.stack.end` as it is: the kernel does not say how its walk ended.
#[inline(always)]
pub fn walk_by_kernel<C: EbpfContext>(ctx: &C, thread: &mut Thread) -> Option<u64> {
    // SAFETY: the buffer is the thread's own, and as long as is said.
    let bytes = unsafe {
        generated::bpf_get_stack(
            ctx.as_ptr(),
            thread.stack.frames.as_mut_ptr().cast(),
            (MAX_FRAMES * 8) as u32,
            BPF_F_USER_STACK as u64,
        )
    };
    if bytes <= 0 {
        return None;
    }
    let len = bytes as usize / 8;
    let mut hash = seed(thread.tgid, thread.generation);
    for (index, frame) in thread.stack.frames.iter().enumerate() {
        if index >= len {
            break;
        }
        hash = mix(hash, *frame);
    }
    thread.stack.len = len as u32;
    Some(id(hash))
}

/// A stack's ID from the hash of its frames.
#[inline(always)]
fn id(hash: u64) -> u64 {
    if hash == NO_STACK { 1 } else { hash }
}

/// The window's length.
pub const WINDOW_BYTES: u64 = STACK_WINDOW as u64 * 8;

/// Copies user memory to the start of the window.
#[inline(always)]
pub fn copy(window: &mut [u64; STACK_WINDOW + 1], from: u64, bytes: u32) -> bool {
    // SAFETY: the window is at least as long; the helper checks the address, and a fault is an error.
    unsafe { generated::bpf_probe_read_user(window.as_mut_ptr().cast(), bytes, from as *const _) == 0 }
}

/// Where the hash starts: equal addresses in two processes, or before and after an exec, are two stacks.
#[inline(always)]
fn seed(tgid: u32, generation: u32) -> u64 {
    mix(0x9e37_79b9_7f4a_7c15, (tgid as u64) << 32 | generation as u64)
}

/// Tells user space of a new stack: its frames may lie in an object that was mapped just now, and may be
/// unmapped soon.
#[inline(always)]
fn announce(tgid: u32, id: u64) {
    match EVENTS.reserve::<Event>(0) {
        Some(mut entry) => {
            entry.write(Event {
                kind: EventKind::NewStack as u32,
                tgid,
                // SAFETY: the helper has no preconditions.
                at_ns: unsafe { bpf_ktime_get_ns() },
                a: id,
            });
            entry.submit(0);
        }
        None => count(Counter::EventLost),
    }
}

const _: () = assert!(MAX_FRAMES > 1);

//! Stacks: walked along the frame pointers, then kept once each.
//!
//! The walk starts at a return probe, where the registers are the caller's: no frame of the allocator is
//! on the stack, and the first caller is the instruction pointer itself. Tables from `.eh_frame` can take
//! the place of [`walk`]; everything else works on its result.

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_NOEXIST,
    helpers::{bpf_ktime_get_ns, bpf_probe_read_user},
};
use leakprobe_common::{Counter, Event, EventKind, MAX_FRAMES, NO_STACK, Site, Stack, StackEnd, Thread};

use crate::{
    ledger::count,
    maps::{EVENTS, NEW_SITE, SITES, STACKS},
    registers::Registers,
};

/// Walks the stack of the pending call's caller, keeps it, and returns its ID and its site.
#[inline(always)]
pub fn capture<C: EbpfContext>(
    _ctx: &C,
    thread: &mut Thread,
    registers: &Registers,
) -> (u64, Option<*mut Site>) {
    let id = walk(
        &mut thread.stack,
        seed(thread.tgid, thread.generation),
        registers.instruction_pointer(),
        registers.frame_pointer(),
        registers.stack_pointer(),
    );
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
            if thread.stack.end == StackEnd::Truncated as u32 {
                count(Counter::StackTruncated);
            }
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

/// Follows the frame pointers from `fp` into `stack` and returns the stack's ID: a hash of its frames.
/// Own reads of 16 bytes a frame are cheaper than bpf_get_stack and can say how the walk ended.
#[inline(always)]
fn walk(stack: &mut Stack, seed: u64, ip: u64, fp: u64, sp: u64) -> u64 {
    let mut hash = mix(seed, ip);
    let mut fp = fp;
    let mut lowest = sp;
    let mut end = StackEnd::Truncated;
    let mut len = 1;
    stack.frames[0] = ip;
    for frame in &mut stack.frames[1..] {
        if fp == 0 {
            end = StackEnd::Base;
            break;
        }
        // Frames lie one above the other; anything else is a register used for another purpose.
        if fp < lowest || fp & 7 != 0 {
            end = StackEnd::Lost;
            break;
        }
        // SAFETY: the helper checks the address; a fault is an error, not a crash.
        let Ok([next, address]) = (unsafe { bpf_probe_read_user(fp as *const [u64; 2]) }) else {
            end = StackEnd::Lost;
            break;
        };
        if address == 0 {
            end = StackEnd::Base;
            break;
        }
        *frame = address;
        hash = mix(hash, address);
        len += 1;
        lowest = fp + 16;
        fp = next;
    }
    stack.len = len;
    stack.end = end as u32;
    if hash == NO_STACK { 1 } else { hash }
}

/// Where the hash starts: equal addresses in two processes, or before and after an exec, are two stacks.
#[inline(always)]
pub fn seed(tgid: u32, generation: u32) -> u64 {
    mix(0x9e37_79b9_7f4a_7c15, (tgid as u64) << 32 | generation as u64)
}

/// One round of a multiply-and-fold hash; the odd constant is 2^64 divided by the golden ratio.
#[inline(always)]
pub fn mix(hash: u64, word: u64) -> u64 {
    let product = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ (product >> 32)
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

//! Stacks: walked by tables or along the frame pointers, then kept once each.
//!
//! The walk starts where an allocator's function returns, with the registers that its caller has then: no frame of the
//! allocator is on the stack, and the first caller is the instruction pointer itself.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_USER_STACK, BPF_NOEXIST, BPF_RB_AVAIL_DATA},
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns, generated},
};
use leakprobe_common::{
    COPY_PAGE_BYTES, COPY_PAGES, Counter, Event, EventKind, MAX_FRAMES, NO_STACK, STACK_WINDOW, Site, Stack,
    StackCopy, StackEnd, Thread, Unwinding, copied_hash, mix, stack_id, stack_seed, undescribed_hash,
};

use crate::{
    ledger::{add, count},
    maps::{COPIED_ONE_IN, COPIES, EVENT_BYTES, EVENTS, NEW_SITE, SITES, STACKS, UNWINDING},
    registers::{Caller, Registers},
    unwind::{self, Walked},
};

/// Bytes of the ring buffer of events that may wait in it when a new stack is told of.
const ROOM_FOR_STACKS: u64 = EVENT_BYTES as u64 / 4 * 3;

/// Walks the stack of the pending call's caller, keeps it, and returns its ID and its site.
#[inline(always)]
pub fn capture<C: EbpfContext, const LOOPED: bool>(
    ctx: &C,
    thread: &mut Thread,
    caller: &Caller,
) -> (u64, Option<*mut Site>) {
    if UNWINDING.load() == Unwinding::Kernel as u32 {
        let id = walk_by_kernel(ctx, thread, Some(caller)).unwrap_or(NO_STACK);
        return keep(thread, id);
    }
    let seed = stack_seed(thread.tgid, thread.generation);
    let Some(walked) = unwind::walk::<LOOPED>(thread, caller, seed) else { return keep(thread, NO_STACK) };
    let Walked { hash, hijacked, undescribed } = walked;
    let own = stack_id(hash);
    let one_in = COPIED_ONE_IN.load();
    // SAFETY: the helper has no preconditions.
    let sampled = one_in != 0 && unsafe { bpf_get_prandom_u32() } % one_in == 0;
    if hijacked {
        // From 6.11 on the kernel puts back the return addresses that return probes have replaced; before, user
        // space marks what is left.
        let id = walk_by_kernel(ctx, thread, Some(caller)).unwrap_or(own);
        return keep(thread, id);
    }
    if undescribed {
        return keep_undescribed(thread, caller, hash, sampled);
    }
    if sampled {
        send_copy(thread, caller, own);
    }
    keep(thread, own)
}

/// Keeps a stack that user space is to unwind anew, as soon as it knows the code: as one of its own where it is copied.
#[inline(always)]
fn keep_undescribed(
    thread: &mut Thread,
    caller: &Caller,
    hash: u64,
    sampled: bool,
) -> (u64, Option<*mut Site>) {
    let (kept, site) = match COPIES.reserve::<StackCopy>(0) {
        Some(mut copy) => {
            // SAFETY: the helper has no preconditions.
            let now = unsafe { bpf_ktime_get_ns() };
            let own = stack_id(copied_hash(hash, now, thread.tid));
            fill(copy.as_mut_ptr(), thread, caller, own, true, sampled);
            let (kept, site) = keep(thread, own);
            if kept == own {
                copy.submit(0);
            } else {
                copy.discard(0);
            }
            (kept, site)
        }
        None => keep(thread, stack_id(undescribed_hash(hash))),
    };
    if let Some(site) = site {
        // SAFETY: points into a live map value.
        unsafe { add(&raw mut (*site).undescribed_blocks, 1) };
    }
    (kept, site)
}

/// Walks the stack of the system call that the thread is in, and keeps it; its ID. The kernel calls each step.
#[inline(always)]
pub fn capture_system_call<C: EbpfContext>(ctx: &C, thread: &mut Thread) -> u64 {
    let by_tables =
        UNWINDING.load() == Unwinding::Auto as u32 || UNWINDING.load() == Unwinding::Tables as u32;
    let Some(caller) = (if by_tables { Registers::system_caller() } else { None }) else {
        return capture_by_kernel(ctx, thread);
    };
    let seed = stack_seed(thread.tgid, thread.generation);
    let Some(Walked { hash, hijacked, undescribed }) = unwind::walk::<true>(thread, &caller, seed) else {
        return NO_STACK;
    };
    if hijacked {
        return capture_by_kernel(ctx, thread);
    }
    if undescribed {
        keep_undescribed(thread, &caller, hash, false).0
    } else {
        intern(thread, stack_id(hash))
    }
}

/// As [`capture_system_call`], by the kernel's own walk. Its first frame is the system call's wrapper, which has no frame
/// pointer of its own: its caller is missing.
#[inline(always)]
pub fn capture_by_kernel<C: EbpfContext>(ctx: &C, thread: &mut Thread) -> u64 {
    let Some(id) = walk_by_kernel(ctx, thread, None) else { return NO_STACK };
    let whole = (thread.stack.len as usize) < MAX_FRAMES;
    thread.stack.end = if whole { StackEnd::Lost } else { StackEnd::Truncated } as u32;
    intern(thread, id)
}

/// Sends the stack built in `thread.stack`, of the share that is copied.
#[inline(always)]
fn send_copy(thread: &Thread, caller: &Caller, id: u64) {
    if let Some(mut copy) = COPIES.reserve::<StackCopy>(0) {
        fill(copy.as_mut_ptr(), thread, caller, id, false, true);
        copy.submit(0);
    }
}

/// Copies the stack built in `thread.stack`, with the registers and the memory that it was made from.
#[inline(always)]
fn fill(copy: *mut StackCopy, thread: &Thread, caller: &Caller, id: u64, undescribed: bool, sampled: bool) {
    // SAFETY: the ring buffer's entry is a whole `StackCopy`; the helper checks the address it reads.
    unsafe {
        generated::bpf_probe_read_kernel(
            (&raw mut (*copy).stack).cast(),
            size_of::<Stack>() as u32,
            (&raw const thread.stack).cast(),
        );
        (*copy).stack.tgid = thread.tgid;
        (*copy).stack.generation = thread.generation;
        (*copy).id = id;
        (*copy).undescribed = undescribed as u64;
        (*copy).sampled = sampled as u64;
        (*copy).epoch = unwind::epoch(thread.walk.target) as u64;
    }
    fill_memory(copy, caller);
}

/// Sends a stack that was not walked, for user space to unwind.
#[inline(always)]
pub fn send_caller(tgid: u32, generation: u32, target: u32, caller: &Caller, id: u64) {
    let Some(mut entry) = COPIES.reserve::<StackCopy>(0) else { return };
    let copy = entry.as_mut_ptr();
    // SAFETY: as above; of the frames, none is valid.
    unsafe {
        (*copy).stack.tgid = tgid;
        (*copy).stack.generation = generation;
        (*copy).stack.len = 0;
        (*copy).stack.end = StackEnd::Lost as u32;
        (*copy).stack.guessed = 0;
        (*copy).stack._pad = 0;
        (*copy).id = id;
        (*copy).undescribed = 1;
        (*copy).sampled = 0;
        (*copy).epoch = unwind::epoch(target) as u64;
    }
    fill_memory(copy, caller);
    entry.submit(0);
}

/// Copies the registers that a walk begins with, and the memory above the stack pointer.
#[inline(always)]
fn fill_memory(copy: *mut StackCopy, caller: &Caller) {
    let sp = caller.sp;
    // SAFETY: the ring buffer's entry is a whole `StackCopy`; what is not written, user space does not read. The helper
    // checks the addresses it reads, and a fault is an error.
    unsafe {
        (*copy).ip = caller.ip;
        (*copy).sp = sp;
        (*copy).fp = caller.fp;
        (*copy).link = caller.link;
        (*copy).mask = caller.mask;
        let mut pages = 0;
        for page in 0..COPY_PAGES {
            let from = (sp & !(COPY_PAGE_BYTES as u64 - 1)) + (page * COPY_PAGE_BYTES) as u64;
            let to = (&raw mut (*copy).memory[page]).cast();
            if generated::bpf_probe_read_user(to, COPY_PAGE_BYTES as u32, from as *const _) != 0 {
                break;
            }
            pages += 1;
        }
        (*copy).pages = pages;
    }
}

/// Keeps a stack if it is new; its ID and its site.
#[inline(always)]
fn keep(thread: &mut Thread, id: u64) -> (u64, Option<*mut Site>) {
    if let Some(site) = SITES.get_ptr_mut(id) {
        return (id, Some(site)); // a site is made after its stack was kept
    }
    let id = intern(thread, id);
    match site(id) {
        None if id != NO_STACK => {
            // There was room for the stack, and not for its site: IDs of copies have sites alone.
            let _ = STACKS.remove(id);
            count(Counter::StackMapFull);
            (NO_STACK, site(NO_STACK))
        }
        site => (id, site),
    }
}

/// Keeps the stack built in `thread.stack` under `id`; [`NO_STACK`] when there is no room.
#[inline(always)]
fn intern(thread: &mut Thread, id: u64) -> u64 {
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

/// Builds the stack anew by the kernel's own walk along the frame pointers; `None` when it finds nothing.
/// Leaves `thread.stack.end` as it is: the kernel does not say how its walk ended. It begins with the instruction that
/// is probed: `caller`, if there is one, takes its place.
#[inline(always)]
fn walk_by_kernel<C: EbpfContext>(ctx: &C, thread: &mut Thread, caller: Option<&Caller>) -> Option<u64> {
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
    if let Some(caller) = caller {
        thread.stack.frames[0] = caller.ip;
    }
    let len = bytes as usize / 8;
    let mut hash = stack_seed(thread.tgid, thread.generation);
    for (index, frame) in thread.stack.frames.iter().enumerate() {
        if index >= len {
            break;
        }
        hash = mix(hash, *frame);
    }
    thread.stack.len = len as u32;
    thread.stack.guessed = 1;
    Some(stack_id(hash))
}

/// The window's length.
pub const WINDOW_BYTES: u64 = STACK_WINDOW as u64 * 8;

/// Copies user memory to the start of the window.
#[inline(always)]
pub fn copy(window: &mut [u64; STACK_WINDOW + 1], from: u64, bytes: u32) -> bool {
    // SAFETY: the window is at least as long; the helper checks the address, and a fault is an error.
    unsafe { generated::bpf_probe_read_user(window.as_mut_ptr().cast(), bytes, from as *const _) == 0 }
}

/// Tells user space of a new stack: its frames may lie in an object that was mapped just now, and may be
/// unmapped soon.
#[inline(always)]
fn announce(tgid: u32, id: u64) {
    // The rest of the room is for what tells of processes: a stack that is not told of has fewer names at worst.
    if EVENTS.query(BPF_RB_AVAIL_DATA as u64) > ROOM_FOR_STACKS {
        return count(Counter::EventLost);
    }
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

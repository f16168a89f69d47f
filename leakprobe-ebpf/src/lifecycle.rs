//! Fork and exec of a target, the end of its threads, and changes of its code.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_user},
    programs::{ProbeContext, RawTracePointContext},
};
use leakprobe_common::{Cookie, Counter, Event, EventKind, link_state, next_epoch};

use crate::{
    ledger::count,
    maps::{EPOCHS, EVENTS, TARGETS, THREADS, closing},
    registers::Registers,
    thread,
};

/// The process has replaced its program: raises its generation, so that old blocks are told from new.
#[inline(always)]
pub fn exec(ctx: &RawTracePointContext) -> i32 {
    let id = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((id >> 32) as u32, id as u32);
    let Some(target) = TARGETS.get_ptr_mut(tgid) else { return 0 };
    // The thread that calls exec takes over the leader's ID; its own entry stands under the old one, the
    // tracepoint's second argument.
    // SAFETY: the context of a raw tracepoint is its arguments, 64 bits each.
    let old_tid = unsafe { *ctx.as_ptr().cast::<u64>().add(1) } as u32;
    forget(ctx, old_tid);
    forget(ctx, tid);
    // SAFETY: points into a live map value, which only this thread changes (it is the last of its process).
    let generation = unsafe {
        (*target).generation += 1;
        (*target).trampoline = 0;
        (*target).generation
    };
    tell(EventKind::Exec, tgid, generation as u64);
    0
}

/// A thread or a process is made; it has not run yet.
#[inline(always)]
pub fn fork(ctx: &RawTracePointContext) -> i32 {
    const CLONE_VM: u64 = 0x100;
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the context of a raw tracepoint is its arguments, 64 bits each; the second one are the flags of clone.
    let flags = unsafe { *ctx.as_ptr().cast::<u64>().add(1) };
    if flags & CLONE_VM == 0 && thread::is_target(tgid) {
        tell(EventKind::Fork, tgid, flags);
    }
    0
}

/// The dynamic linker tells debuggers of what it does; the probe's cookie says where its state is.
#[inline(always)]
pub fn code_change(ctx: &ProbeContext, tgid: u32, cookie: Cookie) -> u32 {
    let place = Registers::new(ctx.regs).instruction_pointer().wrapping_add(cookie.state() as i64 as u64);
    // SAFETY: the helper checks the address; a fault is an error, not a crash.
    let Ok(state) = (unsafe { bpf_probe_read_user(place as *const u32) }) else { return 0 };
    // SAFETY: entries are removed only when a target is dropped.
    let Some(target) = (unsafe { TARGETS.get(tgid) }) else { return 0 };
    let Some(epoch) = EPOCHS.get_ptr_mut(target.number) else { return 0 };
    // The linker's lock is held: one thread at a time.
    // SAFETY: an aligned word of a live element, read and written as a whole.
    let next = unsafe {
        let next = next_epoch(core::ptr::read_volatile(epoch), state);
        core::ptr::write_volatile(epoch, next);
        next
    };
    if state == link_state::CONSISTENT {
        tell(EventKind::CodeChange, tgid, next as u64);
    }
    0
}

/// Tells user space.
#[inline(always)]
fn tell(kind: EventKind, tgid: u32, a: u64) {
    match EVENTS.reserve::<Event>(0) {
        Some(mut entry) => {
            // SAFETY: the helper has no preconditions.
            let at_ns = unsafe { bpf_ktime_get_ns() };
            entry.write(Event { kind: kind as u32, tgid, at_ns, a });
            entry.submit(0);
        }
        None => count(Counter::EventLost),
    }
}

/// A thread ends: whatever it had pending will not return.
#[inline(always)]
pub fn thread_exit(ctx: &RawTracePointContext) -> i32 {
    forget(ctx, bpf_get_current_pid_tgid() as u32);
    0
}

#[inline(always)]
fn forget(ctx: &RawTracePointContext, tid: u32) {
    if closing() {
        return;
    }
    let Some(thread) = thread::find(tid) else { return };
    // It, and the one that was set aside for it.
    for _ in 0..2 {
        if thread::is_pending(thread) {
            thread::abandon(ctx, thread);
        }
    }
    let _ = THREADS.remove(tid);
}

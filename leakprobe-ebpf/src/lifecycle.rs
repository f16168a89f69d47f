//! Exec of a target, and the end of its threads.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    programs::RawTracePointContext,
};
use leakprobe_common::{Counter, Event, EventKind};

use crate::{
    ledger::count,
    maps::{EVENTS, TARGETS, THREADS, closing},
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
    match EVENTS.reserve::<Event>(0) {
        Some(mut entry) => {
            entry.write(Event {
                kind: EventKind::Exec as u32,
                tgid,
                // SAFETY: the helper has no preconditions.
                at_ns: unsafe { bpf_ktime_get_ns() },
                a: generation as u64,
            });
            entry.submit(0);
        }
        None => count(Counter::EventLost),
    }
    0
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
    if thread::is_pending(thread) {
        thread::abandon(ctx, thread);
    }
    let _ = THREADS.remove(tid);
}

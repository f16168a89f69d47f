//! Fork and exec of a target, the end of its threads, and changes of its code.

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_ANY,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_user, generated},
    programs::{ProbeContext, RawTracePointContext, TracePointContext},
};
use leakprobe_common::{
    Cookie, Counter, Event, EventKind, Target, forked_generation, link_state, next_epoch,
};

use crate::{
    kin,
    ledger::count,
    maps::{CHILD_OFFSET, EPOCHS, EVENTS, FLAGS_OFFSET, FOLLOW, TARGETS, THREADS, closing},
    registers::Registers,
    thread,
};

/// Of clone(2): the memory is shared.
const CLONE_VM: u64 = 0x100;

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
    let (generation, had_threads) = unsafe {
        let had_threads = (*target).flags & Target::THREADED != 0;
        // A child of vfork has had its parent's number until now, with its parent's memory.
        let had_own = FOLLOW.load() == 0 || (*target).owner == tgid;
        (*target).generation = if had_own { (*target).generation + 1 } else { (*target).born };
        (*target).trampoline = 0;
        (*target).image = (*target).generation;
        (*target).owner = tgid;
        (*target).flags &= !(Target::FORKED | Target::THREADED);
        ((*target).generation, had_threads)
    };
    if FOLLOW.load() != 0 {
        kin::begin(tgid);
    }
    let is_replaced = (old_tid != tid || had_threads) as u64;
    tell(EventKind::Exec, tgid, is_replaced << 32 | generation as u64);
    0
}

/// A thread or a process is made; it has not run yet.
#[inline(always)]
pub fn fork(ctx: &RawTracePointContext) -> i32 {
    // SAFETY: the context of a raw tracepoint is its arguments, 64 bits each: the new task, and the flags of clone.
    let (task, flags) = unsafe { (*ctx.as_ptr().cast::<u64>(), *ctx.as_ptr().cast::<u64>().add(1)) };
    if FOLLOW.load() != 0 {
        made(read(task + CHILD_OFFSET.load()) as u32, flags);
        return 0;
    }
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if flags & CLONE_VM == 0 && thread::is_target(tgid) {
        tell(EventKind::Fork, tgid, flags);
    }
    0
}

/// As `fork`, with `--follow` and a kernel that does not say where a task has its number: by the tracepoint's record.
#[inline(always)]
pub fn born(ctx: &TracePointContext) -> u32 {
    let record = ctx.as_ptr() as u64;
    made(read(record + CHILD_OFFSET.load()) as u32, read(record + FLAGS_OFFSET.load()));
    0
}

/// The current process has made this task. A process is a target from now on, in its parent's place until user space has
/// taken it in.
#[inline(always)]
fn made(child: u32, flags: u64) {
    const CLONE_THREAD: u64 = 0x1_0000;
    if closing() {
        return;
    }
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(parent) = TARGETS.get_ptr_mut(tgid) else { return };
    // SAFETY: a live map value: entries are removed only when a target is dropped.
    let parent = unsafe { &mut *parent };
    if flags & CLONE_THREAD != 0 {
        parent.flags |= Target::THREADED;
        return;
    }
    // SAFETY: the helper has no preconditions.
    let at_ns = unsafe { bpf_ktime_get_ns() };
    let mut target = *parent;
    target.born = forked_generation(next_birth());
    target.flags = target.flags & !Target::THREADED | Target::PENDING;
    if flags & CLONE_VM == 0 {
        target.generation = target.born;
        target.owner = child;
        target.flags |= Target::FORKED;
        // The kernel makes a page of its own for it.
        target.trampoline = 0;
        kin::born(child, parent.owner);
    }
    if TARGETS.insert(child, &target, BPF_ANY as u64).is_err() {
        count(Counter::ChildLost);
        return;
    }
    tell_at(EventKind::Born, tgid, (target.born as u64) << 32 | child as u64, at_ns);
}

/// How many children were made before. Two that are made at once can have the same number, for they are of different process
/// numbers: so this need not be atomic (which would return what was there from Linux 5.12 on).
#[inline(always)]
fn next_birth() -> u32 {
    // Not 0: user space counts on that section having one variable.
    static mut BIRTHS: u32 = 1;
    // SAFETY: an aligned integer, read and written as a whole.
    unsafe {
        let births = core::ptr::read_volatile(&raw const BIRTHS);
        core::ptr::write_volatile(&raw mut BIRTHS, births.wrapping_add(1));
        births
    }
}

/// 8 bytes of the kernel's memory.
#[inline(always)]
fn read(address: u64) -> u64 {
    let mut value = 0u64;
    // SAFETY: the helper checks the address; a fault is an error and leaves 0.
    unsafe { generated::bpf_probe_read_kernel((&raw mut value).cast(), 8, address as *const _) };
    value
}

/// The dynamic linker tells debuggers of what it does; the probe's cookie says where its state is.
#[inline(always)]
pub fn code_change(ctx: &ProbeContext, tgid: u32, cookie: Cookie) -> u32 {
    let place = Registers::new(ctx.regs).instruction_pointer().wrapping_add(cookie.state() as i64 as u64);
    // SAFETY: the helper checks the address; a fault is an error, not a crash.
    let Ok(state) = (unsafe { bpf_probe_read_user(place as *const u32) }) else { return 0 };
    let Some(target) = TARGETS.get_ptr_mut(tgid) else { return 0 };
    if FOLLOW.load() != 0 {
        // SAFETY: points into a live map value.
        let (is_pending, has_own) =
            unsafe { ((*target).flags & Target::PENDING != 0, (*target).owner == tgid) };
        if is_pending {
            // The epoch is its parent's, whose code has not changed; its own is not described any more.
            // SAFETY: as above; an aligned word.
            unsafe { (*target).image = Target::UNDESCRIBED };
            if has_own && state == link_state::CONSISTENT {
                tell(EventKind::CodeChange, tgid, u32::MAX as u64);
            }
            return 0;
        }
    }
    // SAFETY: points into a live map value.
    let Some(epoch) = EPOCHS.get_ptr_mut(unsafe { (*target).number }) else { return 0 };
    // The linker's lock is held: one thread at a time.
    // SAFETY: an aligned word of a live element, read and written as a whole.
    let next = unsafe {
        let next = next_epoch(core::ptr::read_volatile(epoch), state, (*target).adding != 0);
        core::ptr::write_volatile(epoch, next);
        (*target).adding = (state == link_state::ADD) as u32;
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
    // SAFETY: the helper has no preconditions.
    tell_at(kind, tgid, a, unsafe { bpf_ktime_get_ns() });
}

#[inline(always)]
fn tell_at(kind: EventKind, tgid: u32, a: u64, at_ns: u64) {
    match EVENTS.reserve::<Event>(0) {
        Some(mut entry) => {
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

//! The entry of each thread: its pending call, and room to build a stack in.

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user},
};
use aya_log_ebpf::debug;
use leakprobe_common::{Cookie, Counter, Thread};

use crate::{
    block,
    ledger::count,
    maps::{NEW_THREAD, TARGETS, THREADS},
    registers::{RETURN_ADDRESS_ON_STACK, Registers},
    stack::{self, WINDOW_BYTES},
};

/// Why there is no [`Thread`].
pub enum Missing {
    NotATarget,
    MapFull,
}

/// The current thread's entry, made on its first call.
#[inline(always)]
pub fn current() -> Result<&'static mut Thread, Missing> {
    let id = bpf_get_current_pid_tgid();
    match find(id as u32) {
        Some(thread) => Ok(thread),
        None => create((id >> 32) as u32, id as u32),
    }
}

/// A thread's entry, if it has one.
#[inline(always)]
pub fn find(tid: u32) -> Option<&'static mut Thread> {
    // SAFETY: only the thread itself uses and removes its entry (at its exit or exec).
    THREADS.get_ptr_mut(tid).map(|thread| unsafe { &mut *thread })
}

#[inline(always)]
fn create(tgid: u32, tid: u32) -> Result<&'static mut Thread, Missing> {
    // SAFETY: the map is preallocated and entries are removed only when a target is dropped; a stale read
    // gives a wrong generation for one call at worst.
    let target = unsafe { TARGETS.get(tgid) }.ok_or(Missing::NotATarget)?;
    let generation = target.generation;
    let new = NEW_THREAD.get(0).ok_or(Missing::MapFull)?;
    if THREADS.insert(tid, new, BPF_NOEXIST as u64).is_err() {
        return Err(Missing::MapFull);
    }
    let thread = find(tid).ok_or(Missing::MapFull)?;
    thread.tgid = tgid;
    thread.tid = tid;
    thread.generation = generation;
    Ok(thread)
}

/// Whether a process is profiled.
#[inline(always)]
pub fn is_target(tgid: u32) -> bool {
    // SAFETY: only whether there is one is asked.
    unsafe { TARGETS.get(tgid) }.is_some()
}

#[inline(always)]
pub fn is_pending(thread: &Thread) -> bool {
    thread.cookie.0 != 0
}

/// Whether the pending call is still on the stack. It is not when the thread left it by longjmp or an
/// exception; then its return address, which a return probe replaces by the kernel's trampoline, has
/// been overwritten by what runs now, or, at the same stack pointer, by the address that the new call
/// returns to: `return_address`, where the caller of this function has an entry's registers.
#[inline(always)]
pub fn still_pending(thread: &mut Thread, at_entry: Option<&Registers>) -> bool {
    if !is_pending(thread) {
        return false;
    }
    if RETURN_ADDRESS_ON_STACK {
        // SAFETY: the helper checks the address; a fault is an error, not a crash.
        return match unsafe { bpf_probe_read_user(thread.stack_pointer as *const u64) } {
            Ok(address) => is_trampoline(thread, address),
            Err(_) => false,
        };
    }
    // Where the return address is in a register, a jump at the same stack pointer brings the trampoline along,
    // and a new call does not. From below, a call that is pending has saved it.
    match at_entry {
        Some(registers) if registers.stack_pointer() == thread.stack_pointer => {
            is_trampoline(thread, registers.return_address())
        }
        Some(registers) => has_saved_trampoline(thread, registers),
        None => true,
    }
}

/// Whether the trampoline stands on the stack between the pending call's stack pointer and the current one, no
/// more than a window below the former: the frame of an allocating function is not larger. One that stands
/// there from before is taken for the pending call's; and so is anything while the trampoline is not known.
#[inline(always)]
fn has_saved_trampoline(thread: &mut Thread, registers: &Registers) -> bool {
    let trampoline = trampoline(thread);
    if trampoline == 0 {
        return true;
    }
    let below = thread.stack_pointer.wrapping_sub(registers.stack_pointer());
    let bytes = if below > WINDOW_BYTES { WINDOW_BYTES } else { below };
    if !stack::copy(&mut thread.window, thread.stack_pointer - bytes, bytes as u32) {
        return false;
    }
    let mask = registers.code_mask();
    for (index, word) in thread.window.iter().enumerate() {
        if index as u64 * 8 >= bytes {
            break;
        }
        if *word & mask == trampoline {
            return true;
        }
    }
    false
}

/// Whether an address is that of the trampoline, which the kernel puts at the start of a page of its own.
/// User space learns the page only after the first return probe was hit; until then any page's start
/// passes, which no call returns to but one of thousands.
#[inline(always)]
fn is_trampoline(thread: &Thread, address: u64) -> bool {
    let trampoline = trampoline(thread);
    if trampoline != 0 { address == trampoline } else { address & 0xfff == 0 }
}

/// Where the trampoline is; 0 while that is not known.
#[inline(always)]
fn trampoline(thread: &Thread) -> u64 {
    // SAFETY: the map is preallocated and entries are removed only when a target is dropped; a stale read
    // gives a wrong answer for one call at worst.
    match unsafe { TARGETS.get(thread.tgid) } {
        Some(target) => target.trampoline,
        None => 0,
    }
}

/// Ends the pending call without a result: the thread left it other than by returning.
#[inline(always)]
pub fn abandon<C: EbpfContext>(ctx: &C, thread: &mut Thread) {
    debug!(ctx, "thread {} left a call at sp {:x} without returning", thread.tid, thread.stack_pointer);
    count(Counter::Abandoned);
    if thread.has_taken != 0 {
        count(Counter::TakenAbandoned);
        block::retire(&thread.taken, None);
    }
    clear(thread);
}

#[inline(always)]
pub fn clear(thread: &mut Thread) {
    thread.cookie = Cookie(0);
    thread.has_taken = 0;
    thread.chained = 0;
}

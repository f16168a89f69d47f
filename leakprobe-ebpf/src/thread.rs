//! The entry of each thread: its pending call, and room to build a stack in.

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user},
};
use aya_log_ebpf::debug;
use leakprobe_common::{Cookie, Counter, Pending, Thread};

use crate::{
    block,
    ledger::count,
    maps::{FOLLOW, NEW_THREAD, TARGETS, THREADS},
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
    let (generation, owner) = (target.generation, if FOLLOW.load() == 0 { tgid } else { target.owner });
    let new = NEW_THREAD.get(0).ok_or(Missing::MapFull)?;
    if THREADS.insert(tid, new, BPF_NOEXIST as u64).is_err() {
        return Err(Missing::MapFull);
    }
    let thread = find(tid).ok_or(Missing::MapFull)?;
    thread.tgid = owner;
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
/// returns to: `return_address`, where the caller of this function has an entry's registers. That of a call which
/// ends at instructions is what it was, and can be left standing for a while where nothing has overwritten it.
#[inline(always)]
pub fn still_pending(thread: &mut Thread, at_entry: Option<&Registers>) -> bool {
    if !is_pending(thread) {
        return false;
    }
    if RETURN_ADDRESS_ON_STACK {
        // SAFETY: the helper checks the address; a fault is an error, not a crash.
        return match unsafe { bpf_probe_read_user(thread.stack_pointer as *const u64) } {
            Ok(address) if thread.cookie.ends_at_instructions() && thread.chained == 0 => {
                returns_to(thread, address)
            }
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

/// Whether this is where the pending call returns to, which ends at instructions; another tracer's return probe may have
/// put the trampoline in its place.
#[inline(always)]
pub fn returns_to(thread: &Thread, address: u64) -> bool {
    address != 0 && (address == thread.return_address || address == trampoline(thread))
}

/// Sets the pending call aside, for another one to be made meanwhile: an allocation that ends at instructions, and that
/// nothing is set aside for yet.
#[inline(always)]
pub fn set_aside(thread: &mut Thread) {
    thread.outer = Pending {
        cookie: thread.cookie.0,
        stack_pointer: thread.stack_pointer,
        size: thread.size,
        return_address: thread.return_address,
        entry: thread.entry,
    };
    thread.cookie = Cookie(0);
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

/// Ends the pending call without a result: the thread left it other than by returning. The one that was set aside for it
/// is pending again.
#[inline(always)]
pub fn abandon<C: EbpfContext>(ctx: &C, thread: &mut Thread) {
    if thread.cookie.ends_at_instructions() && thread.chained == 0 {
        count(Counter::Thrown);
    } else {
        debug!(ctx, "thread {} left a call at sp {:x} without returning", thread.tid, thread.stack_pointer);
        count(Counter::Abandoned);
    }
    if thread.has_taken != 0 {
        count(Counter::TakenAbandoned);
        block::retire(&thread.taken, None);
    }
    clear(thread, 0);
}

/// The pending call is over, and has returned this block or 0: the one that was set aside is pending again.
#[inline(always)]
pub fn clear(thread: &mut Thread, returned: u64) {
    thread.has_taken = 0;
    thread.chained = 0;
    thread.cookie = Cookie(thread.outer.cookie);
    if thread.outer.cookie != 0 {
        thread.stack_pointer = thread.outer.stack_pointer;
        thread.size = thread.outer.size;
        thread.return_address = thread.outer.return_address;
        thread.entry = thread.outer.entry;
        thread.outer.cookie = 0;
        thread.inner = returned;
    }
}

//! Pairing an allocating function's entry with its return.
//!
//! Each thread has at most one pending call, the outermost: what an allocator calls inside itself (musl's
//! calloc calls malloc) is the same allocation. The stack pointer tells nested calls from abandoned ones:
//! the stack grows down, so an entry *above* the pending call's means that the thread has left it.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user},
    programs::{ProbeContext, RetProbeContext},
};
use leakprobe_common::{Call, Counter, NO_REGISTER, Thread};

use crate::{
    block, cookie,
    ledger::count,
    maps::closing,
    private_stack,
    registers::{RETURN_ADDRESS_BYTES, Registers},
    thread::{self, Missing},
};

/// Remembers the call, and takes the record of the block that a reallocation gives back.
#[inline(always)]
pub fn enter(ctx: &ProbeContext) -> u32 {
    private_stack::refuse();
    if closing() {
        return 0;
    }
    let registers = Registers::new(ctx.regs);
    count(Counter::AllocationsEntered);
    let thread = match thread::current() {
        Ok(thread) => thread,
        Err(Missing::NotATarget) => {
            count(Counter::NotATarget);
            return 0;
        }
        Err(Missing::MapFull) => {
            count(Counter::ThreadMapFull);
            return 0;
        }
    };
    let stack_pointer = registers.stack_pointer();
    if thread::is_pending(thread) {
        if stack_pointer <= thread.stack_pointer && thread::still_pending(thread, Some(&registers)) {
            count(Counter::Nested);
            if stack_pointer == thread.stack_pointer {
                thread.chained += 1;
            }
            return 0;
        }
        thread::abandon(ctx, thread);
    }
    let Some(cookie) = cookie::of(ctx) else {
        count(Counter::ProbeUnknown);
        return 0;
    };
    thread.cookie = cookie;
    thread.stack_pointer = stack_pointer;
    thread.size = match cookie.count() {
        NO_REGISTER => registers.get(cookie.size()),
        register => product(registers.get(cookie.size()), registers.get(register)),
    };
    if cookie.pointer() != NO_REGISTER {
        thread.pointer = registers.get(cookie.pointer());
        if matches!(cookie.call(), Some(Call::Reallocate | Call::Resize)) && thread.pointer != 0 {
            block::take(thread, &registers);
        }
    }
    0
}

/// Settles the pending call by what it returned.
#[inline(always)]
pub fn leave(ctx: &RetProbeContext) -> u32 {
    end::<false>(ctx)
}

/// As [`leave`], where the kernel calls each step of a stack's walk.
#[inline(always)]
pub fn leave_looped(ctx: &RetProbeContext) -> u32 {
    end::<true>(ctx)
}

/// `LOOPED`: see [`crate::unwind::walk`].
#[inline(always)]
fn end<const LOOPED: bool>(ctx: &RetProbeContext) -> u32 {
    private_stack::refuse();
    if closing() {
        return 0;
    }
    let registers = Registers::new(ctx.regs);
    let Some(thread) = thread::find(bpf_get_current_pid_tgid() as u32) else {
        count(Counter::ReturnWithoutEntry);
        return 0;
    };
    let entry_stack_pointer = registers.stack_pointer() - RETURN_ADDRESS_BYTES;
    if !thread::is_pending(thread) || entry_stack_pointer > thread.stack_pointer {
        if thread::is_pending(thread) {
            thread::abandon(ctx, thread);
        }
        count(Counter::ReturnWithoutEntry);
        return 0;
    }
    if entry_stack_pointer < thread.stack_pointer {
        return 0; // a nested call's return
    }
    if thread.chained > 0 {
        thread.chained -= 1;
        return 0;
    }
    settle::<LOOPED>(ctx, thread, &registers);
    thread::clear(thread);
    0
}

#[inline(always)]
fn settle<const LOOPED: bool>(ctx: &RetProbeContext, thread: &mut Thread, registers: &Registers) {
    let result = registers.result();
    let address = match thread.cookie.call() {
        Some(Call::AllocateOut) if result as u32 == 0 => {
            // SAFETY: the helper checks the address; a fault is an error, not a crash.
            match unsafe { bpf_probe_read_user(thread.pointer as *const u64) } {
                Ok(address) => address,
                Err(_) => return count(Counter::ReadFault),
            }
        }
        Some(Call::AllocateOut) => 0,
        Some(Call::Reallocate) => {
            let freed = result == 0 && thread.size == 0 && thread.pointer != 0 && thread.cookie.zero_frees();
            if result != 0 || freed {
                block::settle_taken(thread);
            } else {
                block::put_back(thread);
            }
            if freed {
                return count(Counter::ReallocFreed);
            }
            result
        }
        Some(Call::Resize) if result >= thread.size => {
            block::settle_taken(thread);
            thread.pointer
        }
        Some(Call::Resize) => {
            block::put_back(thread);
            0
        }
        _ => result,
    };
    if address == 0 {
        return count(Counter::Failed);
    }
    block::record::<LOOPED>(ctx, thread, registers, address)
}

/// Size times count; a product that overflows is more than any allocator hands out. By halves, because BPF
/// has no wide multiplication (and the compiler turns a division back into one).
#[inline(always)]
fn product(size: u64, count: u64) -> u64 {
    let (large, small) = if size > count { (size, count) } else { (count, size) };
    if small > u32::MAX as u64 {
        return u64::MAX;
    }
    let high = (large >> 32) * small;
    let low = (large & u32::MAX as u64) * small;
    let top = high + (low >> 32);
    if top > u32::MAX as u64 { u64::MAX } else { large.wrapping_mul(small) }
}

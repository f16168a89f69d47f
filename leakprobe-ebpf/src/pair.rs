//! Pairing an allocating function's entry with its return.
//!
//! Each thread has one pending call, the outermost: what an allocator calls inside itself (musl's
//! calloc calls malloc) is the same allocation. A second one can be set aside for it, see [`place`]. The stack pointer tells nested calls from abandoned ones:
//! the stack grows down, so an entry *above* the pending call's means that the thread has left it.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user},
    programs::{ProbeContext, RetProbeContext},
};
use leakprobe_common::{Call, Cookie, Counter, NO_REGISTER, Thread};

use crate::{
    block, cookie,
    ledger::count,
    maps::closing,
    private_stack,
    registers::{Caller, RETURN_ADDRESS_BYTES, Registers},
    string,
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
    // Two at most: the pending call, and the one that was set aside for it.
    for _ in 0..2 {
        if !thread::is_pending(thread) {
            break;
        }
        match place(thread, &registers) {
            Place::Inside => {
                count(Counter::Nested);
                if registers.stack_pointer() == thread.stack_pointer && has_return_probe(ctx) {
                    thread.chained += 1;
                }
                return 0;
            }
            Place::Apart => {
                thread::set_aside(thread);
                break;
            }
            Place::Above => thread::abandon(ctx, thread),
        }
    }
    let Some(cookie) = cookie::of(ctx) else {
        count(Counter::ProbeUnknown);
        thread::clear(thread, 0);
        return 0;
    };
    begin(thread, &registers, cookie);
    0
}

/// Where a call that begins stands to the pending one.
enum Place {
    /// It is a part of it: the same allocation.
    Inside,
    /// It is made while the other one is pending, and is none of its own.
    Apart,
    /// The thread has left the other one.
    Above,
}

/// What a function with a return probe calls counts as its own: it does not throw, and what it calls is of the allocator.
/// One that ends at instructions can call anything: a new handler that allocates, or the C++ runtime, which allocates the
/// exception that it is left by. Of its own are the calls from its own code alone.
#[inline(always)]
fn place(thread: &mut Thread, registers: &Registers) -> Place {
    let stack_pointer = registers.stack_pointer();
    if stack_pointer > thread.stack_pointer || !thread::still_pending(thread, Some(registers)) {
        return Place::Above;
    }
    if !thread.cookie.ends_at_instructions() || thread.chained > 0 {
        return Place::Inside;
    }
    if stack_pointer == thread.stack_pointer {
        // From the same place as the pending one. A call goes to one function, so this is either a jump from there, or
        // the same call once more, after an exception.
        let again = registers.instruction_pointer() == thread.entry;
        return if again { Place::Above } else { Place::Inside };
    }
    let is_own = registers.returns_to().wrapping_sub(thread.entry) < thread.cookie.extent();
    let can_be_set_aside = thread.outer.cookie == 0 && matches!(thread.cookie.call(), Some(Call::Allocate));
    if is_own || !can_be_set_aside { Place::Inside } else { Place::Apart }
}

/// Whether the probed function's return is probed as such, and so brings an event.
#[inline(always)]
fn has_return_probe(ctx: &ProbeContext) -> bool {
    cookie::of(ctx).is_none_or(|cookie| !cookie.ends_at_instructions())
}

#[inline(always)]
fn begin(thread: &mut Thread, registers: &Registers, cookie: Cookie) {
    if cookie.ends_at_instructions() {
        thread.return_address = registers.returns_to();
        thread.entry = registers.instruction_pointer();
    }
    thread.cookie = cookie;
    thread.inner = 0;
    thread.stack_pointer = registers.stack_pointer();
    thread.size = match cookie.count() {
        _ if cookie.size() == NO_REGISTER => 0,
        register if matches!(cookie.call(), Some(Call::Resize)) => {
            thread.entry = if register == NO_REGISTER { 0 } else { registers.get(register) };
            registers.get(cookie.size())
        }
        NO_REGISTER => registers.get(cookie.size()),
        register => product(registers.get(cookie.size()), registers.get(register)),
    };
    thread.pointer = 0;
    if cookie.pointer() != NO_REGISTER {
        thread.pointer = registers.get(cookie.pointer());
        if matches!(cookie.call(), Some(Call::ReallocateOut)) {
            thread.entry = thread.pointer;
            thread.pointer = stored(thread.entry).unwrap_or(0);
        }
        if cookie.call().is_some_and(Call::replaces) && thread.pointer != 0 {
            block::take(thread, registers);
        }
    }
}

/// What stands at an address of the process.
#[inline(always)]
fn stored(address: u64) -> Result<u64, i32> {
    // SAFETY: the helper checks the address; a fault is an error, not a crash.
    unsafe { bpf_probe_read_user(address as *const u64) }
}

/// Settles the pending call by what it returned, at its return probe.
#[inline(always)]
pub fn leave(ctx: &RetProbeContext) -> u32 {
    end::<false>(ctx)
}

/// As [`leave`], where the kernel calls each step of a stack's walk.
#[inline(always)]
pub fn leave_looped(ctx: &RetProbeContext) -> u32 {
    end::<true>(ctx)
}

/// Settles the pending call by what it returned, at one of the instructions at which it ends.
#[inline(always)]
pub fn leave_at(ctx: &ProbeContext) -> u32 {
    end_at::<false>(ctx)
}

/// As [`leave_at`], where the kernel calls each step of a stack's walk.
#[inline(always)]
pub fn leave_at_looped(ctx: &ProbeContext) -> u32 {
    end_at::<true>(ctx)
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
    for _ in 0..2 {
        if thread::is_pending(thread) && entry_stack_pointer > thread.stack_pointer {
            thread::abandon(ctx, thread);
        }
    }
    if !thread::is_pending(thread) {
        count(Counter::ReturnWithoutEntry);
        return 0;
    }
    if entry_stack_pointer < thread.stack_pointer {
        return 0; // a nested call's return
    }
    let at_instructions = thread.cookie.ends_at_instructions();
    if thread.chained > 0 {
        thread.chained -= 1;
        // One that ends at instructions has jumped to a function that does not: its return is that function's.
        if !at_instructions || thread.chained > 0 {
            return 0;
        }
    } else if at_instructions {
        count(Counter::ReturnWithoutEntry);
        return 0;
    }
    settle::<_, LOOPED>(ctx, thread, &registers, &registers.caller());
    0
}

/// At a return instruction, which others pass as well: what counts is that the stack is as it was when the call began, and
/// leads to where it came from.
#[inline(always)]
fn end_at<const LOOPED: bool>(ctx: &ProbeContext) -> u32 {
    private_stack::refuse();
    if closing() {
        return 0;
    }
    let registers = Registers::new(ctx.regs);
    let Some(thread) = thread::find(bpf_get_current_pid_tgid() as u32) else {
        count(Counter::LeaveUnpaired);
        return 0;
    };
    let stack_pointer = registers.stack_pointer();
    if thread.outer.cookie != 0 && thread.outer.stack_pointer == stack_pointer {
        // What it was set aside for is below the stack now.
        thread::abandon(ctx, thread);
    }
    let is_its = thread.cookie.ends_at_instructions()
        && thread.stack_pointer == stack_pointer
        && thread.chained == 0
        && thread::returns_to(thread, registers.returns_to());
    if !is_its {
        count(Counter::LeaveUnpaired);
        return 0;
    }
    settle::<_, LOOPED>(ctx, thread, &registers, &registers.called_by(thread.return_address));
    0
}

/// Books the pending call by its result, which ends it.
#[inline(always)]
fn settle<C: EbpfContext, const LOOPED: bool>(
    ctx: &C,
    thread: &mut Thread,
    registers: &Registers,
    caller: &Caller,
) {
    let address = match outcome(thread, registers) {
        Outcome::Block(address) if address == thread.inner && block::is_recorded(thread, address) => {
            // A call that was made meanwhile has made it, and is what is recorded.
            count(Counter::Nested);
            address
        }
        Outcome::Block(address) => {
            block::record::<C, LOOPED>(ctx, thread, caller, address);
            address
        }
        Outcome::None(why) => {
            count(why);
            0
        }
    };
    thread::clear(thread, address);
}

/// What came of a call.
enum Outcome {
    /// A block, at this address.
    Block(u64),
    /// None, which is counted so.
    None(Counter),
}

#[inline(always)]
fn outcome(thread: &mut Thread, registers: &Registers) -> Outcome {
    let result = registers.result();
    let address = match thread.cookie.call() {
        Some(Call::AllocateOut) if result as u32 == 0 => match stored(thread.pointer) {
            Ok(address) => address,
            Err(_) => return Outcome::None(Counter::ReadFault),
        },
        Some(Call::AllocateOut) => 0,
        Some(Call::ReallocateOut) if result as u32 == 0 => {
            block::settle_taken(thread);
            match stored(thread.entry) {
                Ok(address) => address,
                Err(_) => return Outcome::None(Counter::ReadFault),
            }
        }
        Some(Call::ReallocateOut) => {
            block::put_back(thread);
            0
        }
        // Into the caller's own buffer: nothing was allocated.
        Some(Call::Duplicate) if thread.pointer != 0 => 0,
        Some(Call::Duplicate) if result != 0 => {
            if !string::measure(result, &mut thread.size) {
                return Outcome::None(Counter::ReadFault);
            }
            result
        }
        Some(call @ (Call::Reallocate | Call::ReallocateOrFree)) => {
            let freed = result == 0 && thread.pointer != 0 && frees_on_null(thread, call);
            if result != 0 || freed {
                block::settle_taken(thread);
            } else {
                block::put_back(thread);
            }
            if freed {
                return Outcome::None(Counter::ReallocFreed);
            }
            result
        }
        Some(Call::Resize) if result >= thread.size => {
            thread.size = resized(thread, result);
            block::settle_taken(thread);
            thread.pointer
        }
        Some(Call::Resize) => {
            block::put_back(thread);
            0
        }
        _ => result,
    };
    if address == 0 { Outcome::None(Counter::Failed) } else { Outcome::Block(address) }
}

/// Whether a reallocation that returns NULL has given the block back.
#[inline(always)]
fn frees_on_null(thread: &Thread, call: Call) -> bool {
    matches!(call, Call::ReallocateOrFree) || thread.size == 0 && thread.cookie.zero_frees()
}

/// What a block is asked to be after `xallocx`, which has returned how large it is: as much more as was wanted, or what there
/// is room for; or what it was, where it could not be made smaller.
#[inline(always)]
fn resized(thread: &Thread, has: u64) -> u64 {
    let most = thread.size.saturating_add(thread.entry);
    if thread.has_taken != 0 && thread.taken.size > most && has >= thread.taken.size {
        thread.taken.size
    } else if has < most {
        has
    } else {
        most
    }
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

//! Keeps a program's stack on the kernel's stack of its thread.
//!
//! From 6.13 on, the kernel gives programs of the kprobe type (uprobes are of that type) a *private stack*, one
//! for each CPU, which it takes to be safe because such programs don't recur. On a uprobe nothing keeps a
//! program from being preempted, and another thread's from running on the same CPU, on the same stack: the
//! first one then goes on with the second one's spilled pointers, and writes through them. Seen on 7.2
//! (PREEMPT_LAZY), as a page fault in the kernel after some 90 s of two busy threads.
//!
//! A program with a tail call anywhere in it gets no private stack. The verifier looks for that in the
//! instructions as they come, before it knows that the one below is never reached, and takes it out.

use core::arch::asm;

/// Must be in every program on a uprobe; costs nothing.
#[inline(always)]
pub fn refuse() {
    // SAFETY: the jump over the call is always taken; without it, nothing but r0 is written. The call is
    // bpf_tail_call.
    unsafe {
        asm!("r0 = 0", "if r0 == 0 goto +1", "call 12", out("r0") _, options(nomem, nostack));
    }
}

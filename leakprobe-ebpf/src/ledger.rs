//! Counting: every hit ends in a named counter.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use leakprobe_common::Counter;

use crate::maps::LEDGER;

/// Adds one to a counter.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(slot) = LEDGER.get_ptr_mut(counter as u32) {
        add(slot, 1);
    }
}

/// Adds to a number in a map value. Atomic even for per-CPU values: a uprobe program can be preempted
/// between load and store by another thread's, on the same CPU.
#[inline(always)]
pub fn add(slot: *mut u64, amount: u64) {
    // The intrinsic, because core has no `AtomicU64::fetch_add` for a target without compare-and-swap.
    // Relaxed, and the old value unused: that makes it BPF_ADD without BPF_FETCH, which 5.10 has.
    // SAFETY: `slot` points into a live map value, which the verifier checks; records keep their 64-bit
    // fields 8-byte aligned.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(slot, amount) };
}

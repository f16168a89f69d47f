//! Counting, as in `ledger.rs`, with a row of counters for each program.
//!
//! The kernel runs no program twice at a time on one CPU (raw tracepoints from 6.1 on), so a row has one writer, and a
//! plain addition does. An atomic one costs as much as a look-up in a map that hits.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use leakprobe_common::Counter;

use crate::{
    maps::{LEDGER, MAY_RECUR, Program, closing},
    sample,
};

/// The row of one program.
#[derive(Clone, Copy)]
pub struct Books(*mut u64);

impl Books {
    /// Those of a program that begins; `None` when the session is over.
    #[inline(always)]
    pub fn begin(program: Program) -> Option<Self> {
        if closing() {
            return None;
        }
        LEDGER.get_ptr_mut(program as u32).map(|row| Self(row.cast()))
    }

    /// As [`Books::begin`], of a program that is called for one address; `None` where that is not in the sample, too. So
    /// what is not is not counted: touching one more cache line for it costs as much as all the rest.
    #[inline(always)]
    pub fn begin_for(address: u64, program: Program) -> Option<Self> {
        if sample::leaves_out(address) { None } else { Self::begin(program) }
    }

    /// Adds one to a counter.
    #[inline(always)]
    pub fn count(self, counter: Counter) {
        self.count_many(counter, 1);
    }

    /// Adds to a counter.
    #[inline(always)]
    pub fn count_many(self, counter: Counter, amount: u64) {
        // SAFETY: places are below the row's length.
        let slot = unsafe { self.0.add(counter.place()) };
        if MAY_RECUR.load() != 0 {
            add(slot, amount);
        } else {
            // SAFETY: points into a live map value, which only this program writes on this CPU.
            unsafe { *slot += amount };
        }
    }
}

/// Adds to a number in a map value that other CPUs add to as well; see `ledger.rs`.
#[inline(always)]
pub fn add(slot: *mut u64, amount: u64) {
    // SAFETY: `slot` points into a live map value, which the verifier checks; records keep their 64-bit fields 8-byte
    // aligned.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(slot, amount) };
}

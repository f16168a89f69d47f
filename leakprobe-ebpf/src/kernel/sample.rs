//! Sampling by address.
//!
//! An address is in the sample or is not, for the whole session. So the free of an object that is not recorded is
//! known to be one without looking for its record, and one that is handed out again while recorded is noticed as
//! without sampling. Of what is outstanding at one moment, each object stands in the sample with the same
//! probability, since no two are at one address.

use leakprobe_common::mix;

use crate::maps::{SAMPLE_BELOW, SAMPLE_SEED, SAMPLE_WEIGHT};

/// Whether an address is left out, and so is none.
#[inline(always)]
pub fn leaves_out(address: u64) -> bool {
    SAMPLE_WEIGHT.load() > 1
        && (address == 0 || (mix(SAMPLE_SEED.load(), address) >> 32) as u32 > SAMPLE_BELOW.load())
}

/// How many objects a recorded one stands for.
#[inline(always)]
pub fn weight() -> u32 {
    SAMPLE_WEIGHT.load()
}

//! The hash that makes IDs of stacks and sites.

/// One round of a multiply-and-fold hash; the odd constant is 2^64 divided by the golden ratio.
#[inline(always)]
pub const fn mix(hash: u64, word: u64) -> u64 {
    let product = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ (product >> 32)
}

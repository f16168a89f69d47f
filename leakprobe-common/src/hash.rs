//! The hash that makes IDs of stacks and sites.

use crate::NO_STACK;

/// One round of a multiply-and-fold hash; the odd constant is 2^64 divided by the golden ratio.
#[inline(always)]
pub const fn mix(hash: u64, word: u64) -> u64 {
    let product = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ (product >> 32)
}

/// Where the hash of a stack's frames starts: equal addresses in two processes, or before and after an exec, are two
/// stacks.
#[inline(always)]
pub const fn stack_seed(tgid: u32, generation: u32) -> u64 {
    mix(0x9e37_79b9_7f4a_7c15, (tgid as u64) << 32 | generation as u64)
}

/// The hash of a stack that was walked through code that was not described yet: no other stack has its ID, though it may
/// have the same frames.
#[inline(always)]
pub const fn undescribed_hash(hash: u64) -> u64 {
    mix(hash, 1)
}

/// The same of a stack that was copied, and that one block alone has: another block whose first walk found the same
/// frames may come from elsewhere.
#[inline(always)]
pub const fn copied_hash(hash: u64, at_ns: u64, tid: u32) -> u64 {
    mix(mix(undescribed_hash(hash), at_ns), tid as u64)
}

/// The hash of a stack in code of which some has taken the place of other code: the same addresses were another stack
/// before. `variant` is 0 where none has.
#[inline(always)]
pub const fn variant_hash(hash: u64, variant: u32) -> u64 {
    if variant == 0 { hash } else { mix(hash, variant as u64) }
}

/// A stack's ID, from the hash of its frames.
#[inline(always)]
pub const fn stack_id(hash: u64) -> u64 {
    if hash == NO_STACK { 1 } else { hash }
}

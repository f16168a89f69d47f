//! Blocks that are given back by another allocator's function than those of the one that handed them out.

use core::mem::{offset_of, size_of};

use crate::{mix, stack_id, stack_seed};

/// A way in which blocks of one allocator came to another one's free: by the block's stack, and the caller of that free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct MismatchKey {
    /// Stack that allocated the block.
    pub stack: u64,
    /// Return address of the call that gave it back; 0 where it is not known.
    pub caller: u64,
    /// Process.
    pub tgid: u32,
    /// Program image.
    pub generation: u32,
    /// Family of the block.
    pub from: u32,
    /// Family of the function that gave it back.
    pub to: u32,
}

impl MismatchKey {
    /// ID of the copy of the stack that gave the first such block back.
    #[inline(always)]
    pub const fn copy_id(&self) -> u64 {
        let families = (self.from as u64) << 32 | self.to as u64;
        stack_id(mix(mix(mix(stack_seed(self.tgid, self.generation), self.stack), self.caller), families))
    }
}

/// Blocks that came that way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Mismatch {
    /// How many.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The block that a thread gave to another allocator last: that may pass it on to its owner, and then all is well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LastMismatch {
    /// How it came there.
    pub key: MismatchKey,
    /// Its address.
    pub address: u64,
    /// Its bytes.
    pub size: u64,
}

/// Ways of mismatches that are told apart.
pub const MAX_MISMATCHES: u32 = 1024;

const _: () = {
    assert!(size_of::<MismatchKey>() == 32 && offset_of!(MismatchKey, tgid) == 16);
    assert!(size_of::<Mismatch>() == 16 && size_of::<LastMismatch>() == 48);
};

#[cfg(feature = "user")]
mod pod {
    use super::{Mismatch, MismatchKey};

    // SAFETY: repr(C) of integers without implicit padding (sizes asserted above), so every byte is initialized and every
    // bit pattern is a value.
    unsafe impl aya::Pod for MismatchKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Mismatch {}
}

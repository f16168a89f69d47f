//! Records of the kernel's own memory (`--kernel`).

use core::mem::{offset_of, size_of};

use crate::MAX_FRAMES;

/// What kind of memory a record of the kernel's stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum MemoryKind {
    /// An object of a slab cache, or a large block that kmalloc took from the page allocator.
    Slab = 1,
    /// Pages of the page allocator (`--pages`); the address is that of the first `struct page`, or its frame number.
    Pages = 2,
    /// A per-CPU allocation (`--percpu`).
    PerCpu = 3,
}

impl MemoryKind {
    /// The kind for its number; `None` for a number that stands for none.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Slab),
            2 => Some(Self::Pages),
            3 => Some(Self::PerCpu),
            _ => None,
        }
    }
}

/// Key of an outstanding record of the kernel's memory: the object's address, or what [`MemoryKind`] says, of which the
/// top byte tells the kind. Addresses of the kernel have that byte full; others have it empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct KernelKey(pub u64);

impl KernelKey {
    const PAGES: u64 = 0x40 << 56;
    const PER_CPU: u64 = 0x20 << 56;

    /// The key of a piece of memory.
    #[inline(always)]
    pub const fn new(kind: MemoryKind, address: u64) -> Self {
        match kind {
            MemoryKind::Slab => Self(address),
            MemoryKind::Pages => Self(address ^ Self::PAGES),
            MemoryKind::PerCpu => Self(address ^ Self::PER_CPU),
        }
    }

    /// What kind of memory it is of.
    pub const fn kind(self) -> MemoryKind {
        match (self.0 >> 56) as u8 {
            // The address of a `struct page` by its size leaves some bits below.
            0x40..=0x4f | 0xbf => MemoryKind::Pages,
            0x20 | 0xdf => MemoryKind::PerCpu,
            _ => MemoryKind::Slab,
        }
    }
}

/// An outstanding piece of the kernel's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KernelBlock {
    /// Bytes that the allocator spent on it.
    pub size: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub allocated_ns: u64,
    /// Key of its site and of its stack.
    pub site: u64,
    /// Process that was running.
    pub tgid: u32,
    /// How many objects this one stands for; 1 unless sampled.
    pub weight: u32,
    /// Name of the thread that was running, as the kernel keeps it: up to 15 bytes and a 0.
    pub comm: [u8; 16],
}

/// The stack of a site, and what it allocates.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct KernelStack {
    /// Which cache; see [`CacheKey`].
    pub cache: u64,
    /// A [`MemoryKind`].
    pub kind: u32,
    /// Valid entries of `frames`.
    pub len: u32,
    /// A [`crate::StackEnd`].
    pub end: u32,
    /// Always 0.
    pub _pad: u32,
    /// Return addresses, innermost first.
    pub frames: [u64; MAX_FRAMES],
}

/// Bytes of a cache's name that are kept.
pub const CACHE_NAME: usize = 64;

/// The name of a cache, padded with zeros.
pub type CacheName = [u8; CACHE_NAME];

/// What BPF knows of a slab cache, by [`CacheKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Cache {
    /// Its name.
    pub name: CacheName,
    /// Bytes of an object with what the allocator adds to it.
    pub size: u32,
    /// Bytes of an object.
    pub object_size: u32,
    /// 1 when its objects are recorded, else 0; of meaning only with `--cache`.
    pub wanted: u32,
    /// Always 0.
    pub _pad: u32,
}

/// Which cache an object belongs to: the address of its `struct kmem_cache`, or, where that is not known, a number
/// below 2^40 made of a kind and of the size of its objects in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct CacheKey(pub u64);

/// What a [`CacheKey`] that is no address says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum CacheKind {
    /// kmalloc's plain caches: `kmalloc-64`.
    Kmalloc = 1,
    /// Those of allocations charged to a memory cgroup: `kmalloc-cg-64`.
    KmallocCgroup = 2,
    /// Those of memory that can be reclaimed: `kmalloc-rcl-64`.
    KmallocReclaimable = 3,
    /// Those for DMA: `dma-kmalloc-64`.
    KmallocDma = 4,
    /// kmalloc above the largest of its caches: pages, without a cache.
    KmallocLarge = 5,
    /// A cache that the kernel's tracepoint did not name; its objects' size alone is known.
    Unnamed = 6,
    /// No cache: pages of the page allocator.
    Pages = 7,
    /// No cache: per-CPU memory.
    PerCpu = 8,
}

impl CacheKey {
    const KIND_SHIFT: u32 = 36;

    /// The key of a cache that has no address. `bytes` below 2^36.
    #[inline(always)]
    pub const fn of(kind: CacheKind, bytes: u64) -> Self {
        Self((kind as u64) << Self::KIND_SHIFT | bytes & ((1 << Self::KIND_SHIFT) - 1))
    }

    /// Whether it is the address of a `struct kmem_cache`.
    #[inline(always)]
    pub const fn is_address(self) -> bool {
        self.0 >> 40 != 0
    }

    /// Kind and size, of a key that is no address.
    pub const fn parts(self) -> Option<(CacheKind, u64)> {
        let kind = match self.0 >> Self::KIND_SHIFT {
            1 => CacheKind::Kmalloc,
            2 => CacheKind::KmallocCgroup,
            3 => CacheKind::KmallocReclaimable,
            4 => CacheKind::KmallocDma,
            5 => CacheKind::KmallocLarge,
            6 => CacheKind::Unnamed,
            7 => CacheKind::Pages,
            8 => CacheKind::PerCpu,
            _ => return None,
        };
        Some((kind, self.0 & ((1 << Self::KIND_SHIFT) - 1)))
    }
}

/// A call whose result is known at its return, remembered by the stack pointer of its entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PendingBulk {
    /// Address of the `struct kmem_cache`.
    pub cache: u64,
    /// The array that is filled, or the object.
    pub pointer: u64,
    /// Objects asked for.
    pub objects: u64,
}

/// Entries of an array of objects that one bulk call's program goes through; the rest is counted as cut. The kernel's
/// own batches of kfree_rcu have up to 510 (a page of pointers), those of the network 64.
pub const BULK_FREES: u32 = 512;
/// As [`BULK_FREES`], of allocations.
pub const BULK_ALLOCATIONS: u32 = 64;

const _: () = {
    assert!(size_of::<KernelKey>() == 8);
    assert!(size_of::<KernelBlock>() == 48 && offset_of!(KernelBlock, tgid) == 24);
    assert!(offset_of!(KernelBlock, comm) == 32);
    assert!(size_of::<KernelStack>() == 24 + 8 * MAX_FRAMES && offset_of!(KernelStack, frames) == 24);
    assert!(size_of::<Cache>() == CACHE_NAME + 16 && offset_of!(Cache, size) == CACHE_NAME);
    assert!(size_of::<PendingBulk>() == 24);
};

#[cfg(feature = "user")]
mod pod {
    use super::{Cache, KernelStack};

    // SAFETY: all are repr(C) of integers without implicit padding (sizes asserted above), so every byte is
    // initialized and every bit pattern is a value.
    unsafe impl aya::Pod for Cache {}
    // SAFETY: as above.
    unsafe impl aya::Pod for KernelStack {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_s_key_tells_its_kind() {
        for kind in [MemoryKind::Slab, MemoryKind::Pages, MemoryKind::PerCpu] {
            assert_eq!(KernelKey::new(kind, 0xffff_8881_0004_2a00).kind(), kind);
        }
        assert_eq!(KernelKey::new(MemoryKind::Pages, 0x12_3456).kind(), MemoryKind::Pages);
        assert_eq!(KernelKey::new(MemoryKind::Pages, 0xffff_ea00_0012_3440 / 64).kind(), MemoryKind::Pages);
        assert_eq!(KernelKey::new(MemoryKind::PerCpu, 0x3_f2a0).kind(), MemoryKind::PerCpu);
    }

    #[test]
    fn a_key_without_an_address_says_kind_and_size() {
        let key = CacheKey::of(CacheKind::KmallocCgroup, 192);
        assert!(!key.is_address());
        assert_eq!(key.parts(), Some((CacheKind::KmallocCgroup, 192)));
        let largest = CacheKey::of(CacheKind::PerCpu, (1 << 36) - 1);
        assert!(!largest.is_address());
        assert_eq!(largest.parts(), Some((CacheKind::PerCpu, (1 << 36) - 1)));
        assert!(CacheKey(0xffff_8881_0004_2a00).is_address());
        assert_eq!(CacheKey(0xffff_8881_0004_2a00).parts(), None);
    }
}

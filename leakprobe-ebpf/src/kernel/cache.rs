//! Which cache an object belongs to, and what it is called.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated};
use leakprobe_common::{CACHE_NAME, Cache, CacheKey, CacheKind};

use crate::{
    fields::{read, read32},
    maps::{
        CACHE_NAME_AT, CACHE_OBJECT_SIZE_AT, CACHE_SIZE_AT, CACHES, COMPOUND_HEAD_AT, FILTER_CACHES,
        GFP_ACCOUNT, GFP_DMA, GFP_RECLAIMABLE, LARGEST_KMALLOC, PAGE_BYTES, PAGE_OFFSET_VARIABLE,
        SLAB_CACHE_AT, VMEMMAP_VARIABLE, WANTED,
    },
};

/// Bits of an address within a page, where objects are looked up by their pages (x86_64).
const PAGE_SHIFT: u64 = 12;

/// The cache of an object that kmalloc has handed out.
#[inline(always)]
pub fn of_kmalloc(address: u64, bytes: u64, flags: u64) -> CacheKey {
    if bytes > LARGEST_KMALLOC.load() {
        return CacheKey::of(CacheKind::KmallocLarge, 0);
    }
    if let Some(key) = by_page(address, bytes) {
        return key;
    }
    // As kmalloc_type() of the kernel's slab.h.
    let kind = if flags & GFP_DMA.load() != 0 {
        CacheKind::KmallocDma
    } else if flags & GFP_RECLAIMABLE.load() != 0 {
        CacheKind::KmallocReclaimable
    } else if flags & GFP_ACCOUNT.load() != 0 {
        CacheKind::KmallocCgroup
    } else {
        CacheKind::Kmalloc
    };
    CacheKey::of(kind, bytes)
}

/// The cache of an object of a cache that the tracepoint did not name.
#[inline(always)]
pub fn of_sized(address: u64, bytes: u64) -> CacheKey {
    by_page(address, bytes).unwrap_or(CacheKey::of(CacheKind::Unnamed, bytes))
}

/// The cache that the object's page belongs to. Believed only when its objects are of the size that the tracepoint
/// has told.
#[inline(always)]
fn by_page(address: u64, bytes: u64) -> Option<CacheKey> {
    if PAGE_OFFSET_VARIABLE.load() == 0 {
        return None;
    }
    let frame = address.wrapping_sub(read(PAGE_OFFSET_VARIABLE.load())) >> PAGE_SHIFT;
    let mut page = read(VMEMMAP_VARIABLE.load()).wrapping_add(frame.wrapping_mul(PAGE_BYTES.load()));
    let head = read(page + COMPOUND_HEAD_AT.load());
    if head & 1 == 1 {
        // A pointer to the first page of the slab; or, from 7.0 on, a mask that makes it of this one's address.
        page = if head >> 32 == 0xffff_ffff { page & head } else { head - 1 };
    }
    let cache = CacheKey(read(page + SLAB_CACHE_AT.load()));
    (cache.is_address() && u64::from(size(cache)) == bytes).then_some(cache)
}

/// Bytes of a cache's objects with what the allocator adds to them.
#[inline(always)]
pub fn size(cache: CacheKey) -> u32 {
    read32(cache.0 + CACHE_SIZE_AT.load())
}

/// Bytes of a cache's objects.
#[inline(always)]
pub fn object_size(cache: CacheKey) -> u32 {
    read32(cache.0 + CACHE_OBJECT_SIZE_AT.load())
}

/// Whether objects of a cache are recorded. `room`: where it is described.
#[inline(always)]
pub fn is_wanted(key: CacheKey, room: &mut Cache) -> bool {
    if FILTER_CACHES.load() == 0 {
        return true;
    }
    // SAFETY: elements of this map are never removed.
    match unsafe { CACHES.get(key.0) } {
        Some(cache) => cache.wanted != 0,
        None => key.is_address() && describe(key, room),
    }
}

/// Keeps a cache's name and sizes, once; returns whether its objects are wanted.
#[inline(always)]
pub fn describe(key: CacheKey, room: &mut Cache) -> bool {
    room.name = [0; CACHE_NAME];
    if CACHE_NAME_AT.load() != 0 {
        read_name(room, read(key.0 + CACHE_NAME_AT.load()));
    }
    (room.size, room.object_size) = (size(key), object_size(key));
    keep(key, room)
}

/// Reads a name, which ends with a 0.
#[inline(always)]
pub fn read_name(room: &mut Cache, from: u64) {
    // SAFETY: the buffer is as long as is said; the helper checks the address and ends the text with a 0.
    unsafe {
        let name = room.name.as_mut_ptr().cast();
        generated::bpf_probe_read_kernel_str(name, CACHE_NAME as u32, from as *const _);
    }
}

/// Keeps what is known of a cache.
#[inline(always)]
pub fn keep(key: CacheKey, cache: &mut Cache) -> bool {
    // SAFETY: only whether there is one is asked.
    let wanted = FILTER_CACHES.load() == 0 || unsafe { WANTED.get(&cache.name) }.is_some();
    cache.wanted = wanted as u32;
    // Where there is no room, the cache has no name in reports; another program may have been first.
    let _ = CACHES.insert(key.0, &*cache, BPF_NOEXIST as u64);
    wanted
}

/// Whether a cache has been described.
#[inline(always)]
pub fn is_known(key: CacheKey) -> bool {
    CACHES.get_ptr(key.0).is_some()
}

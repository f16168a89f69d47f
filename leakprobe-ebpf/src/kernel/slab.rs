//! Slab objects and per-CPU memory, by tracepoint.

use aya_ebpf::{
    EbpfContext,
    programs::{RawTracePointContext, TracePointContext},
};
use leakprobe_common::{CACHE_NAME, Cache, CacheKey, CacheKind, Counter, MemoryKind, mix};

use crate::{
    books::Books,
    cache,
    fields::{argument, field, field32},
    maps::{
        CACHE_ALLOCATED_AT, CACHE_NAME_LOC_AT, CACHE_REQUESTED_AT, CPUS, KMALLOC_ALLOCATED_AT,
        KMALLOC_GFP_AT, KMALLOC_REQUESTED_AT, PERCPU_FREED_AT, PERCPU_POINTER_AT, PERCPU_SIZE_AT, Program,
    },
    object::{self, FreePoint, New, is_of_interest},
    sample,
};

/// Where these fields are in the records of all classic tracepoints of slab objects.
const CALL_SITE_AT: u64 = 8;
const POINTER_AT: u64 = 16;

/// `kmalloc(call_site, ptr, bytes_req, bytes_alloc, gfp_flags, ...)`
#[inline(always)]
pub fn kmalloc(ctx: &RawTracePointContext) -> i32 {
    let (call_site, address) = (argument(ctx, 0), argument(ctx, 1));
    let (requested, size) = (argument(ctx, 2), argument(ctx, 3));
    kmalloced(ctx, call_site, address, requested, size, argument(ctx, 4))
}

/// As above, from the tracepoint's record.
#[inline(always)]
pub fn kmalloc_classic(ctx: &TracePointContext) -> u32 {
    let (call_site, address) = (field(ctx, CALL_SITE_AT), field(ctx, POINTER_AT));
    let (requested, size) =
        (field(ctx, KMALLOC_REQUESTED_AT.load()), field(ctx, KMALLOC_ALLOCATED_AT.load()));
    let flags = u64::from(field32(ctx, KMALLOC_GFP_AT.load()));
    kmalloced(ctx, call_site, address, requested, size, flags);
    0
}

#[inline(always)]
fn kmalloced<C: EbpfContext>(
    ctx: &C,
    call_site: u64,
    address: u64,
    requested: u64,
    size: u64,
    flags: u64,
) -> i32 {
    let Some(books) = Books::begin_for(address, Program::Kmalloc) else { return 0 };
    if is_of_interest(books, address, || requested) {
        let cache = cache::of_kmalloc(address, size, flags);
        let weight = sample::weight();
        let kind = MemoryKind::Slab;
        let new = New { kind, cache, address, size, call_site, weight };
        object::record(ctx, books, Program::Kmalloc, &new);
    }
    0
}

/// `kmem_cache_alloc(call_site, ptr, s, ...)`, from 6.1 on.
#[inline(always)]
pub fn cache_alloc(ctx: &RawTracePointContext) -> i32 {
    let (call_site, address, cache) = (argument(ctx, 0), argument(ctx, 1), CacheKey(argument(ctx, 2)));
    let Some(books) = Books::begin_for(address, Program::Cache) else { return 0 };
    if is_of_interest(books, address, || u64::from(cache::object_size(cache))) {
        cached(ctx, books, cache, call_site, address, u64::from(cache::size(cache)));
    }
    0
}

/// `kmem_cache_alloc(call_site, ptr, bytes_req, bytes_alloc, ...)`, before 6.1.
#[inline(always)]
pub fn cache_alloc_sized(ctx: &RawTracePointContext) -> i32 {
    let (call_site, address) = (argument(ctx, 0), argument(ctx, 1));
    let (requested, size) = (argument(ctx, 2), argument(ctx, 3));
    let Some(books) = Books::begin_for(address, Program::Cache) else { return 0 };
    if is_of_interest(books, address, || requested) {
        cached(ctx, books, cache::of_sized(address, size), call_site, address, size);
    }
    0
}

/// From the tracepoint's record.
#[inline(always)]
pub fn cache_alloc_classic(ctx: &TracePointContext) -> u32 {
    let (call_site, address) = (field(ctx, CALL_SITE_AT), field(ctx, POINTER_AT));
    let (requested, size) = (field(ctx, CACHE_REQUESTED_AT.load()), field(ctx, CACHE_ALLOCATED_AT.load()));
    let Some(books) = Books::begin_for(address, Program::Cache) else { return 0 };
    if !is_of_interest(books, address, || requested) {
        return 0;
    }
    let cache = CacheKey::of(CacheKind::Unnamed, size);
    let at = CACHE_NAME_LOC_AT.load();
    if at == 0 {
        cached(ctx, books, cache, call_site, address, size);
        return 0;
    }
    let Some(scratch) = object::borrow(Program::Cache) else {
        books.count(Counter::ScratchBusy);
        return 0;
    };
    let cache = named(ctx, at, requested, size, &mut scratch.cache);
    let weight = sample::weight();
    let new = New { kind: MemoryKind::Slab, cache, address, size, call_site, weight };
    object::record_in(ctx, books, scratch, &new);
    scratch.busy = 0;
    0
}

/// The cache of which the record has the name (from 6.18 on): its key is a hash of it.
#[inline(always)]
fn named(ctx: &TracePointContext, at: u64, requested: u64, size: u64, room: &mut Cache) -> CacheKey {
    room.name = [0; CACHE_NAME];
    // `__data_loc`: the lower half is the offset from the record's start.
    cache::read_name(room, ctx.as_ptr() as u64 + u64::from(field32(ctx, at) & 0xffff));
    let mut hash = 0;
    for word in room.name.chunks_exact(8) {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        hash = mix(hash, u64::from_le_bytes(bytes));
    }
    // As an address, so that it is taken for no other kind of key.
    let key = CacheKey(hash | 1 << 63);
    if !cache::is_known(key) {
        (room.size, room.object_size) = (size as u32, requested as u32);
        cache::keep(key, room);
    }
    key
}

#[inline(always)]
fn cached<C: EbpfContext>(ctx: &C, books: Books, cache: CacheKey, call_site: u64, address: u64, size: u64) {
    let weight = sample::weight();
    let new = New { kind: MemoryKind::Slab, cache, address, size, call_site, weight };
    object::record(ctx, books, Program::Cache, &new);
}

/// `kfree(call_site, ptr)`, `kmem_cache_free(call_site, ptr, ...)`
#[inline(always)]
pub fn free(ctx: &RawTracePointContext, program: Program, point: FreePoint) -> i32 {
    let address = argument(ctx, 1);
    if let Some(books) = Books::begin_for(address, program) {
        object::free_first(books, point, address);
    }
    0
}

/// The same tracepoints, after [`free`] or [`free_classic`]: their first two arguments have always been these.
#[inline(always)]
pub fn free_again(ctx: &RawTracePointContext, program: Program, point: FreePoint) -> i32 {
    let address = argument(ctx, 1);
    if let Some(books) = Books::begin_for(address, program) {
        object::free_second(books, point, address);
    }
    0
}

/// From the tracepoint's record.
#[inline(always)]
pub fn free_classic(ctx: &TracePointContext, program: Program, point: FreePoint) -> u32 {
    let address = field(ctx, POINTER_AT);
    if let Some(books) = Books::begin_for(address, program) {
        object::free_first(books, point, address);
    }
    0
}

/// `percpu_alloc_percpu(call_site, reserved, is_atomic, size, align, base_addr, off, ptr, ...)`, from 6.0 on.
#[inline(always)]
pub fn percpu_alloc(ctx: &RawTracePointContext) -> i32 {
    percpu(ctx, argument(ctx, 0), argument(ctx, 3), argument(ctx, 7))
}

/// `percpu_alloc_percpu(reserved, is_atomic, size, align, base_addr, off, ptr)`, before.
#[inline(always)]
pub fn percpu_alloc_bare(ctx: &RawTracePointContext) -> i32 {
    percpu(ctx, 0, argument(ctx, 2), argument(ctx, 6))
}

/// From the tracepoint's record.
#[inline(always)]
pub fn percpu_alloc_classic(ctx: &TracePointContext) -> u32 {
    percpu(ctx, 0, field(ctx, PERCPU_SIZE_AT.load()), field(ctx, PERCPU_POINTER_AT.load()));
    0
}

#[inline(always)]
fn percpu<C: EbpfContext>(ctx: &C, call_site: u64, bytes: u64, address: u64) -> i32 {
    let Some(books) = Books::begin_for(address, Program::PerCpu) else { return 0 };
    if is_of_interest(books, address, || bytes) {
        let cache = CacheKey::of(CacheKind::PerCpu, 0);
        let size = bytes.wrapping_mul(CPUS.load());
        let (kind, weight) = (MemoryKind::PerCpu, sample::weight());
        let new = New { kind, cache, address, size, call_site, weight };
        object::record(ctx, books, Program::PerCpu, &new);
    }
    0
}

/// `percpu_free_percpu(base_addr, off, ptr)`
#[inline(always)]
pub fn percpu_free(ctx: &RawTracePointContext) -> i32 {
    let address = argument(ctx, 2);
    if let Some(books) = Books::begin_for(address, Program::PerCpuFree) {
        object::free(books, MemoryKind::PerCpu, address);
    }
    0
}

/// From the tracepoint's record.
#[inline(always)]
pub fn percpu_free_classic(ctx: &TracePointContext) -> u32 {
    let address = field(ctx, PERCPU_FREED_AT.load());
    if let Some(books) = Books::begin_for(address, Program::PerCpuFree) {
        object::free(books, MemoryKind::PerCpu, address);
    }
    0
}

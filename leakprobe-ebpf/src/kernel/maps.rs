//! The maps and globals. Sizes given here are replaced by the loader, and so are all globals but [`CLOSING`].
//!
//! None of the maps grows: a program that allocates while it traces the allocator would call itself.

use aya_ebpf::{
    Global,
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use leakprobe_common::{
    ABI_VERSION, Cache, CacheName, KernelBlock, KernelStack, LedgerRow, PendingBulk, Site,
};

/// Compared with user space's own by a test of the committed objects.
#[unsafe(no_mangle)]
static LEAKPROBE_ABI: Global<u32> = Global::new(ABI_VERSION);

macro_rules! globals {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $value:expr;)+) => {
        $(
            $(#[$doc])*
            #[unsafe(no_mangle)]
            pub static $name: Global<$type> = Global::new($value);
        )+
    };
}

globals! {
    /// Objects of fewer bytes than this, as asked for, are not recorded.
    MIN_SIZE: u64 = 0;
    /// Objects of more bytes than this, as asked for, are not recorded.
    MAX_SIZE: u64 = u64::MAX;
    /// leakprobe's own process: what the kernel allocates for it is not recorded.
    OWN_TGID: u32 = 0;
    /// An address is in the sample when its hash's upper half is not above this.
    SAMPLE_BELOW: u32 = u32::MAX;
    /// How many objects one in the sample stands for.
    SAMPLE_WEIGHT: u32 = 1;
    /// Another one in each session: which addresses are in the sample cannot be foreseen.
    SAMPLE_SEED: u64 = 0;
    /// 0: sites are told apart by the allocator's immediate caller alone.
    WITH_STACKS: u32 = 1;
    /// 1: only objects of caches that are wanted are recorded.
    FILTER_CACHES: u32 = 0;
    /// Pages of per-CPU memory stand on so many CPUs.
    CPUS: u64 = 1;

    /// 1: the kernel may run a program while it runs on that CPU (before 6.1).
    MAY_RECUR: u32 = 1;

    // Where things are in the kernel's structures, bytes; 0 where that is not known.
    /// `kmem_cache.name`.
    CACHE_NAME_AT: u64 = 0;
    /// `kmem_cache.size`.
    CACHE_SIZE_AT: u64 = 0;
    /// `kmem_cache.object_size`.
    CACHE_OBJECT_SIZE_AT: u64 = 0;

    // From an object to its cache, by the page that it lies in; the first is 0 where there is no such way.
    /// Address of the variable that holds the address of the direct map.
    PAGE_OFFSET_VARIABLE: u64 = 0;
    /// Address of the variable that holds the address of the first `struct page`.
    VMEMMAP_VARIABLE: u64 = 0;
    /// Bytes of `struct page`.
    PAGE_BYTES: u64 = 64;
    /// `page.compound_head`, or `page.compound_info` where that has come in its place.
    COMPOUND_HEAD_AT: u64 = 8;
    /// `slab.slab_cache`, or `page.slab_cache` before 5.17.
    SLAB_CACHE_AT: u64 = 24;

    // Which cache of its size kmalloc takes from.
    /// `__GFP_ACCOUNT`, or 0 where kmalloc has no caches for it.
    GFP_ACCOUNT: u64 = 0;
    /// `__GFP_RECLAIMABLE`.
    GFP_RECLAIMABLE: u64 = 0x10;
    /// `__GFP_DMA`.
    GFP_DMA: u64 = 1;
    /// Bytes of the largest object that kmalloc has a cache for.
    LARGEST_KMALLOC: u64 = 8192;

    // Functions without a tracepoint.
    /// The bits of kmem_cache_alloc_bulk's result: it returns an int, or a bool.
    BULK_RESULT_BITS: u64 = 0xffff_ffff;
    /// Arguments of __kfree_rcu_sheaf, before its result.
    SHEAF_ARGUMENTS: u32 = 2;

    // Fields of classic tracepoints, bytes from the record's start; 0 where there is no such field.
    /// Of kmalloc and kmem_cache_alloc. (`call_site` is at 8 and `ptr` at 16 in all of them.)
    KMALLOC_REQUESTED_AT: u64 = 24;
    /// As above.
    KMALLOC_ALLOCATED_AT: u64 = 32;
    /// As above.
    KMALLOC_GFP_AT: u64 = 40;
    /// Of kmem_cache_alloc.
    CACHE_REQUESTED_AT: u64 = 24;
    /// As above.
    CACHE_ALLOCATED_AT: u64 = 32;
    /// As above: where the name is in the record.
    CACHE_NAME_LOC_AT: u64 = 0;
    /// Of percpu_alloc_percpu.
    PERCPU_SIZE_AT: u64 = 24;
    /// As above.
    PERCPU_POINTER_AT: u64 = 56;
    /// Of percpu_free_percpu.
    PERCPU_FREED_AT: u64 = 24;
}

/// Set by user space at the session's end: from then on the programs do nothing.
#[unsafe(no_mangle)]
static mut CLOSING: u32 = 0;

/// Whether the session is over.
#[inline(always)]
pub fn closing() -> bool {
    // SAFETY: an aligned integer, which only user space writes; volatile, because it does so meanwhile.
    unsafe { core::ptr::read_volatile(&raw const CLOSING) != 0 }
}

/// The programs: each has counters of its own on each CPU, and the first ones, which build a stack, a place for that.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Program {
    Kmalloc = 0,
    Cache = 1,
    Pages = 2,
    PerCpu = 3,
    Bulk = 4,
    Kfree = 5,
    KfreeAgain = 6,
    CacheFree = 7,
    CacheFreeAgain = 8,
    PagesFree = 9,
    PerCpuFree = 10,
    BulkFree = 11,
    BulkEntry = 12,
    SheafFree = 13,
    SheafEntry = 14,
}

/// How many programs build a stack, and how many there are.
const BUILDERS: u32 = 5;
const PROGRAMS: u32 = 15;

/// Where a program builds what is too large for its stack. The kernel runs no program twice at a time on one CPU
/// (from 6.1 on; before, `busy` sees to that), and tasks change CPUs at no time while one runs.
#[repr(C)]
pub struct Scratch {
    pub busy: u64,
    /// Key of what the program has recorded last on this CPU.
    pub last: u64,
    pub block: KernelBlock,
    pub cache: Cache,
    pub stack: KernelStack,
}

#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(BUILDERS, 0);

/// By `FreePoint`: the address that the tracepoint's first program has dealt with last; 0 while it runs.
#[map]
pub static LAST_FREED: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

/// Outstanding objects.
#[map]
pub static BLOCKS: HashMap<u64, KernelBlock> = HashMap::with_max_entries(1, 0);

/// What each site has allocated and freed. A site is a stack with the cache that it allocates from.
#[map]
pub static SITES: HashMap<u64, Site> = HashMap::with_max_entries(1, 0);

/// The stack and the cache of each site.
#[map]
pub static STACKS: HashMap<u64, KernelStack> = HashMap::with_max_entries(1, 0);

/// Caches by `CacheKey`.
#[map]
pub static CACHES: HashMap<u64, Cache> = HashMap::with_max_entries(4096, 0);

/// With `--cache`: names of the caches that are wanted.
#[map]
pub static WANTED: HashMap<CacheName, u32> = HashMap::with_max_entries(1024, 0);

/// Bulk calls that have not returned, by the stack pointer at their entry.
#[map]
pub static BULK: HashMap<u64, PendingBulk> = HashMap::with_max_entries(1024, 0);

/// Template for new entries: too large for the 512 bytes of BPF stack.
#[map]
pub static NEW_SITE: Array<Site> = Array::with_max_entries(1, 0);

/// The ledger, by [`Program`].
#[map]
pub static LEDGER: PerCpuArray<LedgerRow> = PerCpuArray::with_max_entries(PROGRAMS, 0);

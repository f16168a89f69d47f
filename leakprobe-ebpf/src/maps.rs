//! The maps and globals. Sizes given here are replaced by the loader.

use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use leakprobe_common::{
    ABI_VERSION, Block, BlockKey, COUNTERS, Chunk, CodePage, Kin, LastMismatch, MAX_MISMATCHES, MAX_RULES,
    Mismatch, MismatchKey, ProbeKey, Rule, Site, Space, Stack, Target, Thread, Unwinding,
};

/// Compared with user space's own by a test of the committed objects.
#[unsafe(no_mangle)]
static LEAKPROBE_ABI: Global<u32> = Global::new(ABI_VERSION);

/// Blocks smaller than this are not recorded, bytes.
#[unsafe(no_mangle)]
pub static MIN_SIZE: Global<u64> = Global::new(0);

/// Blocks larger than this are not recorded, bytes.
#[unsafe(no_mangle)]
pub static MAX_SIZE: Global<u64> = Global::new(u64::MAX);

/// 1 where the kernel hands out no cookies (before 5.15): they are then looked up by address, in [`COOKIES`].
#[unsafe(no_mangle)]
pub static COOKIES_BY_ADDRESS: Global<u32> = Global::new(0);

/// 1 with `--follow`: children are targets from their first instruction on.
#[unsafe(no_mangle)]
pub static FOLLOW: Global<u32> = Global::new(0);

/// Where a task, or else the record of the tracepoint task:task_newtask, has the task's number.
#[unsafe(no_mangle)]
pub static CHILD_OFFSET: Global<u64> = Global::new(0);
/// Where that record has the flags of clone.
#[unsafe(no_mangle)]
pub static FLAGS_OFFSET: Global<u64> = Global::new(0);

/// How stacks are unwound: an `Unwinding`.
#[unsafe(no_mangle)]
pub static UNWINDING: Global<u32> = Global::new(Unwinding::Auto as u32);

/// Where not 0: one stack in so many is copied, new or not.
#[unsafe(no_mangle)]
pub static COPIED_ONE_IN: Global<u32> = Global::new(0);

/// Set by user space at the session's end: from then on the programs do nothing. A block that is recorded then
/// stays recorded, and what is freed or allocated later is as if it had not happened yet, so what user
/// space reads once those that run have been waited for is one moment, exactly.
#[unsafe(no_mangle)]
static mut CLOSING: u32 = 0;

/// Whether the session is over.
#[inline(always)]
pub fn closing() -> bool {
    // SAFETY: an aligned integer, which only user space writes; volatile, because it does so meanwhile.
    unsafe { core::ptr::read_volatile(&raw const CLOSING) != 0 }
}

/// Processes being profiled, by tgid.
#[map]
pub static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(4096, 0);

/// With `--follow`, by tgid: what each process holds.
#[map]
pub static KIN: HashMap<u32, Kin> = HashMap::with_max_entries(4096, 0);

/// Cookies by address. Of one entry where the kernel hands out cookies itself.
#[map]
pub static COOKIES: HashMap<ProbeKey, u64> = HashMap::with_max_entries(1, 0);

/// Blocks that came to another allocator than their own, by the way they came.
#[map]
pub static MISMATCHES: HashMap<MismatchKey, Mismatch> = HashMap::with_max_entries(MAX_MISMATCHES, 0);

/// By thread, the last such block.
#[map]
pub static LAST_MISMATCH: LruHashMap<u32, LastMismatch> = LruHashMap::with_max_entries(1024, 0);

/// Outstanding blocks. Allocated on demand: most processes never fill it. (User space clears this flag of all maps on
/// kernels before 6.1, which warn of it.)
#[map]
pub static BLOCKS: HashMap<BlockKey, Block> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// What each stack has allocated and freed, by stack ID.
#[map]
pub static SITES: HashMap<u64, Site> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// Frames by stack ID. Not BPF_MAP_TYPE_STACK_TRACE, which has one stack a bucket and drops collisions.
#[map]
pub static STACKS: HashMap<u64, Stack> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// Pending call and scratch of each thread, by tid. A thread's own, because uprobe programs can be
/// preempted: per-CPU scratch would be torn.
#[map]
pub static THREADS: HashMap<u32, Thread> = HashMap::with_max_entries(32768, BPF_F_NO_PREALLOC);

/// Templates for new entries: too large for the 512 bytes of BPF stack.
#[map]
pub static NEW_THREAD: Array<Thread> = Array::with_max_entries(1, 0);
/// As above.
#[map]
pub static NEW_SITE: Array<Site> = Array::with_max_entries(1, 0);

/// Where strings are copied to that are measured. All processors write there at once: nobody reads it.
#[map]
pub static MEASURED: Array<Piece> = Array::with_max_entries(1, 0);

/// A piece of a string, bytes.
pub type Piece = [u8; 32 * 1024];

/// The empty space, then two of each target: one that is used, and one that user space writes next.
#[map]
pub static SPACES: Array<Space> = Array::with_max_entries(1, 0);

/// By the target's number: the index of the space that is used.
#[map]
pub static SPACE_OF: Array<u32> = Array::with_max_entries(1, 0);

/// By the target's number: the epoch of its code, which the programs raise.
#[map]
pub static EPOCHS: Array<u32> = Array::with_max_entries(1, 0);

/// Pages of the objects that have tables, each object's in a row.
#[map]
pub static PAGES: Array<CodePage> = Array::with_max_entries(1, 0);

/// Rows of the pages.
#[map]
pub static ROWS: Array<Chunk> = Array::with_max_entries(1, 0);

/// Rules by number.
#[map]
pub static RULES: Array<Rule> = Array::with_max_entries(MAX_RULES as u32, 0);

/// The ledger, by `Counter`.
#[map]
pub static LEDGER: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS as u32, 0);

/// Rare events for user space.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(EVENT_BYTES, 0);

/// Its room.
pub const EVENT_BYTES: u32 = 512 * 1024;

/// Stacks that user space is to unwind anew: `StackCopy`.
#[map]
pub static COPIES: RingBuf = RingBuf::with_byte_size(1024 * 1024, 0);

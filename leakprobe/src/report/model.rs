//! The report as plain data: the only thing that printers and exporters see.
//!
//! Every field that a printer shows is here, with its unit in its name; nothing here reads a map, a clock
//! or a file. `docs/report-schema.md` documents the JSON form; [`SCHEMA_VERSION`] is raised when a
//! field changes its meaning or goes away (a new field does not raise it).

use serde::{Deserialize, Serialize};

/// Version of the JSON form.
pub const SCHEMA_VERSION: u32 = 1;

/// One report: what stood at one moment of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub version: u32,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// 1 for the session's first report.
    pub sequence: u64,
    /// Whether this is the session's last report.
    pub is_final: bool,
    /// Wall-clock time, RFC 3339, UTC.
    pub time: String,
    /// Seconds since the probes were in place.
    pub elapsed_seconds: f64,
    /// Seconds since the report before (or since the probes were in place).
    pub since_last_seconds: f64,
    /// Only blocks at least this old count as survivors, seconds.
    pub older_seconds: f64,
    /// What the reader must know before believing a number, most important first.
    pub warnings: Vec<Warning>,
    /// The processes profiled; empty with `--kernel`.
    pub processes: Vec<Process>,
    /// The kernel; only with `--kernel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,
    /// Sums over all sites.
    pub totals: Totals,
    /// The longest-lived survivors by site, largest first; at most `--top` of them.
    pub sites: Vec<SiteRow>,
    /// How many sites have survivors, shown or not.
    pub sites_with_survivors: u64,
    /// Blocks that one allocator has handed out and another one was given back, most first; at most `--top` ways.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mismatches: Vec<MismatchRow>,
    /// What was hit, recorded and lost.
    pub ledger: Ledger,
    /// Whether the whole ledger and whole stacks are to be shown as text.
    #[serde(skip)]
    pub verbose: bool,
    /// Where each probe was put; only with `--verbose`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ProbeRow>,
    /// How stacks are made in each object; none with `--kernel`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stacks: Vec<ObjectStacks>,
}

/// Blocks of one allocator that came to another one's free.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MismatchRow {
    /// Process.
    pub pid: u32,
    /// How many.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The allocator that has handed them out.
    pub allocator: String,
    /// The stack that allocated them.
    pub stack: StackRow,
    /// The allocator whose function was given them.
    pub freed_by: String,
    /// The stack that gave the first of them back.
    pub freed_stack: StackRow,
}

/// How stacks are made in the code of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StackMethod {
    /// By its call frame information.
    Tables,
    /// Along frame pointers, which it may not have.
    FramePointers,
    /// Not at all: stacks end in it.
    Ended,
}

/// An object, and how stacks are made in its code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectStacks {
    /// Its path as the process sees it. Untrusted, not yet escaped.
    pub object: String,
    /// How.
    pub method: StackMethod,
    /// Rows of its tables.
    pub rows: usize,
    /// Bytes that its tables take in the kernel, beside the rules, which objects share.
    pub bytes: u64,
    /// Bytes of its code that they say nothing of.
    pub unknown_bytes: u64,
    /// Functions whose call frame information is damaged or of an unknown kind: stacks end in them.
    pub functions_left_out: usize,
    /// Sections of call frame information that its tables are not made of, each with the reason.
    #[serde(default)]
    pub sections_refused: Vec<String>,
    /// Why it has no tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Something that limits what the report can be trusted for: the cause, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// A stable name: a lost counter's, such as `block_map_full`, or one of its own.
    pub kind: String,
    /// One sentence: cause, then action.
    pub text: String,
}

/// A number now and its change since the start of the session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gauge {
    /// The value now.
    pub now: u64,
    /// Now minus the value at the start.
    pub change: i64,
}

/// Whether a profiled process is still there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    /// It runs.
    Running,
    /// It has ended; with its exit status where leakprobe started it (`exit status 3`, `signal 9`).
    Exited(Option<String>),
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// One profiled process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// As the host sees it.
    pub pid: u32,
    /// The kernel's short name (`comm`). Untrusted bytes, not yet escaped.
    pub name: String,
    /// Untrusted, not yet escaped.
    pub command_line: Vec<String>,
    /// Whether it is still there.
    pub state: ProcessState,
    /// How many programs it has had: 1, and 1 more for each exec seen.
    pub programs: u32,
    /// Its number in its own PID namespace, where that is not the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_pid: Option<u32>,
    /// The process that has forked it, whose blocks it had a copy of; only with `--follow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forked_from: Option<u32>,
    /// Blocks of its parent's that were outstanding at the fork; 0 after an exec.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub inherited_blocks: u64,
    /// Their bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub inherited_bytes: u64,
    /// Blocks from before the fork that it has given back.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub inherited_freed: u64,
    /// The container that it lives in, as its control group names it. Untrusted, not yet escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Bytes outstanding.
    pub live_bytes: u64,
    /// Blocks outstanding.
    pub live_blocks: u64,
    /// Bytes of blocks at least `older_seconds` old.
    pub survivor_bytes: u64,
    /// Blocks at least `older_seconds` old.
    pub survivor_blocks: u64,
    /// `live_bytes` by the minutes that it has been profiled.
    pub growth_bytes_per_minute: f64,
    /// VmSize, bytes. `None` (also below) when it could not be read.
    pub vm_size_bytes: Option<Gauge>,
    /// VmRSS, bytes.
    pub vm_rss_bytes: Option<Gauge>,
    /// VmData, bytes.
    pub vm_data_bytes: Option<Gauge>,
    /// Threads.
    pub threads: Option<Gauge>,
    /// Open file descriptors.
    pub open_files: Option<Gauge>,
}

/// The kernel's own memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Its release, such as `6.1.0-56-amd64`.
    pub release: String,
    /// Sums of /proc/meminfo.
    pub memory: Vec<MemoryRow>,
    /// The caches with the most bytes traced as live, most first; at most `--top` of them.
    pub caches: Vec<CacheRow>,
    /// How many caches have live objects that were traced, shown or not.
    pub caches_with_live_objects: u64,
    /// One address in so many is recorded; above 1, all numbers of blocks and bytes are estimates.
    pub sampled_one_in: u32,
    /// Which tracepoints tell of allocations: `raw` or `classic`.
    pub tracepoints: String,
    /// Functions without a tracepoint that are probed, and how: `patched` or `breakpoint`.
    pub probed_functions: Vec<ProbedFunction>,
    /// Functions without a tracepoint that this kernel lets nobody probe: their frees are not seen.
    pub unprobed_functions: Vec<String>,
    /// With `--pages`: pages that slabs took, which are left out because their objects are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slab_pages: Option<SlabPages>,
}

/// One sum of /proc/meminfo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRow {
    /// Its name there: `SUnreclaim`.
    pub name: String,
    /// Bytes; `None` where the kernel does not show it.
    pub bytes: Option<Gauge>,
}

/// A function without a tracepoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbedFunction {
    /// Its symbol.
    pub name: String,
    /// `patched` or `breakpoint`.
    pub how: String,
}

/// Pages that are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlabPages {
    /// Blocks of pages outstanding.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One slab cache, or one kind of memory that is in none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheRow {
    /// As /proc/slabinfo has it; `kmalloc-large`, `pages` and `per-CPU` are no caches.
    pub name: String,
    /// Bytes of an object with what the allocator adds to it; `None` where it has no slabs.
    pub object_bytes: Option<u64>,
    /// Objects allocated since the start and live.
    pub live_objects: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// `live_bytes` by the minutes of the session.
    pub growth_bytes_per_minute: f64,
    /// Objects in use by /proc/slabinfo, old ones too; free ones that CPUs keep for themselves count as in use.
    pub slabinfo_objects: Option<u64>,
    /// Change of that since the start.
    pub slabinfo_change: Option<i64>,
    /// The same in bytes a minute.
    pub slabinfo_bytes_per_minute: Option<f64>,
    /// Objects ever recorded.
    pub allocated_objects: u64,
    /// Recorded objects given back, seen or not.
    pub freed_objects: u64,
    /// Of these, those whose free was not seen: their address was handed out again.
    pub untraced_frees: u64,
    /// `untraced_frees` by `freed_objects`, 0 to 1.
    pub untraced_free_share: f64,
    /// Whether /proc/slabinfo contradicts most of `live_objects`.
    pub contradicted: bool,
}

/// Sums over all sites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Bytes outstanding.
    pub live_bytes: u64,
    /// Blocks outstanding.
    pub live_blocks: u64,
    /// Bytes of blocks at least `older_seconds` old.
    pub survivor_bytes: u64,
    /// Blocks at least `older_seconds` old.
    pub survivor_blocks: u64,
    /// Change of `live_bytes` since the report before.
    pub growth_bytes: i64,
    /// `live_bytes` by the minutes of the session: nothing was live when it began.
    pub growth_bytes_per_minute: f64,
    /// Blocks ever recorded.
    pub allocated_blocks: u64,
    /// Bytes ever recorded.
    pub allocated_bytes: u64,
    /// Recorded blocks given back.
    pub freed_blocks: u64,
    /// Recorded bytes given back.
    pub freed_bytes: u64,
}

/// What kind of memory a site hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SiteKind {
    /// Blocks of an allocator (malloc and its kin).
    Heap,
    /// Ranges of the address space (mmap, mremap, brk).
    Mapping,
    /// Objects of the kernel's slab caches and of kmalloc.
    Slab,
    /// Pages of the kernel's page allocator.
    Pages,
    /// The kernel's per-CPU memory.
    PerCpu,
}

/// One allocating stack and what it holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteRow {
    /// 1 for the first.
    pub rank: u32,
    /// Process it belongs to; 0 for the kernel.
    pub pid: u32,
    /// What it hands out.
    pub kind: SiteKind,
    /// The allocator's name (`glibc`), or `mmap`; the kernel's cache.
    pub allocator: String,
    /// Bytes outstanding.
    pub live_bytes: u64,
    /// Blocks outstanding.
    pub live_blocks: u64,
    /// Bytes of blocks at least `older_seconds` old.
    pub survivor_bytes: u64,
    /// Blocks at least `older_seconds` old.
    pub survivor_blocks: u64,
    /// Change of `live_bytes` since the report before.
    pub growth_bytes: i64,
    /// `live_bytes` by the minutes of the session: nothing was live when it began.
    pub growth_bytes_per_minute: f64,
    /// Age of the oldest survivor, seconds.
    pub oldest_seconds: f64,
    /// Median age of the survivors, seconds.
    pub median_seconds: f64,
    /// Blocks ever recorded here.
    pub allocated_blocks: u64,
    /// Bytes ever recorded here.
    pub allocated_bytes: u64,
    /// Blocks of this site given back.
    pub freed_blocks: u64,
    /// Bytes of this site given back.
    pub freed_bytes: u64,
    /// Who was running when the survivors were made, most first; only with `--kernel`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made_by: Vec<Maker>,
    /// Why the survivors are not to be believed; `None` where nothing speaks against them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contradiction: Option<String>,
    /// The stack that allocates.
    pub stack: StackRow,
}

/// Who was running when memory of the kernel's was allocated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maker {
    /// The thread's name at that time. Untrusted bytes, not yet escaped.
    pub name: String,
    /// Survivors made while threads of this name ran.
    pub blocks: u64,
    /// In so many different processes.
    pub processes: u64,
    /// The process that made the most of them.
    pub pid: u32,
}

/// How much of a stack is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StackQuality {
    /// Reaches the program's or the thread's start.
    Whole,
    /// Reaches it too, but frame pointers were followed through code without call frame information: frames may be missing.
    Guessed,
    /// Cut at the limit of frames.
    Truncated,
    /// The walk lost its way, probably in an object built without frame pointers: frames may be missing.
    Partial,
    /// No frames: the stack table was full.
    NotKept,
    /// The allocator's caller alone: with `--no-stacks`, or where the kernel could not walk its stack.
    Caller,
}

/// A symbolized stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StackRow {
    /// 16 hexadecimal digits, stable within a session.
    pub id: String,
    /// How much is known.
    pub quality: StackQuality,
    /// Innermost first. Inlined frames stand before the frame that they were inlined into.
    pub frames: Vec<Frame>,
}

/// One frame. All strings come from untrusted files and are not yet escaped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Return address in the process; the same for a frame and what was inlined into it.
    pub address: u64,
    /// Demangled function name.
    pub function: Option<String>,
    /// Bytes from the function's start to the return address.
    pub function_offset: Option<u64>,
    /// Path of the source file.
    pub file: Option<String>,
    /// Line of the call, from 1.
    pub line: Option<u32>,
    /// Whether the compiler inlined this function into the next frame's.
    pub inlined: bool,
    /// Path of the mapped object, or a name in brackets such as `[vdso]`.
    pub object: Option<String>,
    /// Address within the object as its own symbol table counts, for `addr2line -e object`.
    pub object_address: Option<u64>,
    /// Why `function` is missing, in words; `None` when it is there.
    pub unknown: Option<String>,
}

/// What was hit, recorded and lost. Keys are the counters' names; each group's outcomes add up to its hits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// Calls that hand out a block.
    pub allocations: Account,
    /// Calls that give a block back.
    pub frees: Account,
    /// Records: what became of each.
    pub records: Account,
    /// mmap family; `None` unless `--mmap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Account>,
    /// Counts that overlap with those above: stacks cut or not kept, returns without entry, lost events.
    pub remarks: Vec<Entry>,
    /// Program runs that the kernel skipped, by BPF program name; only those above 0.
    pub recursion_misses: Vec<Entry>,
}

/// One balance: `hits` = the sum of `outcomes` + `in_flight`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// What came in.
    pub hits: u64,
    /// Where it went.
    pub outcomes: Vec<Entry>,
    /// Begun and not ended at this moment.
    pub in_flight: u64,
}

/// A named count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The counter's name.
    pub name: String,
    /// Its value.
    pub count: u64,
    /// Whether it stands for something that should have been recorded and was not.
    pub lost: bool,
}

/// Where a probe was put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeRow {
    /// Process it was put into.
    pub pid: u32,
    /// The allocator's name.
    pub allocator: String,
    /// The function's symbols, all names of one address.
    pub symbols: Vec<String>,
    /// Path of the object.
    pub object: String,
    /// Offset of the probed instruction in the object's file.
    pub file_offset: u64,
    /// Bytes from the symbol to the probed instruction.
    pub symbol_offset: u64,
    /// The probed instruction, disassembled.
    pub instruction: String,
    /// Whether the kernel single-steps it (slow) instead of emulating it.
    pub single_stepped: bool,
    /// Why no better instruction could be taken; `None` where it is emulated.
    pub reason: Option<String>,
    /// Whether the function's return is probed too.
    pub returns: bool,
    /// Where that takes no return probe: offsets in the object's file of the probed instructions by which it returns.
    pub leaves: Vec<u64>,
}

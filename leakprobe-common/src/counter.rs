//! The ledger's counters: every hit of a probe ends in exactly one of them, so that totals balance.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $key:literal,)+) => {
        /// One counter of the ledger; its number is its index in the per-CPU array `COUNTERS`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Counter {
            $($(#[$doc])* $name,)+
        }

        impl Counter {
            /// All counters, in order of number.
            pub const ALL: &'static [Counter] = &[$(Counter::$name,)+];

            /// The name used in reports and in JSON.
            pub const fn key(self) -> &'static str {
                match self {
                    $(Counter::$name => $key,)+
                }
            }
        }

        /// How many counters there are.
        pub const COUNTERS: usize = Counter::ALL.len();

        impl Counter {
            /// Its place in a [`LedgerRow`]: backwards. A map read copies upward, and so outcomes before the hits that
            /// they belong to, which come first in each group: hits are never behind.
            #[inline(always)]
            pub const fn place(self) -> usize {
                COUNTERS - 1 - self as usize
            }
        }

        /// The counters of one program of `--kernel` on one CPU, by [`Counter::place`].
        pub type LedgerRow = [u64; COUNTERS];
    };
}

counters! {
    // --- Calls that hand out a block. Entered = the sum of the outcomes below + calls in flight.
    /// Entries into an allocating function.
    AllocationsEntered = "allocations_entered",
    /// A block was recorded.
    Recorded = "recorded",
    /// The allocator itself refused: NULL, or a return code other than 0.
    Failed = "failed",
    /// `realloc(p, 0)` that only freed, or `malloc(0)`-like calls that return nothing.
    ReallocFreed = "realloc_freed",
    /// Made inside another probed call of the same thread; the outermost call is the one recorded. (`--kernel`: told of
    /// twice by kmalloc, as blocks above its largest cache are.)
    Nested = "nested",
    /// Left out by `--min-size` or `--max-size`.
    Filtered = "filtered",
    /// Left out by sampling.
    Unsampled = "unsampled",
    /// Left by an exception, or by the end of the thread: of functions whose every return instruction is probed, so nothing
    /// was handed out.
    Thrown = "thrown",
    /// Lost: entered and never returned (longjmp, exception, thread ended).
    Abandoned = "abandoned",
    /// Lost: the map of outstanding blocks was full.
    BlockMapFull = "block_map_full",
    /// Lost: the kernel refused the update for another reason (memory, contention).
    BlockMapRefused = "block_map_refused",
    /// Lost: the result could not be read from the target's memory.
    ReadFault = "read_fault",
    /// Lost: no room to remember the call of one more thread.
    ThreadMapFull = "thread_map_full",
    /// Lost: user space had not said yet what the probed address is (only where cookies are looked up by address).
    ProbeUnknown = "probe_unknown",
    /// Made by a process that is not a target (a vfork child, say).
    NotATarget = "not_a_target",
    /// Made by the kernel for leakprobe itself (`--kernel`).
    Own = "own",
    /// Lost: made in an interrupt while the same program recorded another one on that CPU (`--kernel`, before 6.1).
    ScratchBusy = "scratch_busy",
    /// Of a cache that `--cache` does not name (`--kernel`).
    CacheFiltered = "cache_filtered",
    /// Lost: handed out by a bulk call beyond [`crate::BULK_ALLOCATIONS`] objects, or whose entry was not kept (`--kernel`).
    BulkCut = "bulk_cut",

    // --- Calls that give a block back. Entered = the sum of the outcomes below.
    /// Entries into a freeing function (realloc is counted above).
    FreesEntered = "frees_entered",
    /// The block's record was removed.
    Freed = "freed",
    /// `free(NULL)`.
    FreeNull = "free_null",
    /// Made by an allocating call inside itself; that call is what is counted.
    FreeNested = "free_nested",
    /// No record of that address: a block from before the attach, or one that was filtered or lost.
    FreeUnknown = "free_unknown",
    /// By a process that was forked (`--follow`), of a block from before the fork: it has a copy of its parent's.
    FreeInherited = "free_inherited",
    /// Lost: as [`Counter::ProbeUnknown`]; the block's record stays.
    FreeProbeUnknown = "free_probe_unknown",
    /// Lost: given back by a bulk call beyond [`crate::BULK_FREES`] objects, or not readable; the records stay (`--kernel`).
    FreeBulkCut = "free_bulk_cut",

    // --- What became of records. Recorded + restored = blocks in the map + the sum of these + taken by
    // --- reallocations in flight; `Taken` counts each record that a reallocation took out at its entry.
    /// A reallocation took the record out at its entry.
    Taken = "realloc_taken",
    /// The reallocation failed, and the record was put back.
    Restored = "realloc_restored",
    /// Lost: the reallocation failed, and the record could not be put back.
    RestoreLost = "realloc_restore_lost",
    /// Lost: the reallocation never returned; what became of the block is unknown.
    TakenAbandoned = "realloc_abandoned",
    /// The address was handed out again while recorded: its free was missed.
    MissedFree = "missed_free",
    /// The record belonged to a program that the process has since replaced by exec.
    ExecDropped = "exec_dropped",

    /// Of the frees, those that came in an interrupt while the same program ran for another one: the kernel skips such a
    /// run, and a second program takes its place (`--kernel`).
    FreeSeenAgain = "free_seen_again",
    /// Pages of a larger block were given back, and a record more or less stands for what is left of it (`--pages`).
    PagesSplit = "pages_split",
    /// Lost: what was left of a larger block could not be recorded (`--pages`).
    PagesSplitLost = "pages_split_lost",

    // --- Quality of what was recorded; these overlap with the outcomes above.
    /// Recorded without a stack: the stack table was full.
    StackMapFull = "stack_map_full",
    /// Recorded with a stack cut at the limit of frames.
    StackTruncated = "stack_truncated",
    /// Recorded with a stack that ends before its outermost frame: in code of which nothing says how it is unwound.
    StackLost = "stack_lost",
    /// Recorded with a stack for which frame pointers were followed through code that may have none.
    StackGuessed = "stack_guessed",
    /// A return without a pending entry: the call began before the probes were in.
    ReturnWithoutEntry = "return_without_entry",
    /// A return instruction that is probed was reached by a call that does not end there: another function's that goes
    /// through the same code, one that is nested, or one that began before the probes were in.
    LeaveUnpaired = "leave_unpaired",
    /// Given back by another allocator's function than those of the one that handed it out.
    Mismatched = "mismatched",
    /// Of these, those that it passed on to their owner.
    PassedOn = "passed_on",
    /// Heaps that were destroyed with all their blocks, whose records stay.
    HeapDestroyed = "heap_destroyed",
    /// Lost: a child that there was no room for (`--follow`); what it does is not recorded.
    ChildLost = "child_lost",
    /// An event for user space was dropped because the ring buffer was full.
    EventLost = "event_lost",

    // --- mmap family (`--mmap`). Entered = recorded by user space + failed + nested + lost.
    /// mmap, munmap, mremap and brk calls of the targets.
    RangesEntered = "ranges_entered",
    /// Calls handed to user space as range events.
    RangesReported = "ranges_reported",
    /// The system call itself failed, or changed nothing.
    RangesFailed = "ranges_failed",
    /// Made by an allocator inside a probed call: the block is what is recorded.
    RangesNested = "ranges_nested",
    /// Lost: the ring buffer was full or the thread could not be remembered.
    RangesLost = "ranges_lost",
}

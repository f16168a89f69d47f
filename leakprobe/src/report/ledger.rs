//! Whether a ledger balances, what it says was lost, and its counters in words.

use super::model::{Account, Entry, Ledger, Warning};
use super::units::counted;

impl Account {
    /// Hits that no outcome explains: 0 where the account balances, above 0 where hits are missing from
    /// the outcomes, below 0 where there are more outcomes than hits.
    pub fn unexplained(&self) -> i128 {
        let explained: i128 = self.outcomes.iter().map(|entry| i128::from(entry.count)).sum();
        i128::from(self.hits) - explained - i128::from(self.in_flight)
    }

    /// Whether hits = the sum of the outcomes + those in flight.
    pub fn balanced(&self) -> bool {
        self.unexplained() == 0
    }
}

impl Ledger {
    /// The accounts that are there.
    pub fn accounts(&self) -> impl Iterator<Item = &Account> {
        [&self.allocations, &self.frees, &self.records].into_iter().chain(&self.ranges)
    }

    /// Whether every account balances.
    pub fn balanced(&self) -> bool {
        self.accounts().all(Account::balanced)
    }

    /// How many calls and records should have been counted and were not: the lost outcomes of all accounts,
    /// and the program runs that the kernel skipped. Lost remarks overlap with those and are left out.
    pub fn lost(&self) -> u64 {
        let outcomes = self.accounts().flat_map(|account| &account.outcomes);
        outcomes
            .chain(&self.recursion_misses)
            .filter(|entry| entry.lost)
            .fold(0, |sum, entry| sum.saturating_add(entry.count))
    }

    /// Each loss of at least 1, as a sentence: how many, the cause, and what to do. Lost remarks are here too.
    pub fn losses(&self) -> Vec<Warning> {
        let lost = |entry: &&Entry| entry.lost && entry.count > 0;
        let named = self.accounts().flat_map(|account| &account.outcomes).chain(&self.remarks);
        let mut losses: Vec<_> = named.filter(lost).map(sentence).collect();
        losses.extend(self.recursion_misses.iter().filter(lost).map(|entry| Warning {
            kind: "recursion_misses".to_owned(),
            text: format!(
                "{} of the BPF program {} skipped by the kernel: {}",
                counted(entry.count, "run"),
                entry.name,
                why_skipped(&entry.name),
            ),
        }));
        losses
    }
}

/// Why the kernel skips runs of a BPF program, and what follows of it.
fn why_skipped(program: &str) -> &'static str {
    match program {
        "allocate_enter" | "allocate_return" | "allocate_looped" | "allocate_leave" | "leave_looped"
        | "free_enter" | "floor_enter" | "floor_return" => {
            "another one was running on that CPU; stop other tracers of this process"
        }
        "process_exec" => {
            "another task was preempted in it on that CPU; as many new programs were not noticed"
        }
        "process_fork" => "another task was preempted in it on that CPU; as many children were not noticed",
        "process_born" => {
            "another task was preempted in a call on a BPF map on that CPU; as many children were not noticed"
        }
        "thread_exit" => {
            "another task was preempted in it on that CPU; as many ends of threads were not noticed"
        }
        "mmap_enter" | "mmap_looped" | "mremap_enter" | "mremap_looped" | "munmap_enter" | "brk_enter"
        | "brk_looped" | "range_exit" => {
            "another task was preempted in a call on a BPF map on that CPU; as many ranges may be missing, or shown \
             that are gone"
        }
        // On the kernel's own functions.
        _ => {
            "it was running on that CPU already when an interrupt called it; take the counts as wrong by that many"
        }
    }
}

fn sentence(entry: &Entry) -> Warning {
    let text = match words(&entry.name).and_then(|words| words.loss) {
        Some(loss) => format!("{} {}; {}", counted(entry.count, loss.noun), loss.cause, loss.action),
        None => format!("{} lost", counted(entry.count, &in_words(&entry.name))),
    };
    Warning { kind: entry.name.clone(), text }
}

/// What a counter is called in a report: its words, or its own name with blanks.
pub fn in_words(name: &str) -> String {
    words(name).map_or_else(|| name.replace('_', " "), |words| words.brief.to_owned())
}

struct Words {
    /// Follows a count in a sum: `3 nested in another call`.
    brief: &'static str,
    /// For counters that can be marked as lost.
    loss: Option<Loss>,
}

struct Loss {
    /// What was lost, in the singular.
    noun: &'static str,
    /// Follows the noun.
    cause: &'static str,
    /// What the reader can do.
    action: &'static str,
}

/// The words for a counter of `leakprobe_common::Counter`, by its key.
fn words(name: &str) -> Option<Words> {
    let plain = |brief| Some(Words { brief, loss: None });
    let loss = |brief, noun, cause, action| Some(Words { brief, loss: Some(Loss { noun, cause, action }) });
    match name {
        "allocations_entered" => plain("allocations"),
        "recorded" => plain("recorded"),
        "failed" => plain("failed"),
        "realloc_freed" => plain("freed by realloc(p, 0)"),
        "nested" => plain("nested in another call"),
        "filtered" => plain("filtered by size"),
        "unsampled" => plain("not sampled"),
        "thrown" => plain("left by an exception"),
        "abandoned" => loss(
            "never returned",
            "allocation",
            "never returned (longjmp, an exception, or the end of the thread)",
            "a few are harmless; if they got a block, it is not in this report",
        ),
        "block_map_full" => loss(
            "lost (block map full)",
            "allocation",
            "not recorded: the map of outstanding blocks was full",
            "raise --max-blocks, or leave out small ones with --min-size",
        ),
        "block_map_refused" => loss(
            "lost (kernel refused)",
            "allocation",
            "not recorded: the kernel refused to store the block, most often for want of memory",
            "free memory on this machine, or lower --max-blocks",
        ),
        "read_fault" => loss(
            "lost (read fault)",
            "allocation",
            "not recorded: the result could not be read from the process's memory",
            "nothing to set; take the totals as too low by that many",
        ),
        "thread_map_full" => loss(
            "lost (thread map full)",
            "allocation",
            "not recorded: too many threads were inside the allocator at once",
            "profile fewer processes at a time",
        ),
        "probe_unknown" => loss(
            "lost (probe not known yet)",
            "allocation",
            "not recorded: this kernel's probes carry no cookie, and where the allocator was mapped anew was not \
             known yet",
            "nothing to set; Linux 5.15 and later lose none in this way",
        ),
        "not_a_target" => plain("by processes not profiled"),
        "own" => plain("for leakprobe itself"),
        "cache_filtered" => plain("of other caches"),
        "bulk_cut" => loss(
            "lost (bulk call cut)",
            "allocation",
            "not recorded: handed out by a bulk call of more objects than a program goes through",
            "nothing to set; their frees are counted as of blocks not recorded",
        ),
        "scratch_busy" => loss(
            "lost (in an interrupt)",
            "allocation",
            "not recorded: made in an interrupt while another one was recorded on that CPU",
            "a few are harmless; --sample makes them fewer",
        ),
        "frees_entered" => plain("frees"),
        "free_bulk_cut" => loss(
            "lost (bulk call cut)",
            "free",
            "not seen: made by a bulk call of more objects than a program goes through",
            "take those objects as live until their addresses are handed out again",
        ),
        "freed" => plain("freed"),
        "free_null" => plain("free(NULL)"),
        "free_nested" => plain("inside an allocating call"),
        "free_inherited" => plain("of a copy of the parent's"),
        "free_unknown" => plain("of blocks not recorded"),
        "free_probe_unknown" => loss(
            "lost (probe not known yet)",
            "free",
            "not seen: this kernel's probes carry no cookie, and where the allocator was mapped anew was not known \
             yet; those blocks are shown as outstanding",
            "nothing to set; Linux 5.15 and later lose none in this way",
        ),
        "realloc_taken" => plain("taken by realloc"),
        "realloc_restored" => plain("put back by a failed realloc"),
        "realloc_restore_lost" => loss(
            "lost by a failed realloc",
            "record",
            "lost: its realloc failed, and the map was too full to put it back",
            "raise --max-blocks",
        ),
        "realloc_abandoned" => loss(
            "taken by a realloc that never returned",
            "record",
            "dropped: the realloc that took it never returned",
            "a few are harmless; what became of such a block is unknown",
        ),
        "missed_free" => loss(
            "replaced (free missed)",
            "record",
            "replaced: its address was handed out again, so its free was missed",
            "look for an allocator function that is not probed (--verbose lists those that are)",
        ),
        "exec_dropped" => plain("dropped by exec, or by another process of the same number"),
        "mismatched" => plain("given back to another allocator"),
        "heap_destroyed" => plain("heaps destroyed with blocks that are still counted"),
        "passed_on" => plain("passed on to their owner"),
        "ended_dropped" => plain("dropped, of ended processes"),
        "free_seen_again" => plain("frees in interrupts of the same kind, seen by a second program"),
        "pages_split" => plain("rests of blocks of pages that were given back in part"),
        "pages_split_lost" => loss(
            "records of pages lost",
            "record",
            "lost: a block of pages was given back in part, and the map was full for what is left of it",
            "raise --max-blocks",
        ),
        "stack_map_full" => loss(
            "recorded without a stack (stack table full)",
            "block",
            "recorded without a stack: the stack table was full",
            "raise --max-stacks",
        ),
        "stack_truncated" => plain("recorded with a stack cut at the limit of frames"),
        "stack_lost" => plain("recorded with a stack that ends too early"),
        "stack_guessed" => plain("recorded with a stack that follows frame pointers, a guess"),
        "return_without_entry" => plain("returns of calls whose entry was not seen"),
        "leave_unpaired" => plain("passes of return instructions by other calls than those that end there"),
        "child_lost" => loss(
            "children not followed (no room)",
            "child",
            "not followed: more were made at once than there is room for",
            "what they did is not in this report",
        ),
        "event_lost" => loss(
            "events dropped (ring buffer full)",
            "event",
            "dropped: the ring buffer was full",
            "frames in objects that were unloaded since may have no names; the machine may be overloaded",
        ),
        "ranges_entered" => plain("mapping calls"),
        "ranges_reported" => plain("recorded"),
        "ranges_failed" => plain("failed"),
        "ranges_nested" => plain("made by the allocator"),
        "ranges_lost" => loss(
            "lost (ring buffer full)",
            "mapping call",
            "not recorded: the ring buffer was full",
            "take the sizes of mappings as wrong by that many calls",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leakprobe_common::Counter;

    fn entry(name: &str, count: u64, lost: bool) -> Entry {
        Entry { name: name.to_owned(), count, lost }
    }

    #[test]
    fn an_account_balances_when_outcomes_and_flights_explain_each_hit() {
        let mut account = Account {
            hits: 10,
            outcomes: vec![entry("recorded", 7, false), entry("failed", 2, false)],
            in_flight: 1,
        };
        assert!(account.balanced());
        account.hits = 12;
        assert_eq!(account.unexplained(), 2);
        assert!(!account.balanced());
        account.hits = 9;
        assert_eq!(account.unexplained(), -1);
        account.outcomes = vec![entry("a", u64::MAX, false), entry("b", u64::MAX, false)];
        assert_eq!(account.unexplained(), 8 - 2 * i128::from(u64::MAX));
    }

    #[test]
    fn a_ledger_balances_when_all_its_accounts_do() {
        let mut ledger = Ledger::default();
        assert!(ledger.balanced());
        ledger.ranges = Some(Account { hits: 1, ..Account::default() });
        assert!(!ledger.balanced());
    }

    #[test]
    fn the_lost_are_summed_over_accounts_and_skipped_runs_but_not_remarks() {
        let account = |entry| Account { hits: 0, outcomes: vec![entry], in_flight: 0 };
        let mut ledger = Ledger {
            allocations: account(entry("block_map_full", 1, true)),
            frees: account(entry("freed", 1_000, false)),
            records: account(entry("missed_free", 20, true)),
            ranges: Some(account(entry("ranges_lost", 300, true))),
            remarks: vec![entry("stack_map_full", 5_000, true)],
            recursion_misses: vec![entry("free_enter", 70_000, true)],
        };
        assert_eq!(ledger.lost(), 70_321);
        ledger.records = account(entry("missed_free", u64::MAX, true));
        assert_eq!(ledger.lost(), u64::MAX);
    }

    #[test]
    fn each_loss_says_how_many_why_and_what_to_do() {
        let ledger = Ledger {
            allocations: Account {
                hits: 813,
                outcomes: vec![
                    entry("block_map_full", 812, true),
                    entry("abandoned", 0, true),
                    entry("filtered", 1, false),
                ],
                in_flight: 0,
            },
            remarks: vec![entry("stack_map_full", 1, true), entry("novel_thing", 2, true)],
            recursion_misses: vec![entry("free_enter", 3, true), entry("process_fork", 1, true)],
            ..Ledger::default()
        };
        let losses = ledger.losses();
        let texts: Vec<_> = losses.iter().map(|loss| (loss.kind.as_str(), loss.text.as_str())).collect();
        assert_eq!(
            texts,
            [
                (
                    "block_map_full",
                    "812 allocations not recorded: the map of outstanding blocks was full; raise --max-blocks, \
                     or leave out small ones with --min-size"
                ),
                (
                    "stack_map_full",
                    "1 block recorded without a stack: the stack table was full; raise --max-stacks"
                ),
                ("novel_thing", "2 novel things lost"),
                (
                    "recursion_misses",
                    "3 runs of the BPF program free_enter skipped by the kernel: another one was running on \
                     that CPU; stop other tracers of this process"
                ),
                (
                    "recursion_misses",
                    "1 run of the BPF program process_fork skipped by the kernel: another task was preempted in it on \
                     that CPU; as many children were not noticed"
                ),
            ]
        );
    }

    #[test]
    fn every_counter_has_words() {
        for counter in Counter::ALL {
            assert!(words(counter.key()).is_some(), "{}", counter.key());
        }
    }
}

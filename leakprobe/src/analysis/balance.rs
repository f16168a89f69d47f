//! The ledger: counters arranged so that each hit is found again.

use leakprobe_common::{Counter, StackEnd};

use crate::{
    drain::snapshot::Snapshot,
    lifetime::ranges::RANGE_FAMILY,
    report::model::{Account, Entry, Ledger},
};

/// Counts that user space itself keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnCounts {
    /// Records deleted because their process has replaced its program.
    pub exec_dropped: u64,
    /// Records deleted because their process has ended, and others needed the room.
    pub ended_dropped: u64,
    /// Runs that the kernel skipped, by program.
    pub recursion_misses: Vec<(String, u64)>,
    /// What is known better now of stacks.
    pub corrections: Corrections,
}

/// How many blocks the programs have counted under another end of their stack than it has: it was unwound anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Corrections {
    /// Added to those whose stack follows frame pointers.
    pub guessed: i64,
    /// Added to those whose stack ends too early.
    pub lost: i64,
    /// Added to those whose stack is cut.
    pub truncated: i64,
}

impl Corrections {
    /// Adds blocks of a stack that ends so. `guessed`: whether frame pointers were followed.
    pub fn add(&mut self, end: StackEnd, guessed: bool, blocks: i64) {
        match end {
            StackEnd::Truncated => self.truncated += blocks,
            StackEnd::Lost => self.lost += blocks,
            StackEnd::Base if guessed => self.guessed += blocks,
            StackEnd::Base => {}
        }
    }
}

/// Whether the programs still count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// They do: counters move while they are read, one after the other. What is in flight and what is
    /// outstanding is then the rest of the hits.
    Runs,
    /// They don't: what is in flight and what is outstanding has been counted on its own, and a balance that
    /// holds is proof.
    Stands,
}

/// Arranges the counters. `with_ranges`: whether the mmap family was traced.
pub fn ledger(snapshot: &Snapshot, own: &OwnCounts, counting: Counting, with_ranges: bool) -> Ledger {
    let mut ledger = arrange(snapshot, own, with_ranges);
    if counting == Counting::Runs {
        for account in [&mut ledger.allocations, &mut ledger.frees] {
            account.in_flight = rest(account, 0);
        }
        // What was live when the sites were read; the counters, read later, have gone on.
        let live = snapshot.outstanding.values().filter(|site| site.family != RANGE_FAMILY);
        let live: u64 = live.map(|site| site.blocks).sum();
        let records = &mut ledger.records;
        let unexplained = rest(records, records.outcomes[0].count);
        records.outcomes[0].count = unexplained.min(live);
        records.in_flight = unexplained - records.outcomes[0].count;
    }
    ledger
}

/// Hits that no outcome accounts for, apart from `ignored` in the outcomes.
fn rest(account: &Account, ignored: u64) -> u64 {
    let explained = account.outcomes.iter().map(|entry| entry.count).sum::<u64>() - ignored;
    account.hits.saturating_sub(explained)
}

fn arrange(snapshot: &Snapshot, own: &OwnCounts, with_ranges: bool) -> Ledger {
    let get = |counter| snapshot.counters.get(counter);
    let kept = |counter: Counter| entry(counter.key(), get(counter), false);
    let lost = |counter: Counter| entry(counter.key(), get(counter), true);
    let corrected =
        |counter: Counter, by| entry(counter.key(), get(counter).saturating_add_signed(by), false);
    let allocations = Account {
        hits: get(Counter::AllocationsEntered),
        outcomes: vec![
            kept(Counter::Recorded),
            kept(Counter::Failed),
            kept(Counter::ReallocFreed),
            kept(Counter::Nested),
            kept(Counter::Filtered),
            kept(Counter::Unsampled),
            kept(Counter::Thrown),
            kept(Counter::NotATarget),
            lost(Counter::Abandoned),
            lost(Counter::BlockMapFull),
            lost(Counter::BlockMapRefused),
            lost(Counter::ReadFault),
            lost(Counter::ThreadMapFull),
            lost(Counter::ProbeUnknown),
        ],
        in_flight: snapshot.pending.calls,
    };
    let frees = Account {
        hits: get(Counter::FreesEntered),
        outcomes: vec![
            kept(Counter::Freed),
            kept(Counter::FreeNull),
            kept(Counter::FreeNested),
            kept(Counter::FreeInherited),
            kept(Counter::FreeUnknown),
            lost(Counter::FreeProbeUnknown),
        ],
        in_flight: 0,
    };
    // A reallocation takes the old record out at its entry; this is what became of those.
    let reallocated = get(Counter::Taken).saturating_sub(
        get(Counter::Restored)
            + get(Counter::RestoreLost)
            + get(Counter::TakenAbandoned)
            + snapshot.pending.taken,
    );
    let records = Account {
        hits: get(Counter::Recorded),
        outcomes: vec![
            entry("outstanding", snapshot.records, false),
            kept(Counter::Freed),
            entry("reallocated", reallocated, false),
            entry(Counter::ExecDropped.key(), get(Counter::ExecDropped) + own.exec_dropped, false),
            entry("ended_dropped", own.ended_dropped, false),
            lost(Counter::MissedFree),
            lost(Counter::RestoreLost),
            lost(Counter::TakenAbandoned),
        ],
        in_flight: snapshot.pending.taken,
    };
    let ranges = with_ranges.then(|| {
        let outcomes = vec![
            kept(Counter::RangesReported),
            kept(Counter::RangesFailed),
            kept(Counter::RangesNested),
            lost(Counter::RangesLost),
        ];
        let hits = get(Counter::RangesEntered);
        let in_flight = hits.saturating_sub(outcomes.iter().map(|entry| entry.count).sum());
        Account { hits, outcomes, in_flight }
    });
    Ledger {
        allocations,
        frees,
        records,
        ranges,
        remarks: vec![
            lost(Counter::StackMapFull),
            corrected(Counter::StackTruncated, own.corrections.truncated),
            corrected(Counter::StackLost, own.corrections.lost),
            corrected(Counter::StackGuessed, own.corrections.guessed),
            kept(Counter::ReturnWithoutEntry),
            kept(Counter::LeaveUnpaired),
            entry(
                Counter::Mismatched.key(),
                get(Counter::Mismatched).saturating_sub(get(Counter::PassedOn)),
                false,
            ),
            kept(Counter::HeapDestroyed),
            lost(Counter::ChildLost),
            lost(Counter::EventLost),
        ],
        recursion_misses: own
            .recursion_misses
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| entry(name, *count, true))
            .collect(),
    }
}

/// Arranges the counters of the kernel's programs.
pub fn kernel_ledger(snapshot: &Snapshot, own: &OwnCounts, counting: Counting) -> Ledger {
    let get = |counter| snapshot.counters.get(counter);
    let kept = |counter: Counter| entry(counter.key(), get(counter), false);
    let lost = |counter: Counter| entry(counter.key(), get(counter), true);
    // Of what is not in the sample, nothing is counted.
    let mut allocations = Account {
        hits: get(Counter::AllocationsEntered),
        outcomes: vec![
            kept(Counter::Recorded),
            kept(Counter::Failed),
            kept(Counter::Nested),
            kept(Counter::Own),
            kept(Counter::Filtered),
            kept(Counter::CacheFiltered),
            lost(Counter::BlockMapFull),
            lost(Counter::BlockMapRefused),
            lost(Counter::ScratchBusy),
            lost(Counter::BulkCut),
        ],
        in_flight: 0,
    };
    let mut frees = Account {
        hits: get(Counter::FreesEntered),
        outcomes: vec![
            kept(Counter::Freed),
            kept(Counter::FreeNull),
            kept(Counter::FreeUnknown),
            lost(Counter::FreeBulkCut),
        ],
        in_flight: 0,
    };
    // Frees that were not seen are no loss of a record: the table of caches says where they are usual.
    let mut records = Account {
        hits: get(Counter::Recorded) + get(Counter::PagesSplit),
        outcomes: vec![
            entry("outstanding", snapshot.records, false),
            kept(Counter::Freed),
            kept(Counter::MissedFree),
        ],
        in_flight: 0,
    };
    if counting == Counting::Runs {
        for account in [&mut allocations, &mut frees] {
            account.in_flight = rest(account, 0);
        }
        // Records were read before the counters, which have gone on: what is outstanding is the rest.
        records.outcomes[0].count = rest(&records, snapshot.records);
    }
    Ledger {
        allocations,
        frees,
        records,
        ranges: None,
        remarks: vec![
            lost(Counter::StackMapFull),
            kept(Counter::StackTruncated),
            kept(Counter::FreeSeenAgain),
            kept(Counter::PagesSplit),
            lost(Counter::PagesSplitLost),
        ],
        recursion_misses: unseen_runs(own),
    }
}

/// Programs of frees, each with the one that takes its place where the kernel skips it.
const SECONDS: [(&str, &str); 4] = [
    ("kfree", "kfree_again"),
    ("cache_free", "cache_free_again"),
    ("kfree_classic", "kfree_again"),
    ("cache_free_classic", "cache_free_again"),
];

/// Runs that the kernel skipped and no other program made up for. A free has gone unseen only where both of its
/// tracepoint's programs were skipped: at most as often as either was.
fn unseen_runs(own: &OwnCounts) -> Vec<Entry> {
    let misses = |wanted: &str| own.recursion_misses.iter().find(|(name, _)| name == wanted).map(|it| it.1);
    let mut unseen = Vec::new();
    for (name, count) in &own.recursion_misses {
        if SECONDS.iter().any(|(_, second)| second == name) {
            continue;
        }
        let second = SECONDS.iter().find(|(first, _)| first == name).and_then(|(_, second)| misses(second));
        let count = second.map_or(*count, |second| second.min(*count));
        if count > 0 {
            unseen.push(entry(name, count, true));
        }
    }
    unseen
}

fn entry(name: &str, count: u64, lost: bool) -> Entry {
    Entry { name: name.to_owned(), count, lost }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::snapshot::{Outstanding, Pending, SiteKey};

    fn sum(account: &Account) -> u64 {
        account.outcomes.iter().map(|entry| entry.count).sum::<u64>() + account.in_flight
    }

    #[test]
    fn each_hit_is_found_again() {
        let mut snapshot = Snapshot::new(0, 0);
        // 10 mallocs, 2 of them refused for lack of room, 1 failed, 1 in flight; 3 freed; a realloc that
        // moved a block, and one in flight that holds a record.
        let counters = &mut snapshot.counters.0;
        counters[Counter::AllocationsEntered as usize] = 12;
        counters[Counter::Recorded as usize] = 7;
        counters[Counter::BlockMapFull as usize] = 2;
        counters[Counter::Failed as usize] = 1;
        counters[Counter::Taken as usize] = 2;
        counters[Counter::FreesEntered as usize] = 5;
        counters[Counter::Freed as usize] = 3;
        counters[Counter::FreeUnknown as usize] = 2;
        snapshot.pending = Pending { calls: 2, taken: 1 };
        snapshot.records = 2;
        let ledger = ledger(&snapshot, &OwnCounts::default(), Counting::Stands, false);
        for account in [&ledger.allocations, &ledger.frees, &ledger.records] {
            assert_eq!(account.hits, sum(account), "{account:?}");
        }
        assert!(ledger.ranges.is_none());
    }

    #[test]
    fn the_kernels_books_balance_by_counters_of_their_own() {
        let mut snapshot = Snapshot::of_standing(0, 0);
        let counters = &mut snapshot.counters.0;
        // 15 allocations: 3 of leakprobe's, 2 lost, 10 recorded, of which one was closed because its
        // address came again; 5 frees, 1 of them unknown.
        for (counter, value) in [
            (Counter::AllocationsEntered, 15),
            (Counter::Own, 3),
            (Counter::BlockMapFull, 2),
            (Counter::Recorded, 10),
            (Counter::MissedFree, 1),
            (Counter::FreesEntered, 5),
            (Counter::Freed, 4),
            (Counter::FreeUnknown, 1),
        ] {
            counters[counter as usize] = value;
        }
        snapshot.records = 5;
        let books = kernel_ledger(&snapshot, &OwnCounts::default(), Counting::Stands);
        for account in [&books.allocations, &books.frees, &books.records] {
            assert_eq!(account.hits, sum(account), "{account:?}");
        }
        assert_eq!(books.lost(), 2, "a free that was not seen is no lost record");
        snapshot.records = 2;
        let moving = kernel_ledger(&snapshot, &OwnCounts::default(), Counting::Runs);
        assert_eq!(moving.records.outcomes[0].count, 5);
    }

    #[test]
    fn a_skipped_free_that_a_second_program_saw_is_not_lost() {
        let own = |misses: &[(&str, u64)]| OwnCounts {
            recursion_misses: misses.iter().map(|&(name, count)| (name.to_owned(), count)).collect(),
            ..OwnCounts::default()
        };
        let misses =
            [("kmalloc", 3), ("kfree", 5), ("cache_free", 4), ("kfree_again", 9), ("cache_free_again", 1)];
        let unseen = [entry("kmalloc", 3, true), entry("kfree", 5, true), entry("cache_free", 1, true)];
        assert_eq!(unseen_runs(&own(&misses)), unseen);
        assert_eq!(unseen_runs(&own(&[("cache_free_classic", 70), ("cache_free_again", 0)])), []);
        // Where there is no second program.
        assert_eq!(unseen_runs(&own(&[("kfree", 7)])), [entry("kfree", 7, true)]);
    }

    #[test]
    fn a_lost_record_unbalances_nothing_else() {
        let mut snapshot = Snapshot::new(0, 0);
        snapshot.counters.0[Counter::Recorded as usize] = 5;
        snapshot.records = 1;
        let recursion_misses = vec![("x".into(), 0), ("y".into(), 2)];
        let own = OwnCounts {
            exec_dropped: 4,
            ended_dropped: 0,
            recursion_misses,
            corrections: Corrections::default(),
        };
        let ledger = ledger(&snapshot, &own, Counting::Stands, false);
        assert_eq!(sum(&ledger.records), 5);
        assert_eq!(ledger.recursion_misses, [entry("y", 2, true)]);
    }

    #[test]
    fn while_counters_move_the_rest_is_outstanding_or_in_flight() {
        let mut snapshot = Snapshot::new(0, 0);
        snapshot.counters.0[Counter::AllocationsEntered as usize] = 9;
        snapshot.counters.0[Counter::Recorded as usize] = 7;
        snapshot.counters.0[Counter::Freed as usize] = 3;
        snapshot.counters.0[Counter::FreesEntered as usize] = 4;
        snapshot.records = 1; // read before 3 more were recorded
        let site = Outstanding { blocks: 3, bytes: 30, ..Outstanding::default() };
        snapshot.outstanding.insert(SiteKey { tgid: 1, stack: 2 }, site);
        let ledger = ledger(&snapshot, &OwnCounts::default(), Counting::Runs, false);
        assert_eq!((ledger.records.outcomes[0].count, ledger.records.in_flight), (3, 1));
        assert_eq!((ledger.allocations.in_flight, ledger.frees.in_flight), (2, 1));
        for account in [&ledger.allocations, &ledger.frees, &ledger.records] {
            assert_eq!(account.hits, sum(account), "{account:?}");
        }
    }
}

//! What the reader must know before believing a number: cause, then action.

use leakprobe_common::Counter;

use crate::{drain::snapshot::Counters, report::model::Warning};

/// Warnings that follow from the ledger, most important first. `max_blocks` and `max_stacks` are the
/// capacities in force.
pub fn from_counters(counters: &Counters, max_blocks: u32, max_stacks: u32) -> Vec<Warning> {
    let rows: [(Counter, &str, &str); 9] = [
        (
            Counter::BlockMapFull,
            "blocks_not_recorded",
            "blocks not recorded: the map of outstanding blocks was full; raise --max-blocks",
        ),
        (
            Counter::BlockMapRefused,
            "blocks_refused",
            "blocks not recorded: the kernel had no memory for their records; lower --max-blocks or free memory",
        ),
        (
            Counter::StackMapFull,
            "stacks_not_kept",
            "blocks recorded without a stack: the stack table was full; raise --max-stacks",
        ),
        (
            Counter::ThreadMapFull,
            "threads_not_followed",
            "calls not recorded: more threads allocate than are followed; profile fewer processes at once",
        ),
        (
            Counter::ReadFault,
            "results_not_read",
            "blocks not recorded: the pointer that posix_memalign stored could not be read; run again",
        ),
        (
            Counter::Abandoned,
            "calls_abandoned",
            "calls into the allocator never returned (longjmp, or their thread ended): what they may have \
             allocated is not recorded; see the ledger",
        ),
        (
            Counter::MissedFree,
            "frees_missed",
            "blocks were handed out again without a free seen: their allocator frees in a way that is not \
             probed; distrust survivors of that allocator",
        ),
        (
            Counter::RestoreLost,
            "records_lost",
            "records lost after a failed realloc: the map of outstanding blocks was full; raise --max-blocks",
        ),
        (
            Counter::RangesLost,
            "ranges_lost",
            "changes of mappings lost: events came faster than they were read; profile without --mmap",
        ),
    ];
    rows.into_iter()
        .filter_map(|(counter, kind, text)| {
            let count = counters.get(counter);
            (count > 0).then(|| {
                let limit = match counter {
                    Counter::BlockMapFull | Counter::RestoreLost => format!(" (now {max_blocks})"),
                    Counter::StackMapFull => format!(" (now {max_stacks})"),
                    _ => String::new(),
                };
                Warning { kind: kind.to_owned(), text: format!("{count} {text}{limit}") }
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_is_named_with_its_count_and_its_remedy() {
        let mut counters = Counters::default();
        counters.0[Counter::BlockMapFull as usize] = 812;
        let warnings = from_counters(&counters, 100, 10);
        assert_eq!(warnings.len(), 1);
        assert_eq!(
            warnings[0].text,
            "812 blocks not recorded: the map of outstanding blocks was full; raise --max-blocks (now 100)"
        );
    }

    #[test]
    fn nothing_lost_is_nothing_said() {
        assert_eq!(from_counters(&Counters::default(), 100, 10), []);
    }
}

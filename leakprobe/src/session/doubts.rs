//! What a reader must know before all else: that many stacks are not whole, or that blocks are gone which are reported. Pure.

use leakprobe_common::Counter;

use crate::{
    cli::Unwind,
    report::{
        model::{Entry, Ledger, Warning},
        units::counted,
    },
};

/// Of this share of the recorded blocks on, one in so many.
const ONE_IN: u64 = 20;

fn of(entries: &[Entry], counter: Counter) -> u64 {
    entries.iter().find(|entry| entry.name == counter.key()).map_or(0, |entry| entry.count)
}

/// What to say of heaps that were destroyed with their blocks.
pub fn destroyed(ledger: &Ledger) -> Option<Warning> {
    let heaps = of(&ledger.remarks, Counter::HeapDestroyed);
    let text = format!(
        "{} of mimalloc's destroyed with all blocks in {} (mi_heap_destroy): which those were cannot be seen, so that they \
         stay in this report until their addresses are handed out again; do not take sites that allocate from such a heap \
         for leaks",
        if heaps == 1 { "1 heap was".to_owned() } else { format!("{heaps} heaps were") },
        if heaps == 1 { "it" } else { "them" },
    );
    (heaps > 0).then(|| Warning { kind: Counter::HeapDestroyed.key().to_owned(), text })
}

/// What to say of stacks that are not whole. `unsettled`: how many blocks have a stack for good that was walked through
/// code which was not described.
pub fn warnings(ledger: &Ledger, unsettled: u64, how: Unwind) -> Vec<Warning> {
    if !matches!(how, Unwind::Auto | Unwind::Dwarf) {
        return Vec::new();
    }
    let recorded = of(&ledger.allocations.outcomes, Counter::Recorded);
    let is_many = |blocks: u64| blocks > 0 && blocks.saturating_mul(ONE_IN) >= recorded;
    let share = |blocks: u64| match blocks.saturating_mul(100) / recorded.max(1) {
        0 => "less than 1%".to_owned(),
        percent => format!("{}%", percent.min(100)),
    };
    let mut warnings = Vec::new();
    let lost = of(&ledger.remarks, Counter::StackLost).saturating_sub(unsettled);
    if is_many(lost) {
        let text = format!(
            "{} ({} of those recorded) have a stack that ends too early: they are marked; --verbose says how stacks are made \
             in each object",
            counted(lost, "block"),
            share(lost),
        );
        warnings.push(Warning { kind: "many_stacks_lost".to_owned(), text });
    }
    if is_many(unsettled) {
        let text = format!(
            "{} ({} of those recorded) came through an address at which no code was known at that moment: that of a library \
             which was being opened or closed, of a program that had just begun, or none, where a walk had lost its way (in \
             C that Go calls); their stacks {}, and are marked",
            counted(unsettled, "block"),
            share(unsettled),
            if matches!(how, Unwind::Auto) {
                "follow frame pointers, which it may not have"
            } else {
                "end there"
            },
        );
        warnings.push(Warning { kind: "many_stacks_undescribed".to_owned(), text });
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::model::Account;

    fn ledger(recorded: u64, lost: u64) -> Ledger {
        let entry = |counter: Counter, count| Entry { name: counter.key().to_owned(), count, lost: false };
        Ledger {
            allocations: Account { outcomes: vec![entry(Counter::Recorded, recorded)], ..Account::default() },
            remarks: vec![entry(Counter::StackLost, lost)],
            ..Ledger::default()
        }
    }

    fn said(recorded: u64, lost: u64, unsettled: u64) -> Vec<String> {
        let all = warnings(&ledger(recorded, lost), unsettled, Unwind::Auto);
        all.into_iter().map(|warning| warning.text.split(':').next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn a_share_that_matters_is_told_of() {
        assert!(said(1_000, 49, 49).is_empty() && said(0, 0, 0).is_empty());
        assert_eq!(said(1_000, 50, 0), ["50 blocks (5% of those recorded) have a stack that ends too early"]);
        assert_eq!(
            said(200, 0, 199),
            [
                "199 blocks (99% of those recorded) came through an address at which no code was known at that moment"
            ]
        );
        // What ends too early for that reason is told of once.
        assert_eq!(said(200, 100, 100).len(), 1);
        assert!(warnings(&ledger(10, 10), 10, Unwind::Fp).is_empty());
    }
}

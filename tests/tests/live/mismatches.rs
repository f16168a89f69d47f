//! Blocks of one allocator that are given to another one's free.

use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::{Mismatch, Stack};
use leakprobe_tests::victim::Victim;

use crate::last;

const PREFIXES: [&str; 2] = ["--allocator-prefix", "one_,two_"];

/// The functions of a stack up to `main`.
fn functions(stack: &Stack) -> Vec<&str> {
    let names = stack.frames.iter().map(|frame| frame.function.as_deref().unwrap_or("?"));
    let mut seen = false;
    names.take_while(|name| !std::mem::replace(&mut seen, *name == "main")).collect()
}

fn told(row: &Mismatch) -> (&str, &str, u64, u64) {
    (&row.allocator, &row.freed_by, row.blocks, row.bytes)
}

#[test]
fn a_block_that_another_allocator_is_given_is_told_with_both_stacks() {
    let mut victim = Victim::start("mismatch", &[]);
    let probe = Probe::attach(victim.pid(), &PREFIXES);
    victim.run("mix 40");
    victim.run("move 7");
    let reports = probe.finish();
    let report = last(&reports);
    let [mixed, moved] = &report.mismatches[..] else { panic!("{:?}", report.mismatches) };
    // Those of malloc's that the one was given, and passed on, are none.
    assert_eq!(told(mixed), ("one_*", "two_*", 40, 4000));
    assert_eq!(functions(&mixed.stack), ["take", "mix", "main"]);
    assert_eq!(functions(&mixed.freed_stack), ["give_to_another", "mix", "main"]);
    assert_eq!(told(moved), ("one_*", "two_*", 7, 350));
    assert_eq!(functions(&moved.stack), ["take", "move", "main"]);
    assert_eq!(functions(&moved.freed_stack), ["move", "main"]);
    let counted = report.ledger.remarks.iter().find(|entry| entry.name == "mismatched");
    assert_eq!(counted.map(|entry| entry.count), Some(47));
    let warnings: Vec<&str> = report.warnings.iter().map(|warning| warning.kind.as_str()).collect();
    assert_eq!(warnings, ["mismatched"]);
    assert_eq!(report.totals.live_blocks, 0, "{}", report.digest());
    victim.quit();
}

#[test]
fn one_allocator_that_stands_before_another_is_no_mismatch() {
    let mut victim = Victim::start("mismatch", &[]);
    let probe = Probe::attach(victim.pid(), &["--allocator-prefix", "one_"]);
    victim.run("mix 40");
    let reports = probe.finish();
    let report = last(&reports);
    // What two_free is given goes on to free, and that is another allocator than the one.
    let told: Vec<_> = report.mismatches.iter().map(told).collect();
    assert_eq!(told, [("one_*", "glibc", 40, 4000)]);
    victim.quit();
}

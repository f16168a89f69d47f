//! Stacks of programs without frame pointers, held against what the program's own unwinder saw at each allocation.

use leakprobe_tests::compile;
use leakprobe_tests::probe::Probe;
use leakprobe_tests::stacks::{TruthFile, agreeing, differences, reported};
use leakprobe_tests::victim::Victim;

use crate::last;

/// Every site, and room for all of their stacks.
const ALL: [&str; 4] = ["--top", "100000", "--max-stacks", "65536"];

/// Lets a victim take `count` blocks, and holds each stack against its own unwinder's.
fn check_exact(name: &str, phase: &str, count: u64, taker: &str) {
    let truth = TruthFile::new(&format!("{name}-{phase}"));
    let mut victim = Victim::start(name, &[]);
    let probe = Probe::attach(victim.pid(), &ALL);
    victim.run(&format!("{phase} {count} {}", truth.path().display()));
    let reports = probe.finish();
    let report = last(&reports);
    let (truth, seen) = (truth.read(), reported(report, taker));
    let (same, all) = agreeing(&truth, &seen);
    let deepest = truth.keys().map(Vec::len).max().unwrap_or(0);
    println!(
        "{name} {phase}: {same} of {all} blocks with the very stack of the victim's own unwinder, {} stacks, the deepest of \
         {deepest} frames",
        truth.len()
    );
    assert!(all >= count, "{all} blocks");
    assert_eq!(same, all, "\n{}", differences(&truth, &seen));
    for remark in ["stack_guessed", "stack_lost"] {
        assert_eq!(report.ledger.count(remark), 0, "{remark}{}", report.digest());
    }
    for site in report.sites.iter().filter(|site| site.stack.has(&[taker])) {
        assert_eq!(site.stack.quality, "whole", "{:?}", site.stack);
    }
    victim.quit();
}

#[test]
fn c_without_frame_pointers_is_exact_frame_by_frame() {
    check_exact("unwind", "stacks", 10_000, "take");
}

#[test]
fn code_is_unwound_wherever_a_signal_strikes() {
    check_exact("unwind", "signals", 2_000, "take");
}

#[test]
fn what_a_library_allocates_as_soon_as_it_is_opened_is_exact() {
    // Beside the victim, which opens it by its name.
    compile::victim("libopened.so");
    check_exact("unwind", "opened", 1_000, "take");
}

#[test]
fn cpp_without_frame_pointers_is_exact_frame_by_frame() {
    check_exact("unwind_cpp", "stacks", 10_000, "take()");
}

#[test]
fn rust_without_frame_pointers_is_exact_frame_by_frame() {
    check_exact("unwind_rust", "stacks", 10_000, "unwind::take");
}

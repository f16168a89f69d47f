//! Calls of the allocator that never return, and what comes after them.

use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::Sums;
use leakprobe_tests::victim::Victim;
use leakprobe_tests::{pace, skip};

use crate::last;

#[test]
fn a_longjmp_out_of_a_wrapper_disturbs_nothing() {
    let mut victim = Victim::start("jump", &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("wrapper 500").then(victim.run("after 1000 20"));
    let reports = probe.finish();
    truth.check(last(&reports));
    assert_eq!(last(&reports).sums_of(&["after"]).blocks, 1000);
    assert_eq!(last(&reports).ledger.lost(), 0, "{}", last(&reports).digest());
    victim.quit();
}

/// The victim calls malloc where its first push faults, and its handler jumps away: entered, never returned.
#[test]
fn calls_that_never_return_are_abandoned_one_by_one() {
    if cfg!(not(target_arch = "x86_64")) {
        return skip::because(
            "the victim changes its stack in x86-64 assembly",
            format_args!("this is {}", std::env::consts::ARCH),
        );
    }
    let mut victim = Victim::start("jump", &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    let left = victim.run("edge 100").number("note", "entered_and_left");
    let truth = victim.run("after 1000 20");
    let reports = probe.finish();
    truth.check(last(&reports));
    assert_eq!(last(&reports).ledger.count("abandoned"), left, "{}", last(&reports).digest());
    assert_eq!(left, 100);
    victim.quit();
}

/// The stack pointer alone would call all that follows nested in the call that was left.
#[test]
fn a_call_that_was_left_hides_none_below_it() {
    let mut victim = Victim::start("jump", &[]);
    let mut probe = Probe::attach(victim.pid(), &["--interval", "200ms"]);
    // User space learns where return probes lead to after the first of them.
    let truth = victim.run("wrapper 1");
    probe.next_report();
    probe.next_report();
    let truth = truth.then(victim.run("below 1000 20"));
    let reports = probe.finish();
    truth.check(last(&reports));
    assert_eq!(last(&reports).sums_of(&["after"]).blocks, 1000, "{}", last(&reports).digest());
    assert_eq!(last(&reports).ledger.count("abandoned"), 1, "{}", last(&reports).digest());
    assert_eq!(last(&reports).ledger.count("nested"), 0, "{}", last(&reports).digest());
    victim.quit();
}

#[test]
fn a_signal_handler_that_jumps_out_of_malloc_costs_no_block() {
    let mut victim = Victim::start("jump", &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    let blocks = pace::share(20_000);
    let timer = victim.run(&format!("timer {blocks}"));
    let jumps = timer.number("note", "jumps");
    let truth = timer.then(victim.run("after 1000 20"));
    let reports = probe.finish();
    truth.check(last(&reports));
    assert_eq!(last(&reports).sums_of(&["timer"]).blocks, blocks);
    // A jump from the very first byte left before the probe was hit.
    let abandoned = last(&reports).ledger.count("abandoned");
    assert!(abandoned <= jumps, "{abandoned} abandoned calls of {jumps} jumps{}", last(&reports).digest());
    victim.quit();
}

#[test]
fn threads_cancelled_while_they_allocate_leave_at_most_their_one_block() {
    let mut victim = Victim::start("cancel", &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    let threads = 50;
    victim.run(&format!("cancel {threads}"));
    let truth = victim.run("after 1000 20");
    let reports = probe.finish();
    let report = last(&reports);
    let expected = Sums { blocks: 1000, bytes: 20_000, allocated: 1000, freed: 0 };
    assert_eq!(report.sums_of(&["after"]), expected, "{}", report.digest());
    assert_eq!(truth.sum("blocks"), expected.blocks);
    let work = report.sums_of(&["work"]);
    assert!(work.blocks <= threads && work.bytes == 24 * work.blocks, "{work:?}{}", report.digest());
    // A call that was cut off, and a block that was cut off from its free, are different threads'.
    assert!(work.blocks + report.ledger.count("abandoned") <= threads, "{}", report.digest());
    victim.quit();
}

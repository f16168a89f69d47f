//! fork, exec, spawn and exit of the target.

use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::State;
use leakprobe_tests::text;
use leakprobe_tests::victim::Victim;

use crate::last;

#[test]
fn children_change_nothing_in_the_parents_books() {
    let mut victim = Victim::start("life", &[]);
    let mut probe = Probe::attach(victim.pid(), &["--interval", "200ms"]);
    let truth = victim.run("hold 5000 48");
    victim.run("fork");
    truth.check(&probe.next_report());
    victim.run("spawn");
    let truth = victim.run("hold 1000 48");
    let reports = probe.finish();
    truth.check(last(&reports));
    assert_eq!(last(&reports).totals.live_blocks, 6000);
    assert_eq!(last(&reports).processes[0].programs, 1);
    victim.quit();
}

/// A fork copies the breakpoints with the code; whoever left them there would have the child pay for the parent's profile.
#[test]
fn a_child_is_freed_of_the_breakpoints_while_its_parent_is_profiled() {
    let mut victim = Victim::start("life", &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("hold 50 48");
    let children: Vec<u32> = (0..3).map(|_| victim.run("linger").number("note", "child") as u32).collect();
    children.into_iter().for_each(text::check_whole);
    assert!(!text::patched(victim.pid()).is_empty(), "the parent still has them");
    let reports = probe.finish();
    truth.check(last(&reports));
    victim.quit();
}

#[test]
fn an_exec_drops_the_old_programs_blocks_and_counts_the_new_ones() {
    let mut victim = Victim::start("life", &[]);
    let mut probe = Probe::attach(victim.pid(), &["--interval", "200ms"]);
    victim.run("hold 5000 48").check(&probe.next_report());

    victim.send("exec");
    victim.wait_ready();
    // A new program is a new address space: the probes are in it once a report was made since.
    probe.next_report();
    let truth = victim.run("again 700 90");
    let reports = probe.finish();
    let report = last(&reports);
    assert_eq!(report.processes[0].programs, 2, "{:?}", report.processes);
    assert_eq!(report.processes[0].state, State::Running);
    assert_eq!(report.totals.live_blocks, truth.sum("blocks"), "{}", report.digest());
    assert_eq!(report.totals.live_bytes, truth.sum("bytes"), "{}", report.digest());
    assert_eq!((report.totals.live_blocks, report.totals.live_bytes), (700, 63_000));
    let seen = report.sums_of(&["again", "main"]);
    assert_eq!((seen.blocks, seen.bytes), (700, 63_000), "{}", report.digest());
    // `again` takes its blocks through `hold`: those are there, and no others of `hold`.
    assert_eq!(report.sums_of(&["hold"]), report.sums_of(&["hold", "again"]), "{}", report.digest());
    assert_eq!(report.ledger.count("exec_dropped"), 5000, "{}", report.digest());
    victim.quit();
}

#[test]
fn the_last_report_of_a_target_that_exits_shows_what_it_held() {
    let mut victim = Victim::start("leak", &[]);
    let mut probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("leak 1234 100");
    victim.send("exit 0");
    let reports = probe.end();
    let report = last(&reports);
    truth.check(report);
    report.check_sums();
    assert_eq!((report.totals.live_blocks, report.totals.live_bytes), (1234, 123_400));
    assert!(
        report.sites_of(&["leak", "main"]).next().is_some(),
        "names outlive the target{}",
        report.digest()
    );
    assert!(matches!(report.processes[0].state, State::Exited(_)), "{:?}", report.processes);
    assert!(victim.wait().success());
}

#[test]
fn a_target_that_is_killed_ends_the_session_with_a_full_report() {
    let mut victim = Victim::start("leak", &[]);
    let mut probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("leak 321 77");
    victim.kill();
    let reports = probe.end();
    truth.check(last(&reports));
    assert!(matches!(last(&reports).processes[0].state, State::Exited(_)), "{:?}", last(&reports).processes);
}

#[test]
fn two_targets_are_kept_apart_and_one_may_exit_first() {
    let mut one = Victim::start("leak", &[]);
    let mut two = Victim::start("leak", &[]);
    let (first, second) = (one.pid(), two.pid());
    let probe = Probe::attach_all(&[first, second], &[]);
    one.run("leak 300 10");
    two.run("leak 500 20");
    one.quit();
    two.run("leak 100 20");
    let reports = probe.finish();
    let report = last(&reports);
    let of = |pid| {
        let sites = report.sites_of(&["leak"]).filter(|site| site.pid == pid);
        sites.fold((0, 0), |sums, site| (sums.0 + site.live_blocks, sums.1 + site.live_bytes))
    };
    assert_eq!((of(first), of(second)), ((300, 3000), (600, 12_000)), "{}", report.digest());
    assert_eq!((report.totals.live_blocks, report.totals.live_bytes), (900, 15_000));
    let state =
        |pid| &report.processes.iter().find(|process| process.pid == pid).expect("each process").state;
    assert!(matches!(state(first), State::Exited(_)), "{:?}", report.processes);
    assert_eq!(*state(second), State::Running);
    two.quit();
}

//! Blocks from before the attach, and books that stay right while leakprobe comes and goes.

use leakprobe_tests::probe::Probe;
use leakprobe_tests::victim::Victim;
use leakprobe_tests::{compile, kernel, text, tracer};

use crate::last;

#[test]
fn blocks_from_before_the_attach_are_unknown_and_never_negative() {
    let mut victim = Victim::start("leak", &["600", "32"]);
    let mut probe = Probe::attach(victim.pid(), &["--interval", "200ms"]);
    // The first 100 of them become blocks of this session; 500 stay unknown.
    let truth = victim.run("regrow 100 64");
    let report = probe.next_report();
    truth.check(&report);
    assert_eq!(report.ledger.count("realloc_taken"), 0, "nothing was known of them{}", report.digest());

    let truth = victim.run("leak 50 16").then(truth);
    truth.check(&probe.next_report());

    victim.run("free").check(&probe.next_report());
    let reports = probe.finish();
    let report = last(&reports);
    assert_eq!(report.ledger.count("free_unknown"), 500, "{}", report.digest());
    assert_eq!(report.ledger.count("freed"), 150, "{}", report.digest());
    assert_eq!((report.totals.live_blocks, report.totals.live_bytes), (0, 0));
    assert_eq!((report.totals.allocated_blocks, report.totals.freed_blocks), (150, 150));
    for report in &reports {
        assert!(report.totals.live_blocks <= 150 && report.totals.live_bytes <= 7200, "{}", report.digest());
    }
    victim.quit();
}

#[test]
fn a_second_session_starts_at_nothing() {
    let mut victim = Victim::start("leak", &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    victim.run("leak 100 50");
    assert_eq!(last(&probe.finish()).totals.live_blocks, 100);
    victim.run("leak 1000 50");
    let probe = Probe::attach(victim.pid(), &[]);
    victim.run("leak 7 50");
    let reports = probe.finish();
    assert_eq!(last(&reports).totals.live_blocks, 7, "{}", last(&reports).digest());
    assert_eq!(last(&reports).totals.live_bytes, 350);
    victim.quit();
}

#[test]
fn two_sessions_on_one_target_do_not_disturb_each_other() {
    let mut victim = Victim::start("leak", &[]);
    let one = Probe::attach(victim.pid(), &[]);
    victim.run("leak 100 50");
    let two = Probe::attach(victim.pid(), &[]);
    victim.run("leak 30 50");
    let (two, one) = (two.finish_beside_others(), one.finish());
    assert_eq!(last(&one).totals.live_blocks, 130, "{}", last(&one).digest());
    assert_eq!(last(&two).totals.live_blocks, 30, "{}", last(&two).digest());
    victim.quit();
}

/// A return probe of another tracer replaces the return address of `rows` by the kernel's trampoline while
/// everything below it allocates.
#[test]
fn return_addresses_that_another_tracer_holds_are_resolved() {
    let mut victim = Victim::start("semantics", &[]);
    let other = tracer::probe_returns(victim.pid(), &compile::victim("semantics"), "rows");
    let mut probe = Probe::attach(victim.pid(), &["--interval", "200ms"]);
    assert!(
        text::patched(victim.pid()).iter().any(|(object, _)| object.ends_with("/semantics")),
        "the other tracer's probe is in"
    );
    let truth = victim.run("rows");
    // The trampoline is mapped when it is first needed: a report later it has been seen in the mappings.
    probe.next_report();
    let reports = probe.finish_beside_others();
    drop(other);
    let report = last(&reports);
    truth.check(report);
    if kernel::release() >= (6, 11) {
        // Past the replaced address: the caller of `rows` is named, and nothing is left of the trampoline.
        assert_eq!(report.sites_of(&["row_malloc", "rows", "main"]).count(), 1, "{}", report.digest());
        for site in &report.sites {
            let mut to_main =
                site.stack.frames.iter().take_while(|frame| frame.function.as_deref() != Some("main"));
            assert!(to_main.all(|frame| frame.function.is_some()), "{}", report.digest());
        }
    } else {
        // An older kernel doesn't tell what it replaced: the stack says that it is not whole, and where.
        for site in report.sites_of(&["rows"]) {
            let mut frames =
                site.stack.frames.iter().skip_while(|frame| frame.function.as_deref() != Some("rows"));
            let after = frames.nth(1).and_then(|frame| frame.unknown.as_deref()).unwrap_or_default();
            assert!(after.contains("return probe"), "{after:?} after rows{}", report.digest());
            assert_ne!(site.stack.quality, "whole", "{}", report.digest());
        }
        assert_eq!(report.sites_of(&["row_malloc", "rows"]).count(), 1, "{}", report.digest());
    }
    victim.quit();
}

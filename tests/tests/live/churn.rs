//! A bounded cache that is churned at full speed while leakprobe comes, looks, and goes.

use leakprobe_tests::pace;
use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::Report;
use leakprobe_tests::victim::Victim;

use crate::last;

/// More than these were never there at once.
const CACHE: u64 = 4000;

fn check_bound(report: &Report) {
    let over_sites: u64 = report.sites.iter().map(|site| site.survivor_blocks).sum();
    assert!(report.totals.live_blocks <= CACHE, "{}", report.digest());
    assert!(report.totals.survivor_blocks <= CACHE, "{}", report.digest());
    assert!(over_sites <= CACHE, "{over_sites} survivors over the sites{}", report.digest());
}

fn no_report_shows_more_than_the_cache(threads: &str) {
    let mut victim = Victim::start("churn", &[threads]);
    for _ in 0..pace::rounds(5) {
        let mut probe = Probe::attach(victim.pid(), &["--interval", "100ms"]);
        for _ in 0..3 {
            probe.next_report();
        }
        let reports = probe.finish();
        assert!(reports.len() >= 7, "{} reports", reports.len());
        reports.iter().for_each(check_bound);
        assert!(last(&reports).totals.live_blocks > 0, "it churned{}", last(&reports).digest());
    }
    // The same session sees it stop, and then every block once more: now all 4,000 are known, exactly.
    let mut probe = Probe::attach(victim.pid(), &["--interval", "100ms"]);
    check_bound(&probe.next_report());
    victim.run("stop");
    check_bound(&probe.next_report());
    let truth = victim.run("sweep");
    let report = probe.next_report();
    check_bound(&report);
    truth.check(&report);
    assert_eq!(report.totals.live_blocks, CACHE, "{}", report.digest());
    victim.run("resume");
    check_bound(&probe.next_report());
    let reports = probe.finish();
    reports.iter().for_each(check_bound);
    assert_eq!(last(&reports).ledger.lost(), 0, "{}", last(&reports).digest());
    assert_eq!(last(&reports).ledger.count("missed_free"), 0, "{}", last(&reports).digest());
    assert!(victim.is_alive());
    victim.run("stop");
    victim.quit();
}

#[test]
fn one_thread_never_shows_more_than_its_cache() {
    no_report_shows_more_than_the_cache("1");
}

#[test]
fn two_threads_never_show_more_than_their_cache() {
    no_report_shows_more_than_the_cache("2");
}

#[test]
fn a_cleared_cache_is_empty() {
    let mut victim = Victim::start("churn", &["2"]);
    let probe = Probe::attach(victim.pid(), &[]);
    victim.run("stop");
    victim.run("sweep");
    let truth = victim.run("clear");
    let reports = probe.finish();
    truth.check(last(&reports));
    let totals = &last(&reports).totals;
    assert_eq!(totals.live_blocks, 0);
    assert!(totals.freed_blocks >= CACHE && totals.freed_blocks == totals.allocated_blocks, "{totals:?}");
    victim.quit();
}

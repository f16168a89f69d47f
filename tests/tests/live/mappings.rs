//! `--mmap`: ranges of the address space, to the byte.

use leakprobe_tests::probe::Probe;
use leakprobe_tests::victim::Victim;

use crate::{doctor, last};

#[test]
fn every_call_of_the_family_is_exact() {
    let mut victim = Victim::start("mmap", &[]);
    let probe = Probe::attach(victim.pid(), &["--mmap"]);
    let truth = victim.run("rows");
    let reports = probe.finish();
    let report = last(&reports);
    truth.check(report);
    assert_eq!(truth.sum("bytes") / 4096, 150, "the victim's own books, in pages");
    assert!(report.sites.iter().all(|site| site.kind == "mapping"), "{}", report.digest());
    let ledger = &report.ledger;
    let ranges = ledger.ranges.as_ref().expect("the ranges' account");
    assert!(ranges.hits > 40, "{}", report.digest());
    assert_eq!(ledger.count("ranges_lost"), 0, "{}", report.digest());
    victim.quit();
}

#[test]
fn calls_through_the_c_library_are_exact_in_total() {
    let mut victim = Victim::start("mmap", &[]);
    let probe = Probe::attach(victim.pid(), &["--mmap"]);
    let truth = victim.run("wrappers");
    let reports = probe.finish();
    truth.check(last(&reports));
    let report = last(&reports);
    assert_eq!(report.totals.live_bytes, 75 * 4096, "{}", report.digest());
    // Where each step of a walk can be called by the kernel, it goes by tables there, and misses no caller.
    if doctor::has("bpf_loop") {
        let callers = ["wrappers", "main"];
        assert_eq!(report.sums_of(&callers).bytes, 75 * 4096, "{}", report.digest());
        for site in report.sites_of(&callers) {
            assert_eq!(site.stack.quality, "whole", "{:?}", site.stack);
        }
    }
    victim.quit();
}

#[test]
fn ranges_from_before_the_attach_are_unknown_and_never_negative() {
    let mut victim = Victim::start("mmap", &[]);
    let probe = Probe::attach(victim.pid(), &["--mmap"]);
    let truth = victim.run("early");
    let reports = probe.finish();
    truth.check(last(&reports));
    assert_eq!((last(&reports).totals.live_blocks, last(&reports).totals.live_bytes), (0, 0));
    let ranges = last(&reports).ledger.ranges.as_ref().expect("the ranges' account");
    assert!(ranges.hits >= 3, "two munmaps and a brk{}", last(&reports).digest());
    victim.quit();
}

#[test]
fn what_malloc_maps_is_a_block_and_not_a_range_too() {
    let mut victim = Victim::start("mmap", &[]);
    let probe = Probe::attach(victim.pid(), &["--mmap"]);
    let truth = victim.run("heap");
    let reports = probe.finish();
    let report = last(&reports);
    truth.check(report);
    assert_eq!(report.totals.live_blocks, 110);
    assert!(report.sites.iter().all(|site| site.kind == "heap"), "{}", report.digest());
    // Each of the 10 large blocks is an mmap of malloc's.
    assert!(report.ledger.count("ranges_nested") >= 10, "{}", report.digest());
    victim.quit();
}

#[test]
fn without_the_option_ranges_are_left_alone() {
    let mut victim = Victim::start("mmap", &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    victim.run("rows");
    let reports = probe.finish();
    assert_eq!(last(&reports).totals.live_blocks, 0);
    assert!(last(&reports).ledger.ranges.is_none());
    victim.quit();
}

//! Every call of the allocator's table, succeeding and failing.

use leakprobe_tests::probe::Probe;
use leakprobe_tests::victim::Victim;

use crate::{doctor, last};

#[test]
fn every_call_is_booked_as_the_allocator_means_it() {
    let mut victim = Victim::start("semantics", &[]);
    let mut probe = Probe::attach(victim.pid(), &["--interval", "200ms"]);

    let truth = victim.run("rows");
    assert_eq!((truth.sum("blocks"), truth.sum("bytes")), (25, 4_848_292), "the victim's own books");
    let report = probe.next_report();
    truth.check(&report);
    report.check_sums();
    // A block is found by the function that asked for it, called from where it was called.
    assert_eq!(report.sums_of(&["row_malloc", "rows", "main"]).bytes, 100);
    let site = report.sites_of(&["row_calloc_large"]).next().expect("a site of row_calloc_large");
    let frame = &site.stack.frames[0];
    assert_eq!(frame.function.as_deref(), Some("row_calloc_large"), "the first frame is the caller");
    assert!(frame.file.as_deref().is_some_and(|file| file.ends_with("semantics.c")), "{frame:?}");
    assert!(frame.line.is_some(), "{frame:?}");
    assert_eq!(report.ledger.lost(), 0, "{}", report.digest());

    let truth = victim.run("release");
    assert_eq!((truth.sum("blocks"), truth.sum("bytes")), (0, 0), "the victim's own books");
    let reports = probe.finish();
    truth.check(last(&reports));
    last(&reports).check_sums();
    assert_eq!(last(&reports).totals.allocated_blocks, last(&reports).totals.freed_blocks);
    victim.quit();
}

#[test]
fn refused_calls_are_counted_as_refused() {
    let mut victim = Victim::start("semantics", &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    victim.run("rows");
    let reports = probe.finish();
    let ledger = &last(&reports).ledger;
    // malloc, 2 calloc, 3 realloc (one of NULL), 2 reallocarray, 2 posix_memalign, aligned_alloc, memalign,
    // valloc, pvalloc. glibc refuses a reallocarray that overflows without calling realloc: where only
    // realloc is probed, that call is not seen at all.
    let failed = ledger.count("failed");
    assert!((13..=14).contains(&failed), "{failed} refused calls{}", last(&reports).digest());
    assert_eq!(ledger.count("realloc_freed"), 1, "{}", last(&reports).digest());
    assert_eq!(ledger.count("recorded"), last(&reports).totals.allocated_blocks);
    assert_eq!(ledger.count("free_unknown"), 0, "{}", last(&reports).digest());
    assert_eq!(ledger.count("missed_free"), 0, "{}", last(&reports).digest());
    victim.quit();
}

#[test]
fn calls_inside_the_c_library_are_exact_in_total() {
    let mut victim = Victim::start("semantics", &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("inner");
    let totals = last(&probe.finish()).totals.clone();
    assert_eq!((totals.live_blocks, totals.live_bytes), (truth.sum("blocks"), truth.sum("bytes")));
    assert_eq!((totals.live_blocks, totals.live_bytes), (2, 28));
    victim.quit();
}

fn check_rows(attach_with: &str) {
    let mut victim = Victim::start("semantics", &[]);
    let probe = Probe::attach(victim.pid(), &["--attach-with", attach_with]);
    let truth = victim.run("rows");
    let reports = probe.finish();
    truth.check(last(&reports));
    last(&reports).check_sums();
    assert_eq!(last(&reports).ledger.lost(), 0, "{}", last(&reports).digest());
    victim.quit();
}

/// Older kernels have no link for many probes; each probe is then a perf event of its own.
#[test]
fn every_row_is_exact_by_perf_events_too() {
    if !doctor::has("cookies") {
        // Refused, and in the verifier's words: this kernel's programs cannot ask for a cookie (before 5.15).
        let victim = Victim::start("semantics", &[]);
        let (code, said) = Probe::launch(&[victim.pid()], &["--attach-with", "perf-event"]).outcome();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("the verifier said:\n") && said.contains("#174"), "{said}");
        victim.quit();
        return;
    }
    check_rows("perf-event");
}

/// The oldest ones hand out no cookies; the programs then look theirs up by address.
#[test]
fn every_row_is_exact_without_cookies_too() {
    check_rows("perf-event-by-address");
}

//! operator new of allocators that have their own: each form to the byte, and exceptions that come through unharmed.

#[cfg(target_arch = "x86_64")]
use leakprobe_tests::compile;
use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::Report;
use leakprobe_tests::skip;
use leakprobe_tests::victim::Victim;

use crate::allocators::{Allocator, JEMALLOC, MIMALLOC, TCMALLOC};
use crate::last;

/// Lets a victim go through phases with the allocator preloaded, and compares the blocks of each site. How many calls of
/// operator new ended by an exception.
fn check(allocator: &Allocator, phases: &[&str], thrown: u64) {
    check_with(&[], allocator, phases, thrown);
}

fn check_with(options: &[&str], allocator: &Allocator, phases: &[&str], thrown: u64) {
    let Some(library) = skip::unless_library(allocator.library, allocator.package) else { return };
    let mut victim = Victim::start_preloaded("operators", &[], &library);
    let probe = Probe::attach(victim.pid(), options);
    let truth = phases.iter().map(|phase| victim.run(phase)).reduce(|before, later| before.then(later));
    let reports = probe.finish();
    let report = last(&reports);
    truth.expect("a phase").check(report);
    check_books(report, allocator, thrown);
    victim.quit();
}

fn check_books(report: &Report, allocator: &Allocator, thrown: u64) {
    assert!(report.sites.iter().all(|site| site.allocator == allocator.name), "{}", report.digest());
    assert!(!report.warnings.iter().any(|warning| warning.kind == "operator_new"), "{:?}", report.warnings);
    assert_eq!(report.ledger.count("thrown"), thrown, "{}", report.digest());
    for lost in ["free_unknown", "missed_free", "return_without_entry", "abandoned"] {
        assert_eq!(report.ledger.count(lost), 0, "{lost}{}", report.digest());
    }
}

#[test]
fn each_form_of_jemallocs_is_exact() {
    check(&JEMALLOC, &["forms 200"], 0);
}

#[test]
fn each_form_of_tcmallocs_is_exact() {
    check(&TCMALLOC, &["forms 200"], 0);
}

#[test]
fn each_form_of_mimallocs_is_exact() {
    check(&MIMALLOC, &["forms 200"], 0);
}

/// Of a program that has its own, which do not come to malloc. On aarch64 their return instructions are not known.
#[cfg(target_arch = "x86_64")]
fn check_own(mut victim: Victim) {
    let probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("forms 200").then(victim.run("throws 300"));
    let reports = probe.finish();
    let report = last(&reports);
    truth.check(report);
    let own = Allocator { name: "operator new", library: "", package: "" };
    check_books(report, &own, 300);
    victim.quit();
}

#[cfg(target_arch = "x86_64")]
#[test]
fn each_form_of_a_programs_own_is_exact() {
    check_own(Victim::start("operators_own", &[]));
}

/// It has no index of its call frame information.
#[cfg(target_arch = "x86_64")]
#[test]
fn each_form_of_a_static_programs_own_is_exact() {
    check_own(Victim::start("operators_own_static", &[]));
}

/// What calls a function that does not come back is the last of its part of the code.
#[cfg(target_arch = "x86_64")]
#[test]
fn each_form_of_a_librarys_own_is_exact() {
    let library = compile::victim("libown_operators.so");
    check_own(Victim::start_preloaded("operators", &[], &library));
}

/// The exception itself is a block, which the C++ library takes while the call is pending.
#[test]
fn what_jemallocs_throws_is_caught() {
    check(&JEMALLOC, &["throws 300", "forms 50"], 300);
}

#[test]
fn what_tcmallocs_throws_is_caught() {
    check(&TCMALLOC, &["throws 300", "forms 50"], 300);
}

/// The handler takes blocks and gives others back while the call is pending that it helps.
#[test]
fn a_handler_helps_jemallocs() {
    check(&JEMALLOC, &["handler 5", "forms 50"], 0);
}

#[test]
fn a_handler_helps_tcmallocs() {
    check(&TCMALLOC, &["handler 5", "forms 50"], 0);
}

/// As on older kernels, where the programs look their cookies up by address: those on return instructions need none.
#[test]
fn both_are_exact_without_cookies() {
    let options = ["--attach-with", "perf-event-by-address"];
    check_with(&options, &JEMALLOC, &["forms 50", "throws 50"], 50);
    check_with(&options, &TCMALLOC, &["forms 50", "throws 50"], 50);
}

/// Each thread throws as often as it takes blocks.
#[test]
fn jemallocs_is_exact_in_threads() {
    check(&JEMALLOC, &["threads 200"], 4 * 200);
}

#[test]
fn tcmallocs_is_exact_in_threads() {
    check(&TCMALLOC, &["threads 200"], 4 * 200);
}

//! C++ and Rust: their ways to take blocks, and names that a reader knows.

use std::path::PathBuf;

use leakprobe_tests::compile;
use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::Report;
use leakprobe_tests::victim::Victim;

use crate::last;

/// No name is left as the linker sees it.
fn check_demangled(report: &Report) {
    for frame in report.sites.iter().flat_map(|site| &site.stack.frames) {
        let mangled = |name: &str| name.starts_with("_Z") || name.starts_with("_R");
        assert!(!frame.function.as_deref().is_some_and(mangled), "{frame:?}");
    }
}

#[test]
fn cpp_is_exact_by_function_and_demangled() {
    let mut victim = Victim::start("cpp", &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("rows");
    let reports = probe.finish();
    let report = last(&reports);
    truth.check(report);
    assert_eq!(truth.sum("blocks"), 30, "the victim's own books");
    assert_eq!(report.ledger.lost(), 0, "{}", report.digest());
    // A virtual call, by its own name, below its caller.
    let circle =
        report.sums_of(&["names::Circle::make(int)", "names::operator_of_one(names::Shape&)", "main"]);
    assert_eq!(circle.bytes, 99, "{}", report.digest());
    check_demangled(report);
    victim.quit();
}

#[test]
fn the_cpp_library_is_exact_in_total() {
    let mut victim = Victim::start("cpp", &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("library");
    let reports = probe.finish();
    truth.check(last(&reports));
    assert_eq!(last(&reports).totals.live_blocks, 11);
    victim.quit();
}

/// Built by cargo with this test, unless victims are built beforehand.
fn rust_victim() -> PathBuf {
    compile::prebuilt(compile::RUST_VICTIM).unwrap_or_else(|| env!("CARGO_BIN_EXE_rust_victim").into())
}

#[test]
fn rust_is_exact_by_function_and_demangled() {
    let mut victim = Victim::start_at(&rust_victim(), &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("rows");
    let reports = probe.finish();
    let report = last(&reports);
    truth.check(report);
    assert_eq!((truth.sum("blocks"), truth.sum("bytes")), (150, 119_048), "the victim's own books");
    assert_eq!(report.ledger.lost(), 0, "{}", report.digest());
    check_demangled(report);
    victim.quit();
}

//! Allocators other than glibc's: each function of theirs, to the byte.

use std::path::PathBuf;
use std::process::Command;

use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::Report;
use leakprobe_tests::victim::Victim;
use leakprobe_tests::{compile, run, skip};

use crate::last;

/// An allocator that comes as a shared library.
pub struct Allocator {
    /// As reports name it.
    pub name: &'static str,
    /// Its file name.
    pub library: &'static str,
    /// Debian's package that it comes in.
    pub package: &'static str,
}

pub const JEMALLOC: Allocator =
    Allocator { name: "jemalloc", library: "libjemalloc.so.2", package: "libjemalloc2" };
pub const TCMALLOC: Allocator =
    Allocator { name: "tcmalloc", library: "libtcmalloc_minimal.so.4", package: "libtcmalloc-minimal4" };
pub const MIMALLOC: Allocator =
    Allocator { name: "mimalloc", library: "libmimalloc.so.2.0", package: "libmimalloc2.0" };

/// Whose every block is.
fn check_names(report: &Report, name: &str) {
    assert!(!report.sites.is_empty(), "{}", report.digest());
    for site in &report.sites {
        assert_eq!(site.allocator, name, "{}", report.digest());
    }
    for lost in ["free_unknown", "missed_free", "abandoned"] {
        assert_eq!(report.ledger.count(lost), 0, "{lost}{}", report.digest());
    }
    assert!(
        !report.warnings.iter().any(|warning| warning.kind == "unknown_allocator"),
        "{:?}",
        report.warnings
    );
}

/// Lets a victim with the allocator preloaded go through its phase and give all back, and compares each function's books.
fn check(allocator: &Allocator, victim: &str, arguments: &[&str], phase: &str) {
    let Some(library) = skip::unless_library(allocator.library, allocator.package) else { return };
    let mut victim = Victim::start_preloaded(victim, arguments, &library);
    let mut probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run(phase);
    let report = probe.next_report();
    truth.check(&report);
    check_names(&report, allocator.name);
    let truth = truth.then(victim.run("release"));
    let reports = probe.finish();
    truth.check(last(&reports));
    assert_eq!(last(&reports).totals.live_blocks, 0, "{}", last(&reports).digest());
    victim.quit();
}

#[test]
fn jemallocs_c_functions_are_exact() {
    check(&JEMALLOC, "semantics", &["preloaded"], "rows");
}

#[test]
fn tcmallocs_c_functions_are_exact() {
    check(&TCMALLOC, "semantics", &["preloaded"], "rows");
}

#[test]
fn mimallocs_c_functions_are_exact() {
    check(&MIMALLOC, "semantics", &["preloaded"], "rows");
}

#[test]
fn jemallocs_own_functions_are_exact() {
    check(&JEMALLOC, "names", &[], "jemalloc");
}

#[test]
fn tcmallocs_own_functions_are_exact() {
    check(&TCMALLOC, "names", &[], "tcmalloc");
}

#[test]
fn mimallocs_own_functions_are_exact() {
    check(&MIMALLOC, "names", &[], "mimalloc");
}

#[test]
fn functions_of_the_names_that_glibc_gave_them_are_exact() {
    for allocator in [&TCMALLOC, &MIMALLOC] {
        check(allocator, "names", &[], "libc");
        check(allocator, "names", &[], "old");
    }
    let mut victim = Victim::start("names", &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("libc");
    let reports = probe.finish();
    truth.check(last(&reports));
    check_names(last(&reports), "glibc");
    victim.quit();
}

/// Allocators that come in no package: one stands in for each, by its names.
fn check_stand_in(library: &str, name: &str, phase: &str) {
    let mut victim = Victim::start_preloaded("names", &[], &compile::victim(library));
    let probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run(phase);
    let reports = probe.finish();
    let report = last(&reports);
    truth.check(report);
    assert!(report.sites.iter().all(|site| site.allocator == name), "{}", report.digest());
    for lost in ["free_unknown", "missed_free", "abandoned"] {
        assert_eq!(report.ledger.count(lost), 0, "{lost}{}", report.digest());
    }
    victim.quit();
}

#[test]
fn the_newer_tcmallocs_functions_are_exact() {
    check_stand_in("libinternal.so", "tcmalloc", "tcmalloc_internal");
}

#[test]
fn a_prefixed_jemallocs_functions_are_exact() {
    check_stand_in("libprefixed.so", "jemalloc (je_)", "je");
}

#[test]
fn the_sized_frees_of_c23_are_exact() {
    check_stand_in("libc23.so", "unknown allocator", "c23");
}

/// Which blocks a heap had is not known: they stay, and that is told.
#[test]
fn a_heap_that_is_destroyed_with_its_blocks_is_told_of() {
    let Some(library) = skip::unless_library(MIMALLOC.library, MIMALLOC.package) else { return };
    let mut victim = Victim::start_preloaded("names", &[], &library);
    let mut probe = Probe::attach(victim.pid(), &[]);
    victim.run("mimalloc");
    let of_heaps = |report: &Report| report.warnings.iter().filter(|w| w.kind == "heap_destroyed").count();
    assert_eq!(of_heaps(&probe.next_report()), 0);
    victim.run("destroy");
    let reports = probe.finish();
    let report = last(&reports);
    assert_eq!(report.ledger.count("heap_destroyed"), 1, "{}", report.digest());
    assert_eq!(of_heaps(report), 1, "{:?}", report.warnings);
    let of_site: u64 = report.sites_of(&["destroy_heaps"]).map(|site| site.live_bytes).sum();
    assert_eq!(of_site, 161 + 162, "{}", report.digest());
    victim.quit();
}

/// A program in C++, whose operators never come to malloc there.
fn check_cpp(allocator: &Allocator, arguments: &[&str]) {
    let Some(library) = skip::unless_library(allocator.library, allocator.package) else { return };
    let mut victim = Victim::start_preloaded("cpp", arguments, &library);
    let probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("rows").then(victim.run("library"));
    let reports = probe.finish();
    let report = last(&reports);
    truth.check(report);
    assert!(report.sites.iter().all(|site| site.allocator == allocator.name), "{}", report.digest());
    // One of its rows throws, if it may.
    let thrown = u64::from(arguments.is_empty());
    assert_eq!(report.ledger.count("thrown"), thrown, "{}", report.digest());
    for lost in ["free_unknown", "missed_free"] {
        assert_eq!(report.ledger.count(lost), 0, "{lost}{}", report.digest());
    }
    victim.quit();
}

#[test]
fn a_program_in_cpp_is_exact_with_jemalloc() {
    check_cpp(&JEMALLOC, &[]);
}

#[test]
fn a_program_in_cpp_is_exact_with_tcmalloc() {
    check_cpp(&TCMALLOC, &[]);
}

/// Debian's is compiled as C, and ends a process where C++'s would throw.
#[test]
fn a_program_in_cpp_is_exact_with_mimalloc() {
    check_cpp(&MIMALLOC, &["calm"]);
}

/// What the pool takes from malloc is not counted again; what the program takes from malloc is malloc's.
#[test]
fn a_pool_is_recorded_by_its_prefix() {
    let mut victim = Victim::start("pool", &[]);
    let probe = Probe::attach(victim.pid(), &["--allocator-prefix", "pool_"]);
    let truth = victim.run("take 4000 100").then(victim.run("plain 50"));
    let reports = probe.finish();
    let report = last(&reports);
    truth.check(report);
    let named =
        |function: &str| report.sites_of(&[function]).map(|site| site.allocator.as_str()).collect::<Vec<_>>();
    assert_eq!(named("plain"), ["glibc"]);
    let of_pool = named("take");
    assert!(!of_pool.is_empty() && of_pool.iter().all(|name| *name == "pool_*"), "{}", report.digest());
    victim.quit();
}

#[test]
fn the_allocators_of_one_object_can_be_recorded_alone() {
    let mut victim = Victim::start("pool", &[]);
    let options = ["--allocator-prefix", "pool_", "--allocator-object", "pool"];
    let probe = Probe::attach(victim.pid(), &options);
    let truth = victim.run("take 400 100");
    victim.run("plain 50");
    let reports = probe.finish();
    let report = last(&reports);
    truth.check(report);
    assert_eq!(report.sites_of(&["plain"]).count(), 0, "{}", report.digest());
    victim.quit();
}

/// A victim compiled for musl.
pub fn with_musl(name: &str, source: &str, options: &[&str]) -> Option<PathBuf> {
    let compiler = skip::unless_installed("musl-gcc", "musl-tools")?;
    let folder = compile::scratch();
    let program = folder.join(format!("{name}-{}", std::process::id()));
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("victims").join(source);
    let mut command = Command::new(compiler);
    command.args([
        "-O1",
        "-g",
        "-w",
        "-fno-builtin",
        "-fno-omit-frame-pointer",
        "-fno-optimize-sibling-calls",
    ]);
    let status = command.args(options).arg("-o").arg(&program).arg(source).status();
    assert!(status.expect("failed to run musl-gcc").success(), "failed to compile {name} for musl");
    Some(program)
}

fn check_musl(name: &str, options: &[&str]) {
    let Some(program) = with_musl(name, "semantics.c", options) else { return };
    let mut victim = Victim::start_at(&program, &["other"]);
    let mut probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("rows");
    let report = probe.next_report();
    truth.check(&report);
    check_names(&report, "musl");
    let truth = truth.then(victim.run("release"));
    let reports = probe.finish();
    truth.check(last(&reports));
    assert_eq!(last(&reports).totals.live_blocks, 0, "{}", last(&reports).digest());
    victim.quit();
    std::fs::remove_file(program).expect("failed to remove a victim");
}

#[test]
fn musls_functions_are_exact() {
    check_musl("musl", &[]);
}

#[test]
fn musls_functions_are_exact_in_a_static_program() {
    check_musl("musl_static", &["-static"]);
}

/// A stripped program in which nothing but the texts of an allocator's messages tells that it is there.
#[test]
fn an_allocator_that_a_stripped_program_hides_is_told_of() {
    let path = compile::scratch().join(format!("hides-{}", std::process::id()));
    let victim = compile::victim("leak_stripped");
    for hides in [false, true] {
        std::fs::copy(&victim, &path).expect("failed to copy a victim");
        if hides {
            let mut bytes = std::fs::read(&path).expect("readable");
            bytes.extend_from_slice(b"\0<jemalloc>: Error\0");
            std::fs::write(&path, bytes).expect("writable");
        }
        let victim = Victim::start_at(&path, &[]);
        let reports = Probe::attach(victim.pid(), &[]).finish();
        let warnings = &last(&reports).warnings;
        let told: Vec<&str> =
            warnings.iter().filter(|w| w.kind == "hidden_allocator").map(|w| w.text.as_str()).collect();
        assert_eq!(told.len(), usize::from(hides), "{warnings:?}");
        assert!(told.iter().all(|text| text.contains("jemalloc") && text.contains("stripped")), "{told:?}");
        victim.quit();
    }
    std::fs::remove_file(path).expect("failed to remove a victim");
}

/// An allocator that is known is recorded with all that it has, however it is asked for.
#[test]
fn a_prefix_of_a_known_allocator_takes_nothing_from_it() {
    let Some(library) = skip::unless_library(MIMALLOC.library, MIMALLOC.package) else { return };
    let mut victim = Victim::start_preloaded("names", &[], &library);
    let probe = Probe::attach(victim.pid(), &["--allocator-prefix", "mi_"]);
    let truth = victim.run("mimalloc");
    let reports = probe.finish();
    truth.check(last(&reports));
    check_names(last(&reports), MIMALLOC.name);
    let unmatched = last(&reports).warnings.iter().filter(|w| w.kind == "prefix_unmatched").count();
    assert_eq!(unmatched, 0, "{:?}", last(&reports).warnings);
    victim.quit();
}

/// Its malloc has no name left, and nothing says where it is.
#[test]
fn a_stripped_static_program_is_refused_with_the_reason() {
    let Some(program) = with_musl("musl_stripped", "semantics.c", &["-static", "-s"]) else { return };
    let victim = Victim::start_at(&program, &["other"]);
    let pid = victim.pid().to_string();
    let ended = run::to_end(&mut run::command(["--pid", &pid, "--duration", "1s"]));
    let file = program.file_name().and_then(|name| name.to_str()).expect("a name in UTF-8");
    // What was looked at and what is the matter with it; what to give leakprobe instead.
    let names = [
        "found no allocator",
        &pid,
        file,
        "stripped",
        "no symbol table",
        "not stripped",
        "--allocator-prefix",
    ];
    ended.check_error(1, &names);
    victim.quit();
    std::fs::remove_file(program).expect("failed to remove a victim");
}

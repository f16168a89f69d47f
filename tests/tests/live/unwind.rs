//! Stacks of programs without frame pointers, held against what the program's own unwinder saw at each allocation.

use std::fs;
use std::path::PathBuf;

use leakprobe_tests::compile;
use leakprobe_tests::hostile::{Flaw, Hostile};
use leakprobe_tests::pace;
use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::{ObjectStacks, Report, Site};
use leakprobe_tests::stacks::{TruthFile, agreeing, differences, reported};
use leakprobe_tests::victim::Victim;

use crate::last;

/// Every site, and room for all of their stacks.
const ALL: [&str; 4] = ["--top", "100000", "--max-stacks", "65536"];

/// A victim that takes blocks, each of another size.
struct Case<'a> {
    name: &'a str,
    phase: &'a str,
    count: u64,
    /// The function that takes them; `None` where no name of the program's is known.
    taker: Option<&'a str>,
    options: &'a [&'a str],
}

impl Case<'_> {
    /// Lets it take `count` blocks, and holds each stack against its own unwinder's.
    fn check(&self) -> Report {
        self.check_of(Victim::start(self.name, &[]))
    }

    /// Of a victim that was started; the last report.
    fn check_of(&self, mut victim: Victim) -> Report {
        let Self { name, phase, count, taker, options } = self;
        let truth = TruthFile::new(&format!("{name}-{phase}"));
        let probe = Probe::attach(victim.pid(), &[&ALL, *options].concat());
        victim.run(&format!("{phase} {count} {}", truth.path().display()));
        let reports = probe.finish();
        let report = last(&reports);
        let (truth, seen) = (truth.read(), reported(report, *taker));
        let (same, all) = agreeing(&truth, &seen);
        let deepest = truth.keys().map(Vec::len).max().unwrap_or(0);
        println!(
            "{name} {phase}: {same} of {all} blocks with the very stack of the victim's own unwinder, {} stacks, the deepest \
             of {deepest} frames",
            truth.len()
        );
        assert!(all >= *count, "{all} blocks");
        assert_eq!(same, all, "\n{}", differences(&truth, &seen));
        // What the loader takes can be walked while its code is described twice, on a machine that holds the walk up.
        let torn = if ["reopened", "namespaces", "closing"].contains(phase) {
            report.ledger.allocations.hits / 1_000
        } else {
            0
        };
        for remark in ["stack_guessed", "stack_lost"] {
            assert!(report.ledger.count(remark) <= torn, "{remark}{}", report.digest());
        }
        for site in &report.sites {
            assert_eq!(site.stack.quality, "whole", "{:?}", site.stack);
        }
        victim.quit();
        report.clone()
    }
}

/// What the victim in C does in a phase.
fn of_c(phase: &str, count: u64) -> Case<'_> {
    Case { name: "unwind", phase, count, taker: Some("take"), options: &[] }
}

/// A folder with a copy of the victim in C and of its library, removed when it goes out of scope.
struct Copied(PathBuf);

impl Copied {
    fn new() -> Self {
        let folder = compile::scratch().join(format!("copied-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("failed to make a folder");
        for name in ["unwind", "libsilent.so"] {
            fs::copy(compile::victim(name), folder.join(name)).expect("failed to copy a victim");
        }
        Self(folder)
    }

    /// Starts it.
    fn start(&self) -> Victim {
        Victim::start_at(&self.0.join("unwind"), &[])
    }

    /// Deletes both files.
    fn delete(&self) {
        for name in ["unwind", "libsilent.so"] {
            fs::remove_file(self.0.join(name)).expect("failed to delete a victim");
        }
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn c_without_frame_pointers_is_exact_frame_by_frame() {
    of_c("stacks", 10_000).check();
}

#[test]
fn code_is_unwound_wherever_a_signal_strikes() {
    of_c("signals", 2_000).check();
}

#[test]
fn what_a_library_allocates_as_soon_as_it_is_opened_is_exact() {
    // Beside the victim, which opens it by its name.
    compile::victim("libopened.so");
    of_c("opened", 1_000).check();
}

const LIBRARIES: [&str; 2] = ["libanother.so", "libopened.so"];

#[test]
fn a_library_in_the_place_of_another_is_unwound_by_its_own_rules() {
    LIBRARIES.iter().for_each(|library| _ = compile::victim(library));
    let report = of_c("reopened", 8).check();
    // By its own name, too: each library's blocks have its frames, and none of the other's.
    let objects = |site: &Site| -> Vec<String> {
        let files = site.stack.frames.iter().filter_map(|frame| frame.object.as_deref()?.rsplit('/').next());
        let mut files: Vec<String> =
            files.filter(|file| LIBRARIES.contains(file)).map(str::to_owned).collect();
        files.dedup();
        files
    };
    let seen = |report: &Report| {
        let of = |site: &Site| (objects(site), site.live_blocks);
        let mut seen: Vec<_> = report.sites_of(&["take"]).map(of).collect();
        seen.sort();
        seen
    };
    // Each is called from two places.
    let [another, opened] = LIBRARIES.map(|library| (vec![library.to_owned()], 4));
    let truth = [another.clone(), another, opened.clone(), opened];
    assert_eq!(seen(&report), truth);
    // What is recorded is one thing, what is watched for the sake of stacks another.
    let options = &["--allocator-object", "libc.so.6"];
    assert_eq!(seen(&Case { options, ..of_c("reopened", 8) }.check()), truth);
}

/// What a container's libraries may carry to keep us busy. There are more of each than are compiled in a turn of the loop.
#[test]
fn hostile_libraries_cost_nobody_but_themselves() {
    const FLAWS: [(&str, Flaw, i64); 5] = [
        ("large", Flaw::TooLarge, 8),
        ("damaged", Flaw::Damaged, 8),
        ("partly", Flaw::PartlyDamaged, 8),
        ("repeated", Flaw::Repeated, 8),
        ("unreadable", Flaw::Unreadable, 2),
    ];
    compile::victim("libopened.so");
    let hostile = Hostile::new();
    for (name, flaw, count) in FLAWS {
        (0..count).for_each(|number| _ = hostile.library(&format!("{name}{number}.so"), flaw));
    }
    let mut victim = Victim::start("unwind", &[]);
    let mut probe = Probe::attach(victim.pid(), &[&ALL[..], &["--verbose"]].concat());
    for (name, _, count) in FLAWS {
        victim.run(&format!("load {count} {}", hostile.path().join(name).display()));
    }
    // Reports go on, and what is opened afterwards has its tables as ever.
    let all_known = |report: &Report| {
        let known = |object: &&ObjectStacks| object.object.contains("/hostile-") && !is_pending(object);
        report.stacks.iter().filter(known).count() as i64
            == FLAWS.iter().map(|(_, _, count)| count).sum::<i64>()
    };
    probe.report_with("all libraries", all_known);
    let truth = TruthFile::new("hostile");
    // First, before the next report: with so many stacks it takes its time, and nothing is looked at meanwhile.
    victim.run(&format!("opened 200 {}", truth.path().display()));
    let mut expected = truth.read();
    victim.run(&format!("stacks 2000 {}", truth.path().display()));
    expected.extend(truth.read());
    let reports = probe.finish();
    let report = last(&reports);
    let (same, all) = agreeing(&expected, &reported(report, Some("take")));
    assert_eq!((same, all), (2200, 2200), "\n{}", differences(&expected, &reported(report, Some("take"))));
    for (name, method, left_out, refused, reason) in [
        ("large", "tables", 0, "its .debug_frame is not used: it takes more than", None),
        ("damaged", "tables", 0, "its .debug_frame is not used: 1001 of its first 1001 functions", None),
        ("partly", "tables", 100_000, "", None),
        ("repeated", "tables", 0, "", None),
        ("unreadable", "frame_pointers", 0, "", Some("its .eh_frame is not used: the index")),
    ] {
        let of_it = |object: &&ObjectStacks| object.object.contains(&format!("/{name}"));
        for object in report.stacks.iter().filter(of_it) {
            assert_eq!((&object.method[..], object.functions_left_out), (method, left_out), "{object:?}");
            let told = object.sections_refused.join("; ");
            assert!(told.starts_with(refused) && told.is_empty() == refused.is_empty(), "{object:?}");
            let why = object.reason.as_deref();
            assert!(
                reason.map_or(why.is_none(), |reason| why.is_some_and(|why| why.starts_with(reason))),
                "{object:?}"
            );
        }
    }
    for (kind, words) in [
        (
            "no_unwind_tables",
            "unreadable0.so follow frame pointers, which it may not have: its .eh_frame is not used",
        ),
        ("functions_left_out", "partly0.so are guessed"),
        ("call_frames_refused", "its .debug_frame is not used"),
    ] {
        let warning = report.warnings.iter().find(|warning| warning.kind == kind);
        assert!(warning.is_some_and(|warning| warning.text.contains(words)), "{:?}", report.warnings);
    }
    victim.quit();
}

/// Whether its tables are to come.
fn is_pending(object: &ObjectStacks) -> bool {
    object.reason.as_deref().is_some_and(|reason| reason == "its tables were not made yet")
}

#[test]
fn what_is_closed_in_another_namespace_is_not_used_for_what_comes_there() {
    LIBRARIES.iter().for_each(|library| _ = compile::victim(library));
    of_c("namespaces", 8).check();
}

#[test]
fn room_for_stacks_of_blocks_that_are_gone_is_given_back() {
    compile::victim("libopened.so");
    let truth = TruthFile::new("unwind-passing");
    let mut victim = Victim::start("unwind", &[]);
    // A quarter of it is for stacks that are unwound once their library is known: 16.
    let mut probe = Probe::attach(victim.pid(), &["--interval", "1s", "--max-stacks", "64", "--top", "100"]);
    for _ in 0..3 {
        victim.run(&format!("passing 12 {}", truth.path().display()));
        // Gone at one report, and at the next one.
        for _ in 0..3 {
            probe.next_report();
        }
    }
    victim.run(&format!("opened 6 {}", truth.path().display()));
    let reports = probe.finish();
    let report = last(&reports);
    let (truth, seen) = (truth.read(), reported(report, Some("take")));
    let (same, all) = agreeing(&truth, &seen);
    assert_eq!((same, all), (6, 6), "\n{}", differences(&truth, &seen));
    assert_eq!(report.ledger.count("stack_map_full"), 0, "{}", report.digest());
    victim.quit();
}

#[test]
fn stacks_beside_a_library_that_is_closed_are_whole() {
    compile::victim("libopened.so");
    of_c("closing", 10_000).check();
}

#[test]
fn cpp_without_frame_pointers_is_exact_frame_by_frame() {
    Case { name: "unwind_cpp", taker: Some("take()"), ..of_c("stacks", 10_000) }.check();
}

#[test]
fn rust_without_frame_pointers_is_exact_frame_by_frame() {
    Case { name: "unwind_rust", taker: Some("unwind::take"), ..of_c("stacks", 10_000) }.check();
}

#[test]
fn stacks_of_a_thread_end_where_it_starts() {
    of_c("thread", pace::share(2_000)).check();
}

/// In procedure linkage tables, the vDSO, the C library and signal trampolines. Where a processor can be told to trap after
/// each instruction by the program itself.
#[test]
#[cfg(target_arch = "x86_64")]
fn each_instruction_is_unwound_in_linkage_tables_and_the_vdso() {
    of_c("steps", 3_000).check();
}

#[test]
fn a_static_program_is_unwound_from_its_main_to_its_start() {
    Case { name: "unwind_static", ..of_c("stacks", pace::share(2_000)) }.check();
}

#[test]
fn a_stripped_program_is_unwound_as_well() {
    Case { name: "unwind_stripped", taker: None, ..of_c("stacks", pace::share(2_000)) }.check();
}

#[test]
fn objects_that_were_deleted_are_unwound_by_what_is_mapped() {
    let copied = Copied::new();
    let victim = copied.start();
    copied.delete();
    of_c("stacks", pace::share(2_000)).check_of(victim);
}

#[test]
fn objects_that_were_replaced_are_unwound_by_what_is_mapped() {
    let copied = Copied::new();
    let victim = copied.start();
    copied.delete();
    // As an upgrade does: other objects under the same names.
    fs::copy(compile::victim("leak"), copied.0.join("unwind")).expect("failed to replace a victim");
    fs::copy(compile::victim("plugin.so"), copied.0.join("libsilent.so"))
        .expect("failed to replace a library");
    of_c("stacks", pace::share(2_000)).check_of(victim);
}

#[test]
fn call_frame_information_alone_is_enough() {
    Case { options: &["--unwind", "dwarf"], ..of_c("stacks", pace::share(2_000)) }.check();
}

#[test]
fn frame_pointers_alone_lose_such_stacks_and_say_so() {
    let truth = TruthFile::new("unwind-by-pointers");
    let mut victim = Victim::start("unwind", &[]);
    let probe = Probe::attach(victim.pid(), &[&ALL[..], &["--unwind", "fp"]].concat());
    victim.run(&format!("stacks {} {}", pace::share(2_000), truth.path().display()));
    let reports = probe.finish();
    let report = last(&reports);
    let (truth, seen) = (truth.read(), reported(report, Some("take")));
    let (same, all) = agreeing(&truth, &seen);
    println!(
        "unwind by frame pointers: {same} of {all} blocks with the very stack of the victim's own unwinder"
    );
    assert!(same * 2 < all, "it has frame pointers");
    let of_take = || report.sites.iter().filter(|site| site.stack.has(&["take"]));
    assert!(
        of_take().count() > 0 && of_take().all(|site| site.stack.quality != "whole"),
        "{}",
        report.digest()
    );
    let marked = ["stack_guessed", "stack_lost", "stack_truncated"].map(|name| report.ledger.count(name));
    assert!(marked.iter().sum::<u64>() >= all, "{marked:?}{}", report.digest());
    victim.quit();
}

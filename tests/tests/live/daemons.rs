//! `--follow`: processes that outlive those who made them, and others that have the number of one that has ended.

use std::fs::OpenOptions;
use std::io::Write as _;

use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::{Report, State};
use leakprobe_tests::victim::Victim;
use leakprobe_tests::{compile, kernel, skip};

use crate::{doctor, last};

/// Its middle process has ended before leakprobe is told of it. In its first moments a kernel before 6.13 may take the probes
/// from such a process; from when it is taken in on it has its own.
#[test]
fn daemons_are_followed_whose_makers_end_at_once() {
    let mut victim = Victim::start("follow", &[]);
    let mut probe = Probe::attach(victim.pid(), &["--follow", "--interval", "300ms"]);
    victim.run("leak 3 10");
    let mut truth = vec![(victim.pid(), 3, 30)];
    for number in 1..=8 {
        let daemon = victim.run(&format!("daemon {} 24", 10 * number)).number("note", "child") as u32;
        truth.push((daemon, 10 * number, 240 * number));
    }
    for &(daemon, ..) in &truth[1..] {
        probe.wait_running(daemon);
    }
    victim.run("start 8");
    let reports = probe.finish();
    let report = last(&reports);
    report.check_processes(&truth);
    assert_eq!(report.ledger.lost(), 0, "{}", report.digest());
    kernel::check_gone();
    victim.quit();
}

/// Their maker yields to each before it ends: the kernel switches from one to the other, and would exchange their events.
#[test]
fn daemons_have_their_probes_from_their_first_moment() {
    const DAEMONS: u64 = 40;
    let mut victim = Victim::start("follow", &[]);
    let mut probe = Probe::attach(victim.pid(), &["--follow"]);
    let mut truth = vec![(victim.pid(), 0, 0)];
    for _ in 0..DAEMONS {
        let daemon = victim.run("hurry 10 24").number("note", "child") as u32;
        truth.push((daemon, 10, 240));
    }
    victim.run(&format!("leaked {DAEMONS}"));
    probe.report_with("all daemons", |report| report.processes.len() == truth.len());
    let reports = probe.finish();
    let report = last(&reports);
    if doctor::has("inherited_guards") {
        assert!(!report.warns("probes_in_doubt"), "{:?}", report.warnings);
        report.check_processes(&truth);
        assert_eq!(report.ledger.lost(), 0, "{}", report.digest());
    } else {
        // Which of them are whole is chance there; that not all may be is said.
        assert!(report.warns("probes_in_doubt"), "{:?}", report.warnings);
    }
    kernel::check_gone();
    victim.quit();
}

/// Its allocator is another one than its maker's: its probes come when leakprobe has looked at it, and by then there are those
/// that it has made.
#[test]
fn what_a_program_makes_before_it_is_looked_at_has_its_probes() {
    const DEPTH: u64 = 4;
    let mut victim = Victim::start("follow", &[]);
    let program = compile::victim("follow_static").display().to_string();
    let mut probe = Probe::attach(victim.pid(), &["--follow", "--interval", "300ms"]);
    // In the first five seconds all that is made is given probes of its own, which the parent's making could have missed.
    probe.report_with("what is not of the first seconds", |report| report.elapsed_seconds > 6.0);
    // It stands still until all are made.
    probe.signal(libc::SIGSTOP);
    victim.run(&format!("descend {DEPTH} 20 30 {program}"));
    probe.signal(libc::SIGCONT);
    let members = DEPTH as usize + 2;
    probe.report_with("all of them", |report| report.processes.len() == members);
    victim.run(&format!("start {}", DEPTH + 1));
    let reports = probe.finish();
    let report = last(&reports);
    let leaked = report.sums_of(&["leak"]);
    assert_eq!((leaked.blocks, leaked.bytes), ((DEPTH + 1) * 20, (DEPTH + 1) * 600), "{}", report.digest());
    // It and what it had made by then have run without them for a while, and how long that was at most is said.
    let late: Vec<&str> = report
        .warnings
        .iter()
        .filter(|warning| warning.kind == "met_late")
        .map(|warning| warning.text.as_str())
        .collect();
    assert_eq!(late.len(), 1, "{late:?}");
    for process in report.processes.iter().filter(|process| process.pid != victim.pid()) {
        let mut numbers = late[0].split(|letter: char| !letter.is_ascii_digit());
        assert!(numbers.any(|number| number == process.pid.to_string()), "{} in {late:?}", process.pid);
    }
    assert!(late[0].contains(" ms at most, is not in this report"), "{late:?}");
    kernel::check_gone();
    victim.quit();
}

#[test]
fn a_child_that_has_the_number_of_an_earlier_one_is_counted_for_itself() {
    const LAST: &str = "/proc/sys/kernel/ns_last_pid";
    let mut victim = Victim::start("follow", &[]);
    let chosen = OpenOptions::new().write(true).open(LAST);
    if let Err(e) = chosen.and_then(|mut file| file.write_all(victim.pid().to_string().as_bytes())) {
        return skip::because(
            "this kernel lets nobody choose the next process number",
            format_args!("{LAST}: {e}"),
        );
    }
    // Before Linux 5.14 (these links came with 5.15) an element of a map is looked up and deleted in two steps: a record that
    // is made in between, in the place of the first child's, goes with it.
    let is_taken_in_one_step = doctor::has("perf_links");
    let mut probe = Probe::attach(victim.pid(), &["--follow", "--interval", "300ms"]);
    victim.run("leak 7 10");
    let child = victim.run("fork").number("note", "child") as u32;
    victim.run("at 0 leak 20 30");
    probe.wait_running(child).check_processes(&[(victim.pid(), 7, 70), (child, 20, 600)]);
    victim.run("end 0");
    assert_eq!(victim.run("again 0").number("note", "child") as u32, child);
    let has_anew = |blocks| {
        move |report: &Report| {
            report.processes.iter().any(|process| {
                process.pid == child && process.state == State::Running && process.live_blocks == blocks
            })
        }
    };
    if !is_taken_in_one_step {
        probe.report_with("the second child", has_anew(0));
    }
    victim.run("at 1 leak 5 40");
    probe.report_with("the second child's blocks", has_anew(5));
    victim.run("at 1 free 9");
    let reports = probe.finish();
    let report = last(&reports);
    // Of the 9, 7 are its copies of its parent's.
    report.check_processes(&[(victim.pid(), 7, 70), (child, 3, 120)]);
    assert_eq!(report.process(child).inherited_freed, 7);
    for name in ["missed_free", "free_unknown"] {
        assert_eq!(report.ledger.count(name), 0, "{name}: {}", report.digest());
    }
    assert_eq!(report.ledger.lost(), 0, "{}", report.digest());
    kernel::check_gone();
    victim.quit();
}

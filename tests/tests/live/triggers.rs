//! `--when-rss` and `--when-growth`: nothing is attached until a line is crossed, and all is counted from then on.

use std::fs;

use leakprobe_tests::cgroup::Group;
use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::State;
use leakprobe_tests::victim::Victim;
use leakprobe_tests::{compile, kernel, run, text};

use crate::{bad_input, last};

const MIB: u64 = 1 << 20;

/// What leakprobe says once it has read what each process has, and waits for more.
const WAITING: &str = "leakprobe: waiting until";

/// Makes the victim grow by 16 MiB and more: malloc writes to the page of every such block.
const GROW: &str = "leak 200000 80";

/// Makes it grow by 80 KiB: far from any line here.
const GROW_A_LITTLE: &str = "leak 1000 80";

/// Resident memory, bytes.
fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).expect("failed to read what it has");
    let pages: u64 = text.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("pages");
    // SAFETY: sysconf takes a number and touches no memory of ours.
    pages * u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).expect("a page's size")
}

/// A line that the process crosses when it grows by 8 MiB.
fn line_above(pid: u32) -> String {
    (resident(pid) + 8 * MIB).to_string()
}

/// Nothing of leakprobe's is in the process, nor in the kernel.
fn check_untouched(pid: u32) {
    assert_eq!(text::patched(pid), [], "the code of process {pid} is as its files say");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("failed to read its mappings");
    assert!(!maps.contains("[uprobes]"), "{maps}");
    // Those of a session before this one may take their time to go.
    kernel::check_gone();
}

/// Lets a victim cross the line, and leak a little more: that alone is counted.
fn check_crossed(mut probe: Probe, mut victim: Victim) {
    let pid = victim.pid();
    probe.wait_said(WAITING);
    check_untouched(pid);
    victim.run(GROW_A_LITTLE);
    check_untouched(pid);
    victim.run(GROW);
    probe.wait_in_place();
    assert!(!text::patched(pid).is_empty(), "probes are in process {pid}");
    victim.run("leak 1234 56");
    let reports = probe.finish();
    let report = last(&reports);
    report.check_processes(&[(pid, 1234, 1234 * 56)]);
    assert_eq!(report.totals.allocated_blocks, 1234, "{}", report.digest());
    assert_eq!(report.sums_of(&["leak", "main"]).blocks, 1234, "{}", report.digest());
    kernel::check_gone();
    victim.quit();
}

#[test]
fn once_resident_memory_has_crossed_the_line_all_is_counted() {
    let victim = Victim::start("leak", &[]);
    let line = line_above(victim.pid());
    let probe = Probe::launch(&[victim.pid()], &["--when-rss", &line]);
    check_crossed(probe, victim);
}

#[test]
fn once_it_has_grown_by_so_much_all_is_counted() {
    let victim = Victim::start("leak", &[]);
    let probe = Probe::launch(&[victim.pid()], &["--when-growth", "8M/1h"]);
    check_crossed(probe, victim);
}

/// All at once, and then no more: it is seen at one look or not at all.
#[test]
fn growth_in_one_burst_is_seen_in_a_window_shorter_than_a_look_takes_otherwise() {
    for window in ["8M/500ms", "8M/1s"] {
        let victim = Victim::start("leak", &[]);
        let probe = Probe::launch(&[victim.pid()], &["--when-growth", window]);
        check_crossed(probe, victim);
    }
}

#[test]
fn a_child_that_crosses_the_line_has_its_parents_profiled_too() {
    let mut victim = Victim::start("follow", &[]);
    let child = victim.run("fork").number("note", "child") as u32;
    let line = line_above(victim.pid());
    let mut probe = Probe::launch(&[victim.pid()], &["--follow", "--when-rss", &line]);
    probe.wait_said(WAITING);
    victim.run("at 0 leak 90000 200");
    probe.wait_in_place();
    victim.run("leak 3 40");
    victim.run("at 0 leak 12 34");
    let reports = probe.finish();
    last(&reports).check_processes(&[(victim.pid(), 3, 120), (child, 12, 408)]);
    victim.quit();
}

#[test]
fn one_whose_main_thread_ends_is_not_waited_for_and_why_is_told() {
    let mut victim = Victim::start("leave", &[]);
    let mut probe = Probe::launch(&[victim.pid()], &["--when-rss", "1T"]);
    probe.wait_said(WAITING);
    victim.run("leave");
    let (code, text) = probe.outcome();
    assert_eq!(code, Some(1), "{text}");
    let why = format!("the main thread of process {} (leave) has ended", victim.pid());
    assert!(text.contains(&why) && !text.contains("the processes have ended"), "{text}");
    assert!(victim.is_alive());
}

#[test]
fn what_crosses_the_line_is_named_as_it_is_then() {
    let mut victim = Victim::start("follow", &[]);
    let line = line_above(victim.pid());
    let mut probe = Probe::launch(&[victim.pid()], &["--when-rss", &line]);
    probe.wait_said(WAITING);
    victim.send(&format!("exec {}", compile::victim("leak").display()));
    victim.wait_ready();
    victim.run(GROW);
    let said = probe.wait_said("leakprobe: process ");
    assert!(said.contains(&format!("{} (leak) has ", victim.pid())), "{said}");
    probe.wait_in_place();
    victim.run("leak 10 20");
    last(&probe.finish()).check_processes(&[(victim.pid(), 10, 200)]);
    victim.quit();
}

#[test]
fn whichever_line_is_crossed_first_counts() {
    let victim = Victim::start("leak", &[]);
    let probe = Probe::launch(&[victim.pid()], &["--when-rss", "1T", "--when-growth", "8M/1h"]);
    check_crossed(probe, victim);
}

#[test]
fn a_line_that_is_behind_it_is_not_waited_for() {
    let mut victim = Victim::start("leak", &[]);
    let mut probe = Probe::launch(&[victim.pid()], &["--when-rss", "4k"]);
    probe.wait_in_place();
    victim.run("leak 10 20");
    last(&probe.finish()).check_processes(&[(victim.pid(), 10, 200)]);
    victim.quit();
}

#[test]
fn one_member_that_crosses_it_has_all_profiled() {
    let Some(group) = Group::make() else { return };
    let (mut one, mut two) = (Victim::start("leak", &[]), Victim::start("leak", &[]));
    let (first, second) = (one.pid(), two.pid());
    group.take(first);
    let line = line_above(first);
    let options = ["--when-rss", &line];
    let mut probe = Probe::launch_to(&["--cgroup", group.argument()], &[first, second], &options);
    probe.wait_said(WAITING);
    // It comes while leakprobe waits.
    group.take(second);
    two.run(GROW);
    probe.wait_in_place();
    one.run("leak 5 10");
    two.run("leak 6 20");
    let reports = probe.finish();
    last(&reports).check_processes(&[(first, 5, 50), (second, 6, 120)]);
    for victim in [one, two] {
        victim.quit();
    }
}

#[test]
fn one_that_ends_while_another_is_waited_for_does_not_end_the_wait() {
    let (one, mut two) = (Victim::start("leak", &[]), Victim::start("leak", &[]));
    let (first, second) = (one.pid(), two.pid());
    let line = line_above(second);
    let mut probe = Probe::launch(&[first, second], &["--when-rss", &line]);
    probe.wait_said(WAITING);
    one.quit();
    check_untouched(second);
    two.run(GROW);
    probe.wait_in_place();
    two.run("leak 9 30");
    let reports = probe.finish();
    let report = last(&reports);
    assert_eq!(report.process(second).state, State::Running);
    assert_eq!(report.totals.live_blocks, 9, "{}", report.digest());
    two.quit();
}

/// The end of a wait: exit code 0, nothing reported, and this said.
fn check_ended(mut probe: Probe, said: &str) {
    let (code, text) = probe.outcome();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(said) && text.contains("nothing was attached"), "{text}");
    assert_eq!(text.lines().count(), 2, "that it waits, and how that ended: {text}");
}

#[test]
fn an_interrupt_ends_the_wait() {
    let victim = Victim::start("leak", &[]);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut probe = Probe::launch(&[victim.pid()], &["--when-rss", "1T"]);
        probe.wait_said(WAITING);
        probe.signal(signal);
        check_ended(probe, "stopped while waiting");
        check_untouched(victim.pid());
    }
    victim.quit();
}

#[test]
fn the_end_of_all_that_is_waited_for_ends_the_wait() {
    let (one, mut two) = (Victim::start("leak", &[]), Victim::start("leak", &[]));
    let mut probe = Probe::launch(&[one.pid(), two.pid()], &["--when-growth", "1T/1h"]);
    probe.wait_said(WAITING);
    one.quit();
    two.kill();
    check_ended(probe, "the processes have ended");
}

#[test]
fn what_could_not_be_profiled_later_is_refused_at_once() {
    // It has no allocator, and runs until it is killed.
    let mut bare = bad_input::start(&compile::victim("bare"));
    let pid = bare.0.id().to_string();
    for line in [["--when-rss", "1T"], ["--when-growth", "1T/1h"]] {
        let ended = run::to_end(&mut run::command(["--pid", &pid].into_iter().chain(line)));
        ended.check_error(1, &["allocator", "bare", &pid]);
    }
    assert!(matches!(bare.0.try_wait(), Ok(None)), "the target lives");
    drop(bare);
    // A process that is not there, and a group without any.
    run::to_end(&mut run::command(["--pid", &pid, "--when-rss", "1T"])).check_error(1, &["no process", &pid]);
    let Some(group) = Group::make() else { return };
    let arguments = ["--cgroup", group.argument(), "--when-rss", "1T"];
    run::to_end(&mut run::command(arguments)).check_error(1, &["no process", group.name()]);
}

//! Many processes: several by number, by control group, by name; members that come, end, and take over each other's number.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use leakprobe_tests::cgroup::{self, Group};
use leakprobe_tests::probe::{self, Probe};
use leakprobe_tests::report::{Report, State};
use leakprobe_tests::victim::Victim;
use leakprobe_tests::{compile, run, skip, text};

use crate::last;

/// A victim under a name of its own; the copy is removed when it goes out of scope.
struct Named(PathBuf);

impl Named {
    fn new(name: &str) -> Named {
        let path = compile::scratch().join(name);
        fs::copy(compile::victim("leak"), &path).expect("failed to copy a victim");
        Named(path)
    }

    fn start(&self) -> Victim {
        Victim::start_at(&self.0, &[])
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A victim that is in the group.
fn start_in(group: &Path) -> Victim {
    let victim = Victim::start("leak", &[]);
    cgroup::take(group, victim.pid());
    victim
}

/// A victim that a shell in the group becomes: it may be met as either, or between them.
fn begin_in(group: &Path) -> Victim {
    let program = compile::victim("leak");
    let words = [group, &program].map(|path| path.to_str().expect("a plain path"));
    let script = "echo $$ > \"$1/cgroup.procs\" && exec \"$2\"";
    Victim::start_at(Path::new("/bin/sh"), &["-c", script, "sh", words[0], words[1]])
}

fn is_exited(report: &Report, pid: u32) -> bool {
    report.processes.iter().any(|process| process.pid == pid && matches!(process.state, State::Exited(_)))
}

/// All sites of `last` come after all others.
fn check_last(report: &Report, last: u32) {
    let pids: Vec<u32> = report.sites.iter().map(|site| site.pid).collect();
    let first = pids.iter().position(|&pid| pid == last).expect("a site of its own");
    assert!(pids[first..].iter().all(|&pid| pid == last), "{pids:?}, of which {last} has exited");
    assert!(first > 0, "sites of others too: {pids:?}");
}

#[test]
fn each_process_of_a_control_group_is_counted_for_itself() {
    let Some(mut group) = Group::make() else { return };
    let below = group.below("worker/deep");
    let mut one = start_in(group.path());
    let mut two = start_in(group.path());
    let mut deep = start_in(&below);
    let mut outside = Victim::start("leak", &[]);
    let pids = [one.pid(), two.pid(), deep.pid(), outside.pid()];
    let mut probe = Probe::attach_to(&["--cgroup", group.argument()], &pids, &[]);
    one.run("leak 300 10");
    two.run("leak 500 20");
    deep.run("leak 40 1000");
    outside.run("leak 9999 30");
    assert_eq!(text::patched(outside.pid()), [], "a process outside of the group is left alone");

    // One that comes, and one that begins there.
    let mut late = Victim::start("leak", &["70", "48"]);
    cgroup::take(&below, late.pid());
    let mut born = begin_in(group.path());
    let (third, fourth) = (late.pid(), born.pid());
    probe.wait_running(third);
    probe.wait_running(fourth);
    late.run("leak 77 100");
    born.run("leak 88 11");
    one.run("leak 1 10");
    let truth = [
        (one.pid(), 301, 3010),
        (two.pid(), 500, 10_000),
        (deep.pid(), 40, 40_000),
        (third, 77, 7700),
        (fourth, 88, 968),
    ];
    probe.next_report().check_processes(&truth);
    let reports = probe.finish();
    let report = last(&reports);
    report.check_processes(&truth);
    assert!(report.processes.iter().all(|process| process.state == State::Running), "{:?}", report.processes);
    assert!(!report.warns("left_out"), "{:?}", report.warnings);
    let later: Vec<_> = report.warnings.iter().filter(|warning| warning.kind == "came_later").collect();
    assert!(later.len() == 1 && later[0].text.starts_with("2 processes came after the start"), "{later:?}");
    assert_eq!(report.ledger.lost(), 0, "{}", report.digest());
    for victim in [one, two, deep, outside, late, born] {
        victim.quit();
    }
}

#[test]
fn a_control_group_is_found_by_the_path_that_proc_shows() {
    let Some(group) = Group::make() else { return };
    let mut victim = start_in(group.path());
    let absolute = format!("/{}", group.name());
    for path in [group.name(), &absolute] {
        let probe = Probe::attach_to(&["--cgroup", path], &[victim.pid()], &[]);
        victim.run("leak 12 34");
        last(&probe.finish()).check_processes(&[(victim.pid(), 12, 12 * 34)]);
    }
    victim.quit();
}

#[test]
fn processes_of_a_name_are_counted_also_those_that_come() {
    // Longer than what the kernel keeps of it.
    let name = format!("twin{}-and-what-is-cut", std::process::id());
    let twin = Named::new(&name);
    let other = Named::new(&format!("else{}", std::process::id()));
    let (mut one, mut two, mut stranger) = (twin.start(), twin.start(), other.start());
    let pids = [one.pid(), two.pid(), stranger.pid()];
    let mut probe = Probe::attach_to(&["--comm", &name], &pids, &[]);
    one.run("leak 300 10");
    two.run("leak 500 20");
    stranger.run("leak 9999 30");
    assert_eq!(text::patched(stranger.pid()), [], "a process of another name is left alone");
    let mut truth = vec![(one.pid(), 300, 3000), (two.pid(), 500, 10_000)];
    let mut late: Vec<Victim> = (0..6).map(|_| twin.start()).collect();
    for (victim, number) in late.iter_mut().zip(1..) {
        probe.wait_running(victim.pid());
        victim.run(&format!("leak {number} 100"));
        truth.push((victim.pid(), number, number * 100));
    }
    probe.next_report().check_processes(&truth);
    let reports = probe.finish();
    last(&reports).check_processes(&truth);
    assert!(!last(&reports).warns("left_out"), "{:?}", last(&reports).warnings);
    for victim in late.into_iter().chain([one, two, stranger]) {
        victim.quit();
    }
}

#[test]
fn a_member_that_ends_stays_in_the_table_behind_those_that_go_on() {
    let Some(group) = Group::make() else { return };
    let mut one = start_in(group.path());
    let mut two = start_in(group.path());
    let (first, second) = (one.pid(), two.pid());
    let mut probe = Probe::attach_to(&["--cgroup", group.argument()], &[second], &[]);
    // It holds the most by far, and leaks no more.
    one.run("leak 3000 1000");
    two.run("leak 50 20");
    one.quit();
    let report = probe.report_with("an exited process", |report| is_exited(report, first));
    let truth = [(first, 3000, 3_000_000), (second, 50, 1000)];
    report.check_processes(&truth);
    check_last(&report, first);
    assert_eq!(report.processes[0].pid, second, "{:?}", report.processes);

    // The group is empty now, and the session goes on.
    two.quit();
    probe.report_with("both exited", |report| is_exited(report, second));
    let mut three = start_in(group.path());
    let third = three.pid();
    probe.wait_running(third);
    three.run("leak 7 30");
    let reports = probe.finish();
    let report = last(&reports);
    report.check_processes(&[(first, 3000, 3_000_000), (second, 50, 1000), (third, 7, 210)]);
    assert_eq!(report.processes[0].pid, third, "{:?}", report.processes);
    assert_eq!(report.sites[0].pid, third, "{}", report.digest());
    assert!(is_exited(report, first) && is_exited(report, second), "{:?}", report.processes);
    three.quit();
}

#[test]
fn a_session_goes_on_when_its_group_is_removed() {
    let Some(mut group) = Group::make() else { return };
    let below = group.below("service");
    let mut victim = start_in(&below);
    let path = below.to_str().expect("a plain path");
    let mut probe = Probe::attach_to(&["--cgroup", path], &[], &[]);
    let pid = victim.pid();
    victim.run("leak 20 30");
    victim.quit();
    probe.report_with("an exited process", |report| is_exited(report, pid));
    fs::remove_dir(&below).expect("a group without processes can be removed");
    probe.next_report();
    // A service that begins anew has the same path.
    fs::create_dir(&below).expect("failed to make a group");
    let mut anew = start_in(&below);
    probe.wait_running(anew.pid());
    anew.run("leak 5 60");
    let reports = probe.finish();
    last(&reports).check_processes(&[(pid, 20, 600), (anew.pid(), 5, 300)]);
    anew.quit();
}

#[test]
fn one_that_is_killed_does_not_touch_the_others_numbers() {
    let mut one = Victim::start("leak", &[]);
    let mut two = Victim::start("leak", &[]);
    let (first, second) = (one.pid(), two.pid());
    let mut probe = Probe::attach_all(&[first, second], &[]);
    // The most, by far.
    one.run("leak 123 4500");
    two.run("leak 500 20");
    one.kill();
    two.run("leak 100 20");
    probe.report_with("an exited process", |report| is_exited(report, first));
    two.run("leak 11 20");
    // `finish` checks the exit status.
    let reports = probe.finish();
    let report = last(&reports);
    report.check_processes(&[(first, 123, 553_500), (second, 611, 12_220)]);
    assert!(is_exited(report, first), "{:?}", report.processes);
    assert_eq!(report.process(second).state, State::Running);
    check_last(report, first);
    two.quit();
}

#[test]
fn without_room_a_member_is_left_out_and_told_of() {
    let Some(group) = Group::make() else { return };
    let victims = [start_in(group.path()), start_in(group.path())];
    let mut victims = victims.map(|victim| (victim.pid(), victim));
    let pids = [victims[0].0, victims[1].0];
    let options = ["--max-processes", "1"];
    let mut probe = Probe::attach_to(&["--cgroup", group.argument()], &pids, &options);
    victims.iter_mut().for_each(|(_, victim)| drop(victim.run("leak 25 40")));
    let report = probe.next_report();
    let [taken] = &report.processes[..] else { panic!("room for one: {:?}", report.processes) };
    let left_out = pids.into_iter().find(|&pid| pid != taken.pid).expect("another one");
    let reports = probe.finish();
    let report = last(&reports);
    report.check_processes(&[(taken.pid, 25, 1000)]);
    let texts: Vec<&str> = report
        .warnings
        .iter()
        .filter(|warning| warning.kind == "left_out")
        .map(|warning| warning.text.as_str())
        .collect();
    let [text] = texts[..] else { panic!("one warning: {:?}", report.warnings) };
    assert!(text.contains(&format!("process {left_out}")) && text.contains("--max-processes"), "{text}");
    for (_, victim) in victims {
        victim.quit();
    }
}

#[test]
fn a_member_is_taken_in_as_soon_as_there_is_room() {
    let Some(group) = Group::make() else { return };
    let [one, other] = [start_in(group.path()), start_in(group.path())];
    let pids = [one.pid(), other.pid()];
    let options = ["--max-processes", "1", "--interval", "1s"];
    let mut probe = Probe::attach_to(&["--cgroup", group.argument()], &pids, &options);
    let first = probe.next_report().processes[0].pid;
    let (first, mut second) = if one.pid() == first { (one, other) } else { (other, one) };
    first.quit();
    probe.wait_running(second.pid());
    second.run("leak 25 40");
    let reports = probe.finish();
    last(&reports).check_processes(&[(second.pid(), 25, 1000)]);
    second.quit();
}

/// A victim with this number, which must be free; `None` after a skip, where the kernel doesn't let numbers be chosen.
fn start_with(pid: u32) -> Option<Victim> {
    const LAST: &str = "/proc/sys/kernel/ns_last_pid";
    // Others may begin at the same time and take it: they end as a rule.
    for _ in 0..500 {
        let chosen = OpenOptions::new().write(true).open(LAST);
        if let Err(e) = chosen.and_then(|mut file| file.write_all((pid - 1).to_string().as_bytes())) {
            skip::because("this kernel lets nobody choose the next process number", format!("{LAST}: {e}"));
            return None;
        }
        let victim = Victim::start("leak", &[]);
        if victim.pid() == pid {
            return Some(victim);
        }
        victim.quit();
    }
    panic!("process number {pid} was never to be had");
}

#[test]
fn a_number_that_is_in_use_again_is_another_process() {
    let Some(group) = Group::make() else { return };
    let mut old = start_in(group.path());
    let mut other = start_in(group.path());
    let (pid, second) = (old.pid(), other.pid());
    let mut probe = Probe::attach_to(&["--cgroup", group.argument()], &[pid, second], &[]);
    old.run("leak 300 10");
    other.run("leak 20 10");
    old.quit();
    probe.report_with("an exited process", |report| is_exited(report, pid));
    let Some(mut new) = start_with(pid) else { return };
    // What it took before it is a member is nobody's.
    new.run("leak 41 50");
    let report = probe.next_report();
    report.check_processes(&[(pid, 300, 3000), (second, 20, 200)]);
    assert!(is_exited(&report, pid), "{:?}", report.processes);

    group.take(pid);
    probe.wait_running(pid);
    new.run("leak 500 60");
    let reports = probe.finish();
    let report = last(&reports);
    report.check_processes(&[(pid, 500, 30_000), (second, 20, 200)]);
    assert_eq!((report.process(pid).programs, &report.process(pid).state), (1, &State::Running));
    new.quit();
    other.quit();
}

/// leakprobe stands still while the number changes hands: it learns of both ends at the same time.
#[test]
fn a_number_that_changes_hands_unseen_mixes_nothing_up() {
    for joins in [true, false] {
        let Some(group) = Group::make() else { return };
        let mut old = start_in(group.path());
        let mut other = start_in(group.path());
        let (pid, second) = (old.pid(), other.pid());
        let mut probe = Probe::attach_to(&["--cgroup", group.argument()], &[second], &[]);
        old.run("leak 300 10");
        other.run("leak 20 10");
        probe.signal(libc::SIGSTOP);
        old.quit();
        let Some(mut new) = start_with(pid) else { return };
        new.run("leak 41 50");
        if joins {
            group.take(pid);
        }
        probe.signal(libc::SIGCONT);
        let truth = if joins {
            probe.wait_running(pid);
            new.run("leak 500 60");
            [(pid, 500, 30_000), (second, 20, 200)]
        } else {
            new.run("leak 500 60");
            probe.report_with("an exited process", |report| is_exited(report, pid));
            [(pid, 300, 3000), (second, 20, 200)]
        };
        let reports = probe.finish();
        let report = last(&reports);
        report.check_processes(&truth);
        assert_eq!(report.process(pid).programs, 1, "{:?}", report.processes);
        assert_eq!(is_exited(report, pid), !joins, "{:?}", report.processes);
        new.quit();
        other.quit();
    }
}

fn leakprobe(arguments: &[&str]) -> run::Ended {
    run::to_end(&mut run::command(arguments))
}

#[test]
fn a_control_group_that_does_not_exist_is_told_with_those_that_may_have_been_meant() {
    let Some(mut group) = Group::make() else { return };
    group.below("webserver.service");
    let wanted = format!("{}/webservre.service", group.name());
    let near = format!("{}/webserver.service", group.name());
    let mount = group.path().parent().expect("a mount").display().to_string();
    leakprobe(&["--cgroup", &wanted]).check_error(1, &["no control group", &wanted, &mount, &near]);
    // A folder that is no group.
    leakprobe(&["--cgroup", "/proc/self"]).check_error(1, &["no control group", "/proc/self"]);
}

#[test]
fn a_control_group_without_processes_is_refused() {
    let Some(mut group) = Group::make() else { return };
    group.below("nobody");
    leakprobe(&["--cgroup", group.argument()]).check_error(1, &["no process", group.name()]);
}

#[test]
fn a_name_of_nobody_is_told_with_those_that_may_have_been_meant() {
    let near = format!("webber{}", std::process::id());
    let there = Named::new(&near);
    let victim = there.start();
    let wanted = near.replace("webber", "weber");
    leakprobe(&["--comm", &wanted]).check_error(1, &["no process of the name", &wanted, &near]);
    assert_eq!(text::patched(victim.pid()), []);
    victim.quit();
}

#[test]
fn a_group_of_threads_is_answered_with_the_one_that_has_their_processes() {
    let Some(mut group) = Group::make() else { return };
    let below = group.below("threads");
    let kind = below.join("cgroup.type");
    if let Err(e) = fs::write(&kind, "threaded") {
        return skip::because("there are no groups of threads here", format_args!("{}: {e}", kind.display()));
    }
    let path = below.to_str().expect("a plain path");
    let above = format!("above it, {};", group.argument());
    leakprobe(&["--cgroup", path]).check_error(1, &[path, &above]);
}

/// leakprobe has taken hold of both, and waits for whoever reads its output.
#[test]
fn one_of_several_that_ends_while_a_session_begins_does_not_end_it() {
    let (one, mut other) = (Victim::start("leak", &[]), Victim::start("leak", &[]));
    let pids = [&one, &other].map(|victim| victim.pid().to_string());
    let pipe = probe::fresh_output();
    let made = Command::new("mkfifo").arg(&pipe).status().expect("failed to run mkfifo");
    assert!(made.success());
    let output = pipe.to_str().expect("a plain path");
    let arguments =
        ["--pid", &pids[0], "--pid", &pids[1], "--duration", "1s", "--format", "json", "--output", output];
    let mut leakprobe =
        run::command(arguments).stderr(Stdio::null()).spawn().expect("failed to start leakprobe");
    let files = format!("/proc/{}/fd", leakprobe.id());
    let held = || {
        let links = fs::read_dir(&files).expect("leakprobe runs").flatten();
        links.filter_map(|entry| fs::read_link(entry.path()).ok())
    };
    let deadline = Instant::now() + run::patience();
    while held().filter(|link| link.to_string_lossy().contains("pidfd")).count() < 2 {
        assert!(Instant::now() < deadline, "leakprobe did not take hold of both");
        thread::sleep(Duration::from_millis(10));
    }
    other.kill();
    let text = fs::read_to_string(&pipe).expect("failed to read its output");
    let status = run::wait(&mut leakprobe, run::patience()).expect("leakprobe ends");
    assert!(status.success(), "{status}: {text}");
    fs::remove_file(&pipe).and_then(|()| fs::write(&pipe, text)).expect("failed to keep its output");
    let reports = probe::final_reports(&pipe);
    let report = last(&reports);
    report.check_processes(&[(one.pid(), 0, 0)]);
    assert!(report.warns("ended"), "{:?}", report.warnings);
    one.quit();
}

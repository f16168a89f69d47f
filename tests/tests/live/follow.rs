//! `--follow`: children, from their first instruction on, and the programs that they execute.

use std::ffi::CString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use leakprobe_tests::cgroup::{self, Group};
use leakprobe_tests::probe::{self, Probe};
use leakprobe_tests::report::{Process, Report, State};
use leakprobe_tests::victim::Victim;
use leakprobe_tests::{compile, elf32, kernel, run, skip, text};

use crate::last;

/// Starts a victim, and leakprobe that follows it.
pub(crate) fn follow(options: &[&str]) -> (Victim, Probe) {
    follow_victim(Victim::start("follow", &[]), options)
}

fn follow_victim(victim: Victim, options: &[&str]) -> (Victim, Probe) {
    let options: Vec<&str> =
        ["--follow", "--interval", "300ms"].into_iter().chain(options.iter().copied()).collect();
    let probe = Probe::attach(victim.pid(), &options);
    (victim, probe)
}

/// Has a victim make a child; its number.
pub(crate) fn child(victim: &mut Victim, command: &str) -> u32 {
    victim.run(command).number("note", "child") as u32
}

/// What a process has from its parent: whose child it is, blocks and bytes, and how many it has given back.
fn inherited(process: &Process) -> (Option<u32>, u64, u64, u64) {
    (process.forked_from, process.inherited_blocks, process.inherited_bytes, process.inherited_freed)
}

pub(crate) fn wait_for(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + run::patience();
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not come in time");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What must hold of a session in which nothing went wrong: nothing is lost, each stack is whole, and nothing is left.
pub(crate) fn check_clean(report: &Report) {
    for name in ["free_unknown", "stack_lost", "stack_guessed"] {
        assert_eq!(report.ledger.count(name), 0, "{name}: {}", report.digest());
    }
    check_complete(report);
}

/// That nothing is lost, and nothing left.
fn check_complete(report: &Report) {
    assert_eq!(report.ledger.lost(), 0, "{}", report.digest());
    for name in ["event_lost", "child_lost"] {
        assert_eq!(report.ledger.count(name), 0, "{name}: {}", report.digest());
    }
    assert!(!report.warns("left_out"), "{:?}", report.warnings);
    kernel::check_gone();
    assert_eq!(kernel::events(), [""; 0], "events are left");
}

#[test]
fn a_child_has_a_copy_of_its_parents_blocks_and_its_own() {
    let (mut victim, mut probe) = follow(&[]);
    let parent = victim.pid();
    victim.run("leak 500 100");
    let child = child(&mut victim, "fork");
    victim.run("at 0 free 200");
    victim.run("at 0 leak 50 24");
    // The parent's copies of what the child has given back, and others.
    victim.run("free 100");
    let truth = [(parent, 400, 40_000), (child, 50, 1200)];
    let report = probe.wait_running(child);
    report.check_processes(&truth);
    assert_eq!(inherited(report.process(child)), (Some(parent), 500, 50_000, 200));
    assert_eq!(inherited(report.process(parent)), (None, 0, 0, 0));
    victim.run("at 0 free 350");
    let reports = probe.finish();
    let report = last(&reports);
    report.check_processes(&[(parent, 400, 40_000), (child, 0, 0)]);
    assert_eq!(inherited(report.process(child)), (Some(parent), 500, 50_000, 500));
    assert_eq!(report.ledger.count("free_inherited"), 500, "{}", report.digest());
    assert_eq!(report.ledger.count("freed"), 150, "{}", report.digest());
    check_clean(report);
    victim.quit();
}

#[test]
fn children_of_children_are_counted_from_their_first_instruction_on() {
    let (mut victim, mut probe) = follow(&[]);
    victim.run("leak 10 10");
    let one = child(&mut victim, "fork");
    victim.run("at 0 leak 20 20");
    let two = child(&mut victim, "at 0 fork");
    victim.run("at 0 at 0 leak 30 30");
    let three = child(&mut victim, "at 0 at 0 fork");
    victim.run("at 0 at 0 at 0 leak 40 40");
    let truth = [(victim.pid(), 10, 100), (one, 20, 400), (two, 30, 900), (three, 40, 1600)];
    let report = probe.report_with("four processes", |report| report.processes.len() == 4);
    report.check_processes(&truth);
    let reports = probe.finish();
    let report = last(&reports);
    report.check_processes(&truth);
    assert_eq!(inherited(report.process(three)), (Some(two), 30, 900, 0));
    assert_eq!(report.sums_of(&["leak", "serve"]).blocks, 100, "{}", report.digest());
    check_clean(report);
    for pid in [victim.pid(), one, two, three] {
        text::check_whole(pid);
    }
    victim.quit();
}

/// As before Linux 5.15.
#[test]
fn children_are_followed_where_probes_carry_no_cookies() {
    let (mut victim, mut probe) = follow(&["--attach-with", "perf-event-by-address"]);
    victim.run("leak 10 10");
    let one = child(&mut victim, "fork");
    victim.run("at 0 leak 20 20");
    victim.run("at 0 free 4");
    let two = child(&mut victim, "fork");
    victim.run(&format!("at 1 exec {}", compile::victim("leak").display()));
    victim.run("at 1 leak 30 30");
    let truth = [(victim.pid(), 10, 100), (one, 20, 400), (two, 30, 900)];
    let report = probe.report_with("three processes", |report| report.processes.len() == 3);
    report.check_processes(&truth);
    let reports = probe.finish();
    last(&reports).check_processes(&truth);
    assert_eq!(last(&reports).process(one).inherited_freed, 4);
    check_clean(last(&reports));
    victim.quit();
}

#[test]
fn children_that_were_there_before_are_taken_in() {
    let mut victim = Victim::start("follow", &[]);
    let one = child(&mut victim, "fork");
    let two = child(&mut victim, "at 0 fork");
    victim.run("at 0 at 0 leak 5 5");
    let (mut victim, probe) = follow_victim(victim, &[]);
    victim.run("leak 10 10");
    victim.run("at 0 leak 20 20");
    victim.run("at 0 at 0 leak 30 30");
    // As one that is made now.
    let three = child(&mut victim, "at 0 at 0 fork");
    victim.run("at 0 at 0 at 0 leak 40 40");
    let reports = probe.finish();
    let truth = [(victim.pid(), 10, 100), (one, 20, 400), (two, 30, 900), (three, 40, 1600)];
    last(&reports).check_processes(&truth);
    assert_eq!(inherited(last(&reports).process(three)), (Some(two), 30, 900, 0));
    check_clean(last(&reports));
    victim.quit();
}

#[test]
fn workers_of_a_server_come_and_go() {
    let (mut victim, mut probe) = follow_victim(Victim::start("follow", &["threads"]), &[]);
    let master = victim.pid();
    victim.run("leak 7 1000");
    let mut truth = vec![(master, 7, 7000)];
    for number in 0..4 {
        let worker = child(&mut victim, if number % 2 == 0 { "fork" } else { "thread" });
        victim.run(&format!("at {number} leak {} 48", 100 + number));
        truth.push((worker, 100 + number, 48 * (100 + number)));
    }
    probe.report_with("five processes", |report| report.processes.len() == 5).check_processes(&truth);
    // Two go, one of them by force, and others take their place.
    victim.run("end 1");
    victim.run("kill 2");
    for number in 4..6 {
        let worker = child(&mut victim, if number % 2 == 0 { "fork" } else { "thread" });
        victim.run(&format!("at {number} leak {} 48", 100 + number));
        truth.push((worker, 100 + number, 48 * (100 + number)));
    }
    probe.report_with("seven processes", |report| report.processes.len() == 7);
    victim.run("at 0 leak 1 48");
    truth[1].1 += 1;
    truth[1].2 += 48;
    let reports = probe.finish();
    let report = last(&reports);
    report.check_processes(&truth);
    let ended = |pid| matches!(report.process(pid).state, State::Exited(_));
    let states: Vec<bool> = truth.iter().map(|&(pid, ..)| ended(pid)).collect();
    assert_eq!(states, [false, false, true, true, false, false, false], "{:?}", report.processes);
    check_clean(report);
    victim.quit();
}

#[test]
fn programs_that_are_executed_are_counted_from_the_start() {
    let (mut victim, mut probe) = follow(&[]);
    let parent = victim.pid();
    victim.run("leak 500 100");
    // Itself, another program with the same libc, and one with a libc in it, which has allocated before it is seen.
    let same = child(&mut victim, "fork");
    victim.run("at 0 leak 33 44");
    victim.run(&format!("at 0 exec {}", compile::victim("follow").display()));
    victim.run("at 0 leak 70 33");
    let other = child(&mut victim, "fork");
    victim.run(&format!("at 1 exec {}", compile::victim("leak").display()));
    victim.run("at 1 leak 80 10");
    let truth = [(parent, 500, 50_000), (same, 70, 2310), (other, 80, 800)];
    probe.report_with("three processes", |report| report.processes.len() == 3).check_processes(&truth);
    let reports = probe.finish();
    let report = last(&reports);
    report.check_processes(&truth);
    assert_eq!(inherited(report.process(same)), (Some(parent), 0, 0, 0));
    assert_eq!((report.process(same).programs, report.process(parent).programs), (2, 1));
    assert_eq!(report.ledger.count("exec_dropped"), 33, "{}", report.digest());
    check_clean(report);
    victim.quit();
}

#[test]
fn a_program_with_another_libc_is_probed_when_it_is_met() {
    let (mut victim, mut probe) = follow(&[]);
    let other = child(&mut victim, "fork");
    victim.run(&format!("at 0 exec {}", compile::victim("follow_static").display()));
    probe.wait_running(other);
    victim.run("at 0 leak 80 10");
    // Its own children have its probes.
    let below = child(&mut victim, "at 0 fork");
    victim.run("at 0 at 0 leak 5 6");
    probe.wait_running(below);
    let reports = probe.finish();
    last(&reports).check_processes(&[(victim.pid(), 0, 0), (other, 80, 800), (below, 5, 30)]);
    check_clean(last(&reports));
    victim.quit();
}

#[test]
fn the_session_goes_on_until_the_last_child_has_ended() {
    let (mut victim, mut probe) = follow(&[]);
    let parent = victim.pid();
    victim.run("leak 3 10");
    let below = child(&mut victim, "orphan 20 10");
    victim.kill();
    let ended = |report: &Report| matches!(report.process(parent).state, State::Exited(_));
    let report = probe.report_with("the parent's end", ended);
    report.check_processes(&[(parent, 3, 30), (below, 20, 200)]);
    let reports = probe.end();
    last(&reports).check_processes(&[(parent, 3, 30), (below, 40, 400)]);
    assert!(last(&reports).processes.iter().all(|process| process.state != State::Running));
    check_clean(last(&reports));
}

#[test]
fn an_allocator_that_comes_with_an_exec_is_told_of() {
    let (mut victim, mut probe) = follow(&[]);
    child(&mut victim, "fork");
    // It has the same C library, and its probes from the beginning.
    victim.run(&format!("at 0 exec {}", compile::victim("follow").display()));
    victim.run("at 0 leak 30 8");
    let report = probe.next_report();
    assert!(!report.warns("met_late"), "{:?}", report.warnings);
    victim.run(&format!("at 0 exec {}", compile::victim("follow_static").display()));
    victim.run("at 0 leak 30 8");
    let text = "follow_static came to process";
    let is_told = |report: &Report| report.warnings.iter().any(|warning| warning.text.contains(text));
    probe.report_with("the allocator of a static program", is_told);
    probe.finish();
    victim.quit();
}

/// The kernel binds a link to its process's first thread, which is gone then.
#[test]
fn a_program_that_another_thread_executes_is_probed_anew() {
    let program = compile::victim("follow").display().to_string();
    let mut victim = Victim::start("follow", &[]);
    let one = child(&mut victim, "fork");
    let mut probe = Probe::attach(one, &[]);
    for round in 1..=3 {
        victim.run("at 0 leak 500 10");
        victim.run(&format!("at 0 replace {program}"));
        let is_seen = |report: &Report| report.process(one).programs == 1 + round && report.warns("met_late");
        probe.report_with("the next program", is_seen);
    }
    victim.run("at 0 leak 30 8");
    let reports = probe.finish();
    last(&reports).check_processes(&[(one, 30, 240)]);
    victim.quit();
}

#[test]
fn so_it_is_where_children_are_followed() {
    let (mut victim, mut probe) = follow(&[]);
    let program = compile::victim("follow").display().to_string();
    let one = child(&mut victim, "fork");
    for round in 1..=3 {
        victim.run("at 0 leak 500 10");
        victim.run(&format!("at 0 replace {program}"));
        let is_seen = |report: &Report| {
            report.processes.iter().any(|process| process.pid == one && process.programs == 1 + round)
        };
        probe.report_with("the next program", is_seen);
    }
    victim.run("at 0 leak 30 8");
    let below = child(&mut victim, "at 0 fork");
    victim.run("at 0 at 0 leak 7 9");
    let reports = probe.finish();
    let report = last(&reports);
    report.check_processes(&[(victim.pid(), 0, 0), (one, 30, 240), (below, 7, 63)]);
    assert!(report.warns("met_late"), "{:?}", report.warnings);
    check_clean(report);
    victim.quit();
}

#[test]
fn the_second_program_with_another_libc_has_its_probes_from_the_start() {
    check_second_program(&[]);
}

#[test]
fn so_it_has_where_probes_carry_no_cookies() {
    check_second_program(&["--attach-with", "perf-event-by-address"]);
}

fn check_second_program(options: &[&str]) {
    let (mut victim, mut probe) = follow(options);
    let program = compile::victim("follow_static").display().to_string();
    // From a child, whose parent is to make the next one.
    let first = child(&mut victim, "fork");
    victim.run(&format!("at 0 exec {program}"));
    probe.wait_running(first);
    let met = probe.next_report().warnings.iter().filter(|warning| warning.kind == "met_late").count();
    assert_eq!(met, 1);
    for _ in 0..5 {
        victim.run(&format!("spawn {program}"));
    }
    // Each takes 60 blocks of 20 bytes as soon as it runs, beside what its libc takes before.
    let reports = probe.finish();
    let report = last(&reports);
    let leaked = report.sums_of(&["leak"]);
    assert_eq!((leaked.blocks, leaked.bytes), (5 * 60, 5 * 60 * 20), "{}", report.digest());
    // Only the first one was met late.
    let late: Vec<_> = report.warnings.iter().filter(|warning| warning.kind == "met_late").collect();
    assert!(late.len() == 1 && late[0].text.contains(&format!("process {first} by an exec")), "{late:?}");
    check_clean(report);
    victim.quit();
}

#[test]
fn a_childs_heap_grows_from_where_its_parents_was() {
    let (mut victim, probe) = follow(&["--mmap"]);
    victim.run("grow 5");
    child(&mut victim, "fork");
    victim.run("at 0 grow 7");
    let reports = probe.finish();
    let report = last(&reports);
    let mapped = report.sites.iter().filter(|site| site.kind == "mapping");
    let grown: Vec<u64> = mapped.map(|site| site.live_bytes / 4096).collect();
    assert_eq!(grown, [7, 5], "{}", report.digest());
    victim.quit();
}

#[test]
fn short_lived_children_are_in_the_ledger_and_leave_nothing() {
    const CHILDREN: u64 = 500;
    // Of stacks, there is room for those of a few dozen children.
    let (mut victim, mut probe) = follow(&["--max-processes", "20", "--max-stacks", "200"]);
    victim.run("leak 100 10");
    for _ in 0..10 {
        victim.run(&format!("bomb {} 40 30", CHILDREN / 10));
        probe.next_report();
    }
    let report = probe.next_report();
    assert!(report.processes.len() <= 20, "{} processes are kept", report.processes.len());
    victim.run("free 25");
    let reports = probe.finish();
    let report = last(&reports);
    let row = report.process(victim.pid());
    assert_eq!((row.live_blocks, row.live_bytes), (75, 750), "{}", report.digest());
    assert_eq!(report.ledger.allocations.hits, 100 + CHILDREN * 40, "{}", report.digest());
    assert_eq!(report.ledger.count("recorded"), 100 + CHILDREN * 40, "{}", report.digest());
    assert_eq!(report.ledger.frees.hits, 25 + CHILDREN * 30, "{}", report.digest());
    assert_eq!(report.ledger.count("freed"), 25, "{}", report.digest());
    assert_eq!(report.ledger.count("free_inherited"), CHILDREN * 30, "{}", report.digest());
    assert_eq!(report.totals.allocated_blocks, 100 + CHILDREN * 40, "{}", report.digest());
    assert_eq!(report.ledger.count("stack_map_full"), 0, "{}", report.digest());
    check_clean(report);
    victim.quit();
}

#[test]
fn a_child_of_vfork_is_counted_from_its_program_on() {
    let (mut victim, probe) = follow(&[]);
    victim.run("leak 4 10");
    victim.run(&format!("spawn {}", compile::victim("follow").display()));
    let reports = probe.finish();
    let report = last(&reports);
    assert_eq!((report.totals.live_blocks, report.totals.live_bytes), (64, 1240), "{}", report.digest());
    assert_eq!(report.process(victim.pid()).live_blocks, 4);
    check_clean(report);
    victim.quit();
}

#[test]
fn a_shells_commands_are_followed() {
    const SHELL: &str = "/bin/sh";
    let code = fs::read(SHELL).expect("a shell");
    if !code.windows(10).any(|name| name == b"/ld-linux-") {
        skip::because("the shell has no shared C library that it and its commands have in common", SHELL);
        return;
    }
    let program = compile::victim("follow").display().to_string();
    let script = format!("{program} 30 10; {program} 20 40; true; exit 3");
    let output = probe::fresh_output();
    let mut arguments = probe::arguments(&output, &["--follow", "--", "/bin/sh", "-c", &script]);
    // The command comes last.
    arguments.retain(|word| word != "--follow");
    arguments.insert(0, "--follow".to_owned());
    let ended = run::to_end(&mut run::command(&arguments));
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    let reports = probe::final_reports(&output);
    let report = last(&reports);
    let of_victims = report.sums_of(&["leak", "main"]);
    assert_eq!((of_victims.blocks, of_victims.bytes), (50, 1100), "{}", report.digest());
    check_clean(report);
    let _ = fs::remove_file(&output);
}

#[test]
fn a_child_that_is_a_member_anyhow_is_taken_in_once() {
    let Some(group) = Group::make() else { return };
    let mut victim = Victim::start("follow", &[]);
    cgroup::take(group.path(), victim.pid());
    let options = ["--follow", "--interval", "300ms"];
    let mut probe = Probe::attach_to(&["--cgroup", group.argument()], &[victim.pid()], &options);
    victim.run("leak 5 10");
    let mut truth = vec![(victim.pid(), 5, 50)];
    for number in 0..8 {
        let child = child(&mut victim, "fork");
        victim.run(&format!("at {number} leak {} 10", number + 1));
        truth.push((child, number + 1, 10 * (number + 1)));
        std::thread::sleep(Duration::from_millis(130));
    }
    probe.report_with("nine processes", |report| report.processes.len() == 9).check_processes(&truth);
    let reports = probe.finish();
    last(&reports).check_processes(&truth);
    check_clean(last(&reports));
    victim.quit();
}

#[test]
fn without_room_a_child_is_left_out_and_told_of() {
    let (mut victim, mut probe) = follow(&["--max-processes", "2"]);
    let one = child(&mut victim, "fork");
    probe.wait_running(one);
    let two = child(&mut victim, "fork");
    victim.run("at 1 leak 9 9");
    let reports = [probe.report_with("a child that is left out", |report| report.warns("left_out"))];
    let report = last(&reports);
    assert!(report.processes.iter().all(|process| process.pid != two), "{:?}", report.processes);
    let text = &report.warnings.iter().find(|warning| warning.kind == "left_out").expect("a warning").text;
    assert!(text.contains(&format!("process {two}")) && text.contains("--max-processes"), "{text}");
    let reports = probe.finish();
    last(&reports).check_processes(&[(victim.pid(), 0, 0), (one, 0, 0)]);
    victim.quit();
}

/// Its blocks cannot be recorded; those of the program that it starts are.
#[test]
fn a_32_bit_program_of_a_child_is_left_out_and_what_it_starts_is_not() {
    let Some(path) = elf32::pausing("start32") else { return };
    let held = format!("{}.held", path.display());
    let name = CString::new(held.as_str()).expect("no NUL");
    // SAFETY: a NUL-terminated string and an integer.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0, "{held}");
    elf32::starting(&path, &[&compile::victim("follow").display().to_string(), "30", "10"], &held);
    let (mut victim, mut probe) = follow(&[]);
    victim.send(&format!("spawn {}", path.display()));
    let is_32_bit = |process: &&Process| process.name.starts_with("start32");
    probe.report_with("a 32-bit program", |report| {
        report.warns("left_out") && report.processes.iter().any(|process| is_32_bit(&process))
    });
    // Which fails as long as nobody reads.
    let open = || fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&held);
    wait_for(|| open().is_ok());
    victim.wait_done();
    let reports = probe.finish();
    let report = last(&reports);
    let of_victim = report.sums_of(&["leak", "main"]);
    assert_eq!((of_victim.blocks, of_victim.bytes), (30, 300), "{}", report.digest());
    let row = report.processes.iter().find(is_32_bit).expect("a row");
    assert_eq!((row.live_blocks, row.live_bytes), (0, 0));
    let text = format!("process {} ({}) is a 32-bit program", row.pid, row.name);
    let left_out: Vec<_> = report.warnings.iter().filter(|warning| warning.kind == "left_out").collect();
    assert!(left_out.len() == 1 && left_out[0].text.contains(&text), "{:?}", report.warnings);
    for kind in ["no_unwind_tables", "no_allocator", "met_late"] {
        assert!(!report.warns(kind), "{:?}", report.warnings);
    }
    kernel::check_gone();
    victim.quit();
    for file in [&held, &path.display().to_string()] {
        let _ = fs::remove_file(file);
    }
}

/// A master process with workers, started under leakprobe.
#[test]
fn workers_of_nginx_are_each_listed() {
    let Some(program) = skip::unless_installed("nginx", "nginx") else { return };
    let folder = compile::scratch().join(format!("nginx.{}", std::process::id()));
    fs::create_dir_all(&folder).expect("failed to make a folder");
    let place = folder.display();
    let settings = format!(
        "daemon off; worker_processes 4; pid {place}/pid; error_log {place}/error; \
         events {{ }} http {{ access_log off; client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; \
         fastcgi_temp_path {place}/fastcgi; uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi; \
         server {{ listen unix:{place}/socket; return 200 hello; }} }}"
    );
    let file = folder.join("nginx.conf").display().to_string();
    fs::write(&file, settings).expect("failed to write a file");
    let mut nginx = Command::new(program).args(["-c", &file]).spawn().expect("failed to start nginx");
    let master = nginx.id();
    let workers = |report: &Report| {
        let of_master = report.processes.iter().filter(|process| process.forked_from == Some(master));
        of_master.filter(|process| process.state == State::Running).count()
    };
    wait_for(|| folder.join("socket").exists());
    let mut probe = Probe::attach(master, &["--follow", "--interval", "300ms"]);
    // New workers take the place of those that were there before.
    // SAFETY: two integers; nginx was not waited for yet.
    assert_eq!(unsafe { libc::kill(master as i32, libc::SIGHUP) }, 0);
    let report = probe.report_with("four workers", |report| workers(report) == 4);
    assert_eq!(report.process(master).forked_from, None);
    for _ in 0..100 {
        let mut stream = UnixStream::connect(folder.join("socket")).expect("nginx listens");
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.ends_with("hello"), "{answer}");
    }
    let report = probe.next_report();
    let serving = report.processes.iter().filter(|process| process.forked_from == Some(master));
    assert!(serving.map(|process| process.live_blocks).sum::<u64>() > 0, "{}", report.digest());
    // SAFETY: as above. The workers end with it.
    assert_eq!(unsafe { libc::kill(master as i32, libc::SIGTERM) }, 0);
    nginx.wait().expect("nginx ends");
    let reports = probe.end();
    // A worker opens libraries as soon as it is made: stacks may be walked before these are known.
    check_complete(last(&reports));
    let _ = fs::remove_dir_all(&folder);
}

//! Bad input: one clear line that names the thing, the right exit code, and a target that is left alone.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::Warning;
use leakprobe_tests::victim::Victim;
use leakprobe_tests::{compile, elf32, pace, probe, run, skip, text};

use crate::last;

/// An unprivileged user: `nobody` on Debian; whether it has a name doesn't matter.
const NOBODY: u32 = 65534;

/// A child that is killed and waited for when the test ends, however it ends.
pub struct Held(pub Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program that is given no input.
pub fn start(program: &PathBuf) -> Held {
    let child = Command::new(program).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    Held(child.unwrap_or_else(|e| panic!("failed to start {}: {e}", program.display())))
}

fn leakprobe(arguments: &[&str]) -> run::Ended {
    run::to_end(&mut run::command(arguments))
}

/// leakprobe on a process: an error with exit code 1 that names the process and each of `names`.
fn check_refused(pid: u32, names: &[&str]) {
    let pid = pid.to_string();
    let names: Vec<&str> = names.iter().copied().chain([pid.as_str()]).collect();
    leakprobe(&["--pid", &pid, "--duration", "1s"]).check_error(1, &names);
}

#[test]
fn no_such_process() {
    let most: u32 =
        fs::read_to_string("/proc/sys/kernel/pid_max").expect("pid_max").trim().parse().expect("a number");
    let unused =
        (2..most).rev().find(|pid| fs::metadata(format!("/proc/{pid}")).is_err()).expect("a free number");
    check_refused(unused, &["no process"]);
}

#[test]
fn what_is_no_process_number_is_a_usage_error() {
    for word in ["0", "-1", "x", "4294967296", ""] {
        let ended = leakprobe(&[&format!("--pid={word}")]);
        assert_eq!(ended.status.code(), Some(2), "{word:?}: {ended:?}");
        assert!(ended.stderr.contains("--pid"), "{ended:?}");
    }
}

#[test]
fn a_kernel_thread() {
    // PF_KTHREAD in the flags, the 9th field of /proc/PID/stat: the 7th after the name in parentheses.
    let is_kernel_thread = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let flags = stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().nth(6));
        flags.and_then(|flags| flags.parse::<u64>().ok()).is_some_and(|flags| flags & 0x0020_0000 != 0)
    };
    let Some(pid) = (2..1000).find(is_kernel_thread) else {
        skip::because(
            "this PID namespace has no kernel threads",
            "/proc shows no process below 1000 with PF_KTHREAD set",
        );
        return;
    };
    check_refused(pid, &["kernel thread"]);
}

#[test]
fn a_zombie() {
    let mut child = Held(Command::new("true").spawn().expect("failed to start true"));
    let pid = child.0.id();
    let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    while !state().contains(") Z ") {
        std::thread::yield_now();
    }
    check_refused(pid, &["zombie"]);
    assert!(child.0.wait().expect("a child").success());
}

#[test]
fn a_32_bit_process() {
    let Some(path) = elf32::pausing("pause32") else { return };
    let child = start(&path);
    let _ = fs::remove_file(&path);
    check_refused(child.0.id(), &["32-bit"]);
}

#[test]
fn a_process_without_an_allocator() {
    let program = compile::victim("bare");
    let mut child = start(&program);
    // The objects that were searched are named: here there is only the program itself.
    check_refused(child.0.id(), &["allocator", "bare"]);
    assert!(matches!(child.0.try_wait(), Ok(None)), "the target lives");
    text::check_whole(child.0.id());
}

#[test]
fn not_root() {
    // Copies where everybody may look: the build's own folder may be closed to others.
    let folder = std::env::temp_dir().join(format!("leakprobe-test.{}", std::process::id()));
    fs::create_dir_all(&folder).expect("failed to make a folder");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("failed to open a folder");
    let (tool, target) = (folder.join("leakprobe"), folder.join("leak"));
    fs::copy(run::leakprobe(), &tool).expect("failed to copy leakprobe");
    fs::copy(compile::victim("leak"), &target).expect("failed to copy a victim");

    // The target is the same user's: it is not the target that asks for root.
    let mut victim = Victim::start_as(NOBODY, &target);
    let pid = victim.pid().to_string();
    let mut command = Command::new(&tool);
    command.args(["--pid", &pid, "--duration", "1s"]).uid(NOBODY).gid(NOBODY).current_dir("/");
    let ended = run::to_end(&mut command);
    let untouched = text::patched(victim.pid());
    fs::remove_dir_all(&folder).expect("failed to remove a folder");
    ended.check_error(1, &["CAP_BPF", "CAP_PERFMON", "root"]);
    assert_eq!(untouched, []);
    assert!(victim.is_alive());
    victim.quit();
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_the_run() {
    let victim = Victim::start("leak", &[]);
    let pid = victim.pid().to_string();
    let nowhere = compile::scratch().join("no/such/folder/report.json").display().to_string();
    let folder = compile::scratch().display().to_string();
    for path in [nowhere, folder] {
        let ended = leakprobe(&["--pid", &pid, "--output", &path]);
        ended.check_error(1, &[&path]);
        assert!(!ended.stderr.contains("probes in place"), "{ended:?}");
    }
    // Nor is a command started.
    let mark = compile::scratch().join(format!("mark.{}", std::process::id())).display().to_string();
    leakprobe(&["--output", "/no/such/folder/x", "--", "touch", &mark])
        .check_error(1, &["/no/such/folder/x"]);
    assert!(fs::metadata(&mark).is_err(), "the command was run");
    text::check_whole(victim.pid());
    victim.quit();
}

#[test]
fn usage_errors_end_with_2_and_attach_nothing() {
    let mut victim = Victim::start("leak", &[]);
    let pid = victim.pid().to_string();
    let cases: &[(&[&str], &str)] = &[
        (&["--min-size", "4k", "--max-size", "64"], "--min-size"),
        (&["--interval", "soon"], "--interval"),
        (&["--interval", "0s"], "--interval"),
        (&["--older=-5s"], "--older"),
        (&["--top", "0"], "--top"),
        (&["--max-blocks", "0"], "--max-blocks"),
        (&["--max-stacks", "many"], "--max-stacks"),
        (&["--format", "xml"], "--format"),
        (&["--no-such-option"], "--no-such-option"),
        (&["--", "true"], "--pid"),
    ];
    for (arguments, name) in cases {
        let arguments: Vec<&str> = ["--pid", &pid].iter().chain(*arguments).copied().collect();
        let ended = leakprobe(&arguments);
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(name), "{arguments:?}: {ended:?}");
        assert_eq!(ended.stdout, "", "{arguments:?}");
    }
    assert_eq!(leakprobe(&[]).status.code(), Some(2), "nothing to profile");
    assert!(victim.is_alive());
    text::check_whole(victim.pid());
    victim.quit();
}

#[test]
fn a_target_that_exits_while_probes_are_attached() {
    // The delays step through the time that attaching takes.
    let idle = Victim::start("leak", &[]);
    let attaching = probe::Probe::time_to_attach(idle.pid());
    let rounds = pace::rounds(30);
    for round in 0..rounds {
        let delay = attaching * round / rounds;
        let mut victim = Victim::start("leak", &[]);
        let pid = victim.pid();
        let mut session = probe::Probe::launch(&[pid], &[]);
        std::thread::sleep(delay);
        victim.kill();
        let (code, said) = session.outcome();
        // Too early: an error that names the process. Too late: a session that ends with its target.
        match code {
            Some(0) => {}
            Some(1) => {
                assert_eq!(
                    said.lines().filter(|line| !line.contains("probes in place")).count(),
                    1,
                    "{said}"
                );
                assert!(said.contains(&pid.to_string()), "after {delay:?}: {said}");
            }
            other => panic!("after {delay:?} leakprobe ended with {other:?}: {said}"),
        }
    }
}

#[test]
fn a_prefix_that_matches_nothing_is_told_with_what_may_have_been_meant() {
    let mut victim = Victim::start("pool", &[]);
    let probe = Probe::attach(victim.pid(), &["--allocator-prefix", "pol_"]);
    let truth = victim.run("plain 50");
    let reports = probe.finish();
    let report = last(&reports);
    truth.check(report);
    let [warning] = &report.warnings[..] else { panic!("{:?}", report.warnings) };
    assert_eq!(warning.kind, "prefix_unmatched");
    let text = &warning.text;
    assert!(text.starts_with("--allocator-prefix pol_ matches nothing so far: "), "{text}");
    assert!(
        text.ends_with("searched for pol_malloc and pol_free and their like; there are: pool_"),
        "{text}"
    );
    victim.quit();
}

#[test]
fn an_allocators_object_that_nobody_has_mapped_is_told_of() {
    let mut victim = Victim::start("pool", &[]);
    // With one that is there, and alone.
    let options = ["--allocator-prefix", "pool_", "--allocator-object", "pool,pol"];
    let probe = Probe::attach(victim.pid(), &options);
    let truth = victim.run("take 40 100");
    let reports = probe.finish();
    let report = last(&reports);
    truth.check(report);
    let is_told = |warning: &&Warning| warning.kind == "object_unmatched";
    let texts: Vec<&str> = report.warnings.iter().filter(is_told).map(|warning| &warning.text[..]).collect();
    assert_eq!(texts, ["--allocator-object pol is no mapped object so far; there are: pool"]);
    let pid = victim.pid().to_string();
    let alone = run::to_end(&mut run::command(["--pid", &pid, "--allocator-object", "pol"]));
    let said = &alone.stderr;
    assert_eq!(alone.status.code(), Some(1), "{said}");
    let expected = "none of them is called pol, as --allocator-object says; there are: pool)";
    assert!(said.contains(expected), "{said}");
    victim.quit();
}

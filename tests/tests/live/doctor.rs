//! `leakprobe doctor`: what it says of this machine, and that a session does as it says.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use leakprobe_tests::probe::Probe;
use leakprobe_tests::run::{self, Ended};
use leakprobe_tests::victim::Victim;
use serde_json::Value;

use crate::last;

/// An unprivileged user: `nobody` on Debian; whether it has a name doesn't matter.
const NOBODY: u32 = 65534;

/// Every program of a session, in the order in which they are loaded.
const PROGRAMS: [&str; 13] = [
    "allocate_enter",
    "allocate_return",
    "allocate_leave",
    "free_enter",
    "process_exec",
    "process_fork",
    "thread_exit",
    "process_born",
    "munmap_enter",
    "mremap_enter",
    "brk_enter",
    "mmap_enter",
    "range_exit",
];

/// The programs that a session needs here: where the kernel has bpf_loop, it calls each step of a stack's walk.
fn wanted_programs() -> Vec<&'static str> {
    let looped = has("bpf_loop");
    PROGRAMS
        .into_iter()
        .map(|name| match name {
            "allocate_return" if looped => "allocate_looped",
            "allocate_leave" if looped => "leave_looped",
            "mremap_enter" if looped => "mremap_looped",
            "brk_enter" if looped => "brk_looped",
            "mmap_enter" if looped => "mmap_looped",
            name => name,
        })
        .collect()
}

fn doctor(arguments: &[&str]) -> Ended {
    run::to_end(run::command(["doctor"]).args(arguments))
}

/// Whether this machine's kernel has a feature, by leakprobe's own probe.
///
/// # Panics
///
/// When there is no such feature.
pub fn has(feature: &str) -> bool {
    let answer = as_json(&doctor(&["--format", "json"]));
    answer["features"][feature].as_bool().unwrap_or_else(|| panic!("no feature {feature}: {answer}"))
}

fn as_json(ended: &Ended) -> Value {
    assert_eq!(ended.stdout.lines().count(), 1, "one object on one line: {ended:?}");
    serde_json::from_str(&ended.stdout)
        .unwrap_or_else(|e| panic!("failed to read the answer: {e}: {ended:?}"))
}

#[test]
fn a_machine_that_profiles_is_called_usable() {
    let ended = doctor(&["--format", "json"]);
    let answer = as_json(&ended);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    assert_eq!(answer["kernel"], release.trim());
    assert_eq!(answer["arch"], std::env::consts::ARCH);
    assert_eq!((&answer["usable"], &answer["refusal"]), (&Value::Bool(true), &Value::Null), "{answer}");
    assert_eq!((ended.status.code(), ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    for feature in ["uprobes", "ring_buffer"] {
        assert_eq!(answer["features"][feature], true, "{answer}");
    }
    let programs = answer["programs"].as_array().expect("programs");
    let names: Vec<&str> = programs.iter().filter_map(|program| program["name"].as_str()).collect();
    assert_eq!(names[..PROGRAMS.len()], wanted_programs());
    assert_eq!(
        (&answer["kernel_refusal"], answer["kernel_tracepoints"].as_str()),
        (&Value::Null, Some("raw"))
    );
    for name in ["kmalloc", "kfree", "kfree_again", "cache_free", "page_alloc", "percpu_free"] {
        assert!(names.contains(&name), "{names:?}");
    }
    for program in programs {
        let instructions = program["instructions"].as_u64().expect("the verifier's count");
        assert!((1..1_000_000).contains(&instructions), "{program}");
        assert!(program["load_ms"].as_f64().is_some_and(|time| time > 0.0), "{program}");
    }
}

/// The links that a session holds are those that the features allow.
#[test]
fn a_session_attaches_as_the_features_say() {
    let answer = as_json(&doctor(&["--format", "json"]));
    let has = |feature: &str| answer["features"][feature].as_bool().expect("a feature");
    let victim = Victim::start("threads", &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    let links = fs::read_dir(format!("/proc/{}/fdinfo", probe.id())).expect("its descriptors");
    let kinds: Vec<String> = links
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .filter_map(|facts| {
            Some(facts.lines().find_map(|line| line.strip_prefix("link_type:"))?.trim().to_owned())
        })
        .collect();
    let count = |kind: &str| kinds.iter().filter(|found| *found == kind).count();
    let multi = has("multi_links") && has("multi_filters_processes");
    let linked = !multi && has("cookies") && has("perf_links");
    assert_eq!(count("uprobe_multi") > 0, multi, "{kinds:?} {answer}");
    assert_eq!(count("perf") > 0, linked, "{kinds:?} {answer}");
    let reports = probe.finish();
    assert_eq!(last(&reports).ledger.lost(), 0, "{}", last(&reports).digest());
    victim.quit();
}

#[test]
fn people_are_told_the_same() {
    let ended = doctor(&[]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    for part in
        ["leakprobe works here (--pid, -- COMMAND, demo)", "ring buffer             yes", "seccomp filter"]
    {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
    for program in wanted_programs() {
        assert!(ended.stdout.contains(&format!("\n  {program:<16} ")), "{program}: {}", ended.stdout);
    }
}

#[test]
fn who_has_no_privileges_is_told_which_are_missing() {
    // A copy where everybody may look: the build's own folder may be closed to others.
    let folder = std::env::temp_dir().join(format!("leakprobe-doctor.{}", std::process::id()));
    fs::create_dir_all(&folder).expect("failed to make a folder");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("failed to open a folder");
    let tool = folder.join("leakprobe");
    fs::copy(run::leakprobe(), &tool).expect("failed to copy leakprobe");
    let mut command = Command::new(&tool);
    command.args(["doctor", "--format", "json"]).uid(NOBODY).gid(NOBODY).current_dir("/");
    let ended = run::to_end(&mut command);
    fs::remove_dir_all(&folder).expect("failed to remove a folder");
    let answer = as_json(&ended);
    assert_eq!((ended.status.code(), &answer["usable"]), (Some(1), &Value::Bool(false)), "{ended:?}");
    assert!(answer["refusal"].as_str().is_some_and(|text| text.contains("CAP_BPF")), "{answer}");
    assert_eq!(
        (&answer["features"], &answer["programs"]),
        (&Value::Null, &Value::Array(Vec::new())),
        "{answer}"
    );
}

//! Processes in namespaces and a root of their own, where another libc than the host's is.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use leakprobe_tests::cgroup::{self, Group};
use leakprobe_tests::container::{self, Container};
use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::Report;
use leakprobe_tests::victim::Victim;
use leakprobe_tests::{compile, skip, text};

use crate::allocators::with_musl;
use crate::last;

/// The program's path in its container.
const PROGRAM: &str = "/leak";

/// The libc that a running process uses: its path as the kernel shows it.
fn libc_of(pid: u32) -> PathBuf {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("failed to read mappings");
    let paths = maps.lines().filter_map(|line| line.split_ascii_whitespace().nth(5));
    let is_libc = |path: &&str| ["libc.so", "ld-musl"].iter().any(|name| path.contains(name));
    PathBuf::from(paths.into_iter().find(is_libc).unwrap_or_else(|| panic!("no libc in {maps}")))
}

/// A container with copies of a program and of all that it maps; and the path of its libc in there.
fn container_for(program: &Path) -> (Container, PathBuf) {
    let container = Container::make();
    let outside = Victim::start_at(program, &[]);
    let maps = fs::read_to_string(format!("/proc/{}/maps", outside.pid())).expect("failed to read mappings");
    let program = program.canonicalize().expect("a program that runs");
    let mut files: Vec<&Path> = maps
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(5).map(Path::new))
        .filter(|path| path.is_absolute() && *path != program)
        .collect();
    files.dedup();
    for file in files {
        container.copy(file, file);
    }
    let linker = container::interpreter(&program);
    container.copy(&linker, &linker);
    container.copy(&program, Path::new(PROGRAM));
    let libc = libc_of(outside.pid());
    outside.quit();
    // musl's is the dynamic linker too, and is mapped under the name that the program has for it.
    let libc =
        if libc.file_name() == linker.canonicalize().expect("a linker").file_name() { linker } else { libc };
    (container, libc)
}

/// The victim in its container; `None` after a skip.
fn start_in(container: &Container) -> Option<Victim> {
    match Victim::start_contained(container, Path::new(PROGRAM)) {
        Ok(victim) => Some(victim),
        // No user namespaces, or none left, or forbidden; anything else is a failure of the test.
        Err(e) if [libc::EPERM, libc::EINVAL, libc::ENOSPC].contains(&e.raw_os_error().unwrap_or(0)) => {
            skip::because("this kernel makes no user, mount and PID namespaces", e);
            None
        }
        Err(e) => panic!("failed to start a victim in a container: {e}"),
    }
}

/// All went into the container's libc, and the process has both of its numbers.
fn check_inside(report: &Report, pid: u32, libc: &str, allocator: &str) {
    assert!(!report.probes.is_empty(), "--verbose tells of probes");
    for probe in report.probes.iter().filter(|probe| probe.allocator == allocator) {
        assert_eq!((probe.pid, probe.object.as_str()), (pid, libc), "{:?}", probe.symbols);
    }
    let of_malloc: Vec<&str> = report
        .probes
        .iter()
        .filter(|probe| probe.symbols.iter().any(|symbol| symbol == "malloc"))
        .map(|probe| probe.allocator.as_str())
        .collect();
    assert_eq!(of_malloc, [allocator], "{:?}", report.probes);
    let process = report.process(pid);
    assert_eq!(process.namespace_pid, Some(1), "{process:?}");
    assert!(report.sites.iter().all(|site| site.allocator == allocator), "{}", report.digest());
}

/// Objects with changed code in a process.
fn patched_objects(pid: u32) -> Vec<String> {
    let mut objects: Vec<String> = text::patched(pid).into_iter().map(|(object, _)| object).collect();
    objects.dedup();
    objects
}

fn check(program: &Path, allocator: &str) {
    let (container, libc) = container_for(program);
    let Some(mut victim) = start_in(&container) else { return };
    let pid = victim.pid();
    let copy = container.outside(&libc);
    let inode = |path: &Path| fs::metadata(path).map(|metadata| metadata.ino()).expect("a file");
    assert_ne!(inode(&copy), inode(&libc), "another file than the host's");
    // One of the host's own, with the host's libc.
    let mut outside = Victim::start_at(program, &[]);
    let libc = libc.to_str().expect("a plain path");

    let probe = Probe::attach(pid, &["--verbose"]);
    let patched = patched_objects(pid);
    // In a root that was not pivoted to, the kernel shows whole paths.
    assert!(patched.iter().any(|object| object.ends_with(libc)), "the probes are in {libc}: {patched:?}");
    let truth = victim.run("leak 321 77");
    outside.run("leak 1000 10");
    assert_eq!(text::patched(outside.pid()), [], "the host's own is left alone");
    let reports = probe.finish();
    let report = last(&reports);
    truth.check(report);
    report.check_processes(&[(pid, 321, 321 * 77)]);
    check_inside(report, pid, libc, allocator);
    assert_eq!(report.sums_of(&["leak", "main"]).blocks, 321, "{}", report.digest());

    // Its files are gone, as when an engine has taken its layers away; then others are there, as after an upgrade.
    for path in [&copy, &container.outside(Path::new(PROGRAM))] {
        fs::remove_file(path).expect("failed to remove a file of the container");
    }
    for number in [45, 46] {
        victim.run("free");
        let probe = Probe::attach(pid, &["--verbose"]);
        victim.run(&format!("leak {number} 67"));
        let reports = probe.finish();
        let report = last(&reports);
        report.check_processes(&[(pid, number, number * 67)]);
        check_inside(report, pid, libc, allocator);
        assert_eq!(report.sums_of(&["leak", "main"]).blocks, number, "{}", report.digest());
        container.copy(Path::new(libc), Path::new(libc));
        container.copy(program, Path::new(PROGRAM));
    }
    victim.quit();
    outside.quit();
}

#[test]
fn a_containers_own_glibc_is_probed_and_none_else() {
    check(&compile::victim("leak"), "glibc");
}

#[test]
fn a_containers_musl_is_probed_on_a_host_of_glibc() {
    let Some(program) = with_musl("leak-musl", "leak.c", &[]) else { return };
    check(&program, "musl");
    fs::remove_file(program).expect("failed to remove a victim");
}

/// The host's processes and a container's in one session: numbers of both are the host's.
#[test]
fn containers_are_named_by_their_control_groups() {
    let Some(mut group) = Group::make() else { return };
    let id = "3f9ac0de".repeat(8);
    let of_docker = group.below(&format!("docker/{id}"));
    let of_podman = group.below(&format!("libpod-{}.scope/container", "ab12".repeat(16)));
    let (container, _) = container_for(&compile::victim("leak"));
    let Some(mut one) = start_in(&container) else { return };
    let mut two = Victim::start("leak", &[]);
    let mut bare = Victim::start("leak", &[]);
    cgroup::take(&of_docker, one.pid());
    cgroup::take(&of_podman, two.pid());
    group.take(bare.pid());
    let pids = [one.pid(), two.pid(), bare.pid()];
    let probe = Probe::attach_to(&["--cgroup", group.argument()], &pids, &[]);
    one.run("leak 10 10");
    two.run("leak 20 10");
    bare.run("leak 30 10");
    let reports = probe.finish();
    let report = last(&reports);
    report.check_processes(&[(pids[0], 10, 100), (pids[1], 20, 200), (pids[2], 30, 300)]);
    let shown = pids.map(|pid| {
        let process = report.process(pid);
        (process.container.as_deref(), process.namespace_pid)
    });
    let wanted = [(Some("docker 3f9ac0de3f9a"), Some(1)), (Some("podman ab12ab12ab12"), None), (None, None)];
    assert_eq!(shown, wanted);
    for victim in [one, two, bare] {
        victim.quit();
    }
}

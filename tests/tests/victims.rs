//! Who watches the victims: each one's truth against what valgrind counts in it.
//!
//! Needs neither root nor leakprobe, but valgrind.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use leakprobe_tests::truth::Truth;
use leakprobe_tests::victim::Victim;
use leakprobe_tests::{compile, skip};

/// Bytes and blocks in use at the end, as valgrind counts, and the victim's own words.
fn under_valgrind(program: &Path, arguments: &[&str], phases: &[&str]) -> ((u64, u64), Truth) {
    let mut child = Command::new("valgrind")
        .args([
            "--leak-check=no",
            "--run-libc-freeres=no",
            "--run-cxx-freeres=no",
            "--child-silent-after-fork=yes",
        ])
        .arg(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("failed to start valgrind");
    let mut input = child.stdin.take().expect("a piped input");
    for phase in phases.iter().chain(&["quit"]) {
        writeln!(input, "{phase}").expect("failed to send a phase");
    }
    drop(input);
    let output = child.wait_with_output().expect("failed to wait for valgrind");
    let (said, counted) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{} under valgrind: {said}{counted}", program.display());
    let mut truth = Truth::default();
    for line in said.lines().filter(|line| line.starts_with("truth ")) {
        truth.read(line).expect("a truth");
    }
    assert_eq!(said.lines().filter(|line| *line == "done").count(), phases.len(), "{said}");
    let line = counted.lines().find(|line| line.contains("in use at exit:")).expect("a heap summary");
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let number = |word: &str| word.replace(',', "").parse().expect("a number");
    // ==1== in use at exit: 1,234 bytes in 5 blocks
    ((number(words[5]), number(words[8])), truth)
}

#[test]
fn what_victims_say_is_what_valgrind_counts() {
    if skip::unless_installed("valgrind", "valgrind").is_none() {
        return;
    }
    let rust = Path::new(env!("CARGO_BIN_EXE_rust_victim"));
    let c = |name| compile::victim(name);
    let plugin = format!("load {}", compile::victim("plugin.so").display());
    // Another allocator stands in under valgrind: `elsewhere` keeps victims from minding what it can't do.
    let runs: &[(&Path, &[&str], &[&str])] = &[
        (&c("semantics"), &["elsewhere"], &["rows"]),
        (&c("semantics"), &["elsewhere"], &["rows", "inner"]),
        (&c("semantics"), &["elsewhere"], &["rows", "inner", "release"]),
        (&c("leak"), &[], &["leak 1000 64", "leak 5 7", "calm 0"]),
        (&c("leak"), &[], &["leak 1000 64", "free"]),
        (&c("threads"), &[], &["hand"]),
        (&c("jump"), &[], &["wrapper 50", "after 10 20"]),
        (&c("life"), &[], &["hold 70 30", "fork"]),
        (&c("stacks"), &[], &["stacks 8"]),
        (&c("cpp"), &["elsewhere"], &["rows"]),
        (&c("cpp"), &["elsewhere"], &["rows", "library"]),
        (rust, &[], &["rows"]),
    ];
    for (program, arguments, phases) in runs {
        let before = under_valgrind(program, arguments, &[]).0;
        let (after, truth) = under_valgrind(program, arguments, phases);
        let told = (truth.sum("bytes"), truth.sum("blocks"));
        assert_eq!(told, (after.0 - before.0, after.1 - before.1), "{} {phases:?}", program.display());
    }
    // A cleared cache leaves what its threads took to start.
    let churn = c("churn");
    let cleared = under_valgrind(&churn, &["2"], &["stop", "sweep", "clear"]).0;
    let (swept, truth) = under_valgrind(&churn, &["2"], &["stop", "sweep"]);
    assert_eq!((swept.0 - cleared.0, swept.1 - cleared.1), (truth.sum("bytes"), 4000));
    assert_eq!(truth.sum("blocks"), 4000);
    // What loading an object takes is the loader's; what its functions take is exact.
    let loaded = under_valgrind(&c("dlopen"), &[], &[&plugin]).0;
    let (called, truth) = under_valgrind(&c("dlopen"), &[], &[&plugin, "call 40 30"]);
    assert_eq!((called.0 - loaded.0, called.1 - loaded.1), (truth.sum("bytes"), truth.sum("blocks")));
}

/// Size of a process's address space, bytes.
fn address_space(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("failed to read a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("a VmSize");
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
}

#[test]
fn ranges_that_a_victim_maps_are_what_its_address_space_grows_by() {
    for (phase, pages) in [("rows", 150), ("wrappers", 75)] {
        let mut victim = Victim::start("mmap", &[]);
        let before = address_space(victim.pid());
        let truth = victim.run(phase);
        assert_eq!(truth.sum("bytes"), pages * 4096, "{phase}");
        assert_eq!(address_space(victim.pid()) - before, truth.sum("bytes"), "{phase}");
        victim.quit();
    }
}

#[test]
fn every_phase_of_every_victim_ends_well() {
    let plugin = format!("load {}", compile::victim("plugin.so").display());
    let runs: &[(&str, &[&str], &[&str])] = &[
        ("semantics", &[], &["rows", "inner", "release"]),
        ("cpp", &[], &["rows", "library"]),
        ("leak", &["600", "32"], &["regrow 100 64", "leak 50 16", "free", "calm 10"]),
        ("leak_static", &[], &["leak 50 16", "free"]),
        ("threads", &[], &["hand", "end"]),
        ("jump", &[], &["wrapper 10", "edge 10", "timer 20000", "after 10 20"]),
        ("cancel", &[], &["cancel 50", "after 10 20"]),
        ("life", &[], &["hold 10 20", "fork", "spawn", "hold 10 20"]),
        ("dlopen", &[], &[&plugin, "call 10 20", "unload"]),
        ("churn", &["2"], &["stop", "sweep", "resume", "stop", "clear"]),
        ("mmap", &[], &["early", "wrappers"]),
        ("mmap", &[], &["heap"]),
    ];
    for (name, arguments, phases) in runs {
        let mut victim = Victim::start(name, arguments);
        for phase in *phases {
            victim.run(phase);
        }
        victim.quit();
    }
    let mut victim = Victim::start("life", &[]);
    victim.run("hold 10 20");
    victim.send("exec");
    victim.wait_ready();
    assert_eq!(victim.run("again 7 30").number("again", "bytes"), 210);
    victim.quit();
    let mut victim = Victim::start("leak", &[]);
    victim.send("exit 3");
    assert_eq!(victim.wait().code(), Some(3));
}

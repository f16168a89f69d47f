//! `--follow`: the kernel's events, which processes share, and which are gone when leakprobe is.

use std::path::Path;

use leakprobe_tests::probe::Probe;
use leakprobe_tests::victim::Victim;
use leakprobe_tests::{kernel, text};

use crate::follow::{check_clean, child, follow, wait_for};
use crate::last;

/// The events of one leakprobe.
fn events_of(id: u32) -> Vec<String> {
    let own = format!("leakprobe_{id}/");
    kernel::events().into_iter().filter(|name| name.starts_with(&own)).collect()
}

#[test]
fn children_live_on_when_leakprobe_is_killed_and_the_next_one_cleans_up() {
    let (mut victim, mut probe) = follow(&[]);
    let below = child(&mut victim, "fork");
    probe.wait_running(below);
    probe.kill();
    kernel::check_gone();
    victim.run("at 0 leak 10 10");
    let after = child(&mut victim, "at 0 fork");
    for pid in [victim.pid(), below, after] {
        text::check_whole(pid);
    }
    let left = kernel::events();
    assert!(!left.is_empty(), "its definitions outlive it");
    let probe = Probe::attach(victim.pid(), &["--follow"]);
    assert!(kernel::events().iter().all(|name| !left.contains(name)), "{:?} of {left:?}", kernel::events());
    victim.run("leak 6 10");
    let reports = probe.finish();
    // Those that were there before are followed as well.
    last(&reports).check_processes(&[(victim.pid(), 6, 60), (below, 0, 0), (after, 0, 0)]);
    check_clean(last(&reports));
    victim.quit();
}

#[test]
fn processes_share_the_events_on_what_they_map() {
    let mut victim = Victim::start("follow", &[]);
    let alone = Probe::attach(victim.pid(), &["--follow"]);
    let number = events_of(alone.id()).len();
    assert!(number > 0);
    alone.finish();
    let mut truth = vec![(victim.pid(), 0, 0)];
    truth.extend((0..6).map(|_| (child(&mut victim, "fork"), 0, 0)));
    // The first one defines them, and ends before the others.
    let probe = Probe::attach_all(&[truth[1].0, victim.pid()], &["--follow"]);
    assert_eq!(events_of(probe.id()).len(), number);
    for child in 0..6 {
        victim.run(&format!("at {child} leak {} 10", child + 1));
        truth[child + 1] = (truth[child + 1].0, child as u64 + 1, 10 * (child as u64 + 1));
    }
    victim.run("end 0");
    victim.run("at 1 leak 5 10");
    truth[2] = (truth[2].0, 2 + 5, 10 * (2 + 5));
    let reports = probe.finish();
    last(&reports).check_processes(&truth);
    check_clean(last(&reports));
    victim.quit();
}

#[test]
fn when_it_is_stopped_while_probes_go_in_nothing_is_left() {
    let mut victim = Victim::start("follow", &[]);
    let children: Vec<u32> = (0..16).map(|_| child(&mut victim, "fork")).collect();
    let mut stopped = 0;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGINT] {
        let mut probe = Probe::launch(&[victim.pid()], &["--follow"]);
        let id = probe.id();
        wait_for(|| !events_of(id).is_empty());
        probe.signal(signal);
        let (code, said) = probe.outcome();
        let is_stopped = code == Some(1) && said.contains("before probes were in place");
        assert!(is_stopped || code == Some(0), "{code:?}: {said}");
        stopped += u32::from(is_stopped);
        for &pid in children.iter().chain([&victim.pid()]) {
            text::check_whole(pid);
        }
        kernel::check_gone();
        assert_eq!(events_of(id), [""; 0], "events are left");
    }
    assert!(stopped > 0, "it was never stopped in time");
    victim.quit();
}

#[test]
fn a_process_has_probes_of_both_kinds_one_after_the_other() {
    // What --follow leaves would disturb a session without it.
    let (mut victim, probe) = follow(&[]);
    victim.run("leak 6 10");
    last(&probe.finish()).check_processes(&[(victim.pid(), 6, 60)]);
    text::check_whole(victim.pid());
    let probe = Probe::attach(victim.pid(), &[]);
    victim.run("leak 7 10");
    victim.run("fork");
    last(&probe.finish()).check_processes(&[(victim.pid(), 7, 70)]);
    assert!(Path::new("/proc").join(victim.pid().to_string()).exists());
    victim.quit();
}

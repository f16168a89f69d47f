//! The kernel's own memory: a child makes known numbers of its objects and keeps them.

use leakprobe_tests::kernel;
use leakprobe_tests::kobjects::{self, Kind, digest, made, of, report_in_which};
use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::Report;

/// Options of all these tests: every site in every report.
const ALL: [&str; 4] = ["--top", "100000", "--interval", "1s"];

const FILE: Kind = Kind { cache: "filp", function: "" };
const EPOLL_ITEM: Kind = kind("", "^ep_insert|do_epoll_ctl");
const TIMER: Kind = kind("kmalloc-", "^timerfd");
const DENTRY: Kind = Kind { cache: "dentry", function: "" };

/// A phase of the victim, and what each of its objects is made of.
struct Phase {
    name: &'static str,
    /// The kind that goes by kfree_rcu, which has no tracepoint.
    frees_after_grace: Option<Kind>,
    makes: &'static [(Kind, u64)],
}

const fn kind(cache: &'static str, function: &'static str) -> Kind {
    Kind { cache, function }
}

const PHASES: [Phase; 7] = [
    Phase {
        name: "eventfds",
        frees_after_grace: None,
        makes: &[(FILE, 1), (DENTRY, 1), (kind("kmalloc-", "^eventfd"), 1)],
    },
    Phase { name: "timerfds", frees_after_grace: Some(TIMER), makes: &[(FILE, 1), (DENTRY, 1), (TIMER, 1)] },
    Phase {
        name: "pipes",
        frees_after_grace: None,
        makes: &[
            (FILE, 2),
            (DENTRY, 1),
            (kind("inode_cache", "pipe"), 1),
            (kind("kmalloc-", "^alloc_pipe_info"), 2),
        ],
    },
    Phase {
        name: "epolls",
        frees_after_grace: Some(EPOLL_ITEM),
        makes: &[(FILE, 1), (DENTRY, 1), (EPOLL_ITEM, 1)],
    },
    Phase {
        name: "sockets",
        frees_after_grace: None,
        makes: &[(FILE, 2), (DENTRY, 2), (kind("sock_inode_cache", ""), 2), (kind("", "^sk_prot_alloc"), 2)],
    },
    Phase { name: "dentries", frees_after_grace: None, makes: &[(DENTRY, 1)] },
    Phase { name: "mappings", frees_after_grace: None, makes: &[(kind("vm_area_struct", ""), 2)] },
];

/// Objects that are there beside those that were asked for: the watched eventfd, the folder, the first mapping.
const BESIDE: u64 = 2;

/// Objects by which /proc/slabinfo may be behind, of a small machine.
const BEHIND: i64 = 1500;

#[test]
fn counts_by_cache_are_exact_and_nothing_is_left_after_the_end() {
    for phase in PHASES {
        // So many of those that /proc/slabinfo may have to bear witness of that it can.
        let count: u64 = if phase.frees_after_grace.is_some() { 4000 } else { 2000 };
        let (mut victim, _folder) = kobjects::start();
        let mut probe = Probe::attach_to_kernel(&ALL);
        victim.run(&format!("{} {count}", phase.name));
        let holds =
            |report: &Report| phase.makes.iter().all(|&(kind, each)| is_near(report, kind, each * count));
        let report = report_in_which(&mut probe, holds);
        for &(kind, each) in phase.makes {
            let seen = made(&report, kind);
            assert!(
                is_near(&report, kind, each * count),
                "{}: {seen} of {kind:?}, not {}{}",
                phase.name,
                each * count,
                digest(&report)
            );
        }
        if phase.name == "dentries" {
            // Files stay when the process ends.
            victim.run("release");
        }
        drop(victim);
        let gone = |report: &Report| phase.makes.iter().all(|&(kind, _)| made(report, kind) == 0);
        let report = report_in_which(&mut probe, gone);
        let unprobed = &report.kernel.as_ref().expect("the kernel").unprobed_functions;
        for &(kind, _) in phase.makes {
            let left = made(&report, kind);
            let is_excused = phase.frees_after_grace == Some(kind) && !unprobed.is_empty();
            let where_from = format!("{}: {kind:?} after the end{}", phase.name, digest(&report));
            if is_excused && left > 0 {
                // Freed by a function that this kernel lets nobody probe: no more than /proc/slabinfo may be behind, or
                // contradicted by it.
                let is_few = |cache: &str| {
                    let caches = &report.kernel.as_ref().expect("the kernel").caches;
                    let change =
                        caches.iter().find(|row| row.name == cache).and_then(|row| row.slabinfo_change);
                    left.cast_signed() <= change.unwrap_or(0) + BEHIND
                };
                let is_told =
                    of(&report, kind).all(|site| site.contradiction.is_some() || is_few(&site.allocator));
                assert!(is_told, "{where_from}");
            } else {
                assert_eq!(left, 0, "{where_from}");
            }
        }
        probe.finish();
    }
}

/// Exact, but for the few objects that a phase makes once, and for what the report itself says was skipped.
fn is_near(report: &Report, kind: Kind, wanted: u64) -> bool {
    let least = wanted.saturating_sub(report.ledger.skipped());
    (least..=wanted + BESIDE).contains(&made(report, kind))
}

#[test]
fn a_session_that_is_killed_leaves_no_program() {
    for _ in 0..3 {
        let mut probe = Probe::attach_to_kernel(&ALL);
        let programs = kernel::programs();
        for name in ["kmalloc", "kfree", "cache_free"] {
            assert!(programs.iter().any(|program| program == name), "{programs:?}");
        }
        probe.kill();
        kernel::check_gone();
    }
}

#[test]
fn two_sessions_at_once_see_the_same() {
    const COUNT: u64 = 500;
    let (mut victim, _folder) = kobjects::start();
    let mut one = Probe::attach_to_kernel(&ALL);
    let mut other = Probe::attach_to_kernel(&ALL);
    victim.run(&format!("eventfds {COUNT}"));
    for probe in [&mut one, &mut other] {
        let report = report_in_which(probe, |report| made(report, FILE) == COUNT);
        assert_eq!(made(&report, FILE), COUNT, "{}", digest(&report));
    }
    one.finish();
    other.finish();
}

#[test]
fn a_leak_is_believed_beside_a_site_whose_frees_are_not_seen() {
    const KEPT: u64 = 1000;
    let contexts = Kind { cache: "kmalloc-", function: "^epoll_create|ep_alloc" };
    let (mut victim, _folder) = kobjects::start();
    let mut probe = Probe::attach_to_kernel(&ALL);
    // On some kernels both are of one cache.
    victim.run("timerfds 4000");
    victim.run("release");
    victim.run(&format!("epolls {KEPT}"));
    let report = report_in_which(&mut probe, |report| made(report, contexts) == KEPT);
    assert_eq!(made(&report, contexts), KEPT, "{}", digest(&report));
    for site in of(&report, contexts) {
        assert_eq!(site.contradiction, None, "{}", digest(&report));
    }
    probe.finish();
}

/// The kernel tells of a block above kmalloc's largest cache twice: in the function that makes it, and in its caller.
#[test]
fn a_large_block_is_counted_once_and_its_free_is_seen() {
    const COUNT: u64 = 200;
    let rings = Kind { cache: "kmalloc-large", function: "pipe" };
    let (mut victim, _folder) = kobjects::start();
    let mut probe = Probe::attach_to_kernel(&[&ALL[..], &["--min-size", "8193"]].concat());
    victim.run(&format!("rings {COUNT}"));
    let report = report_in_which(&mut probe, |report| made(report, rings) == COUNT);
    assert_eq!(made(&report, rings), COUNT, "{}", digest(&report));
    let allocated: u64 = of(&report, rings).map(|site| site.allocated_blocks).sum();
    assert!((COUNT..COUNT + 5).contains(&allocated), "{allocated}{}", digest(&report));
    victim.run("release");
    let gone = report_in_which(&mut probe, |report| made(report, rings) == 0);
    assert_eq!(made(&gone, rings), 0, "{}", digest(&gone));
    let missed = gone.ledger.count("missed_free");
    assert!(missed < COUNT / 10, "{missed} frees that were not seen, of {COUNT}");
    probe.finish();
}

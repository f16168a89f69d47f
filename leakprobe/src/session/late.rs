//! Allocators that were met too late: a process that executes another program, or opens a library, runs with a new one for a
//! while before its probes are in, and so does what it forks meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use super::watched::{Late, Watched};
use crate::{
    report::{model::Warning, units::counted},
    sys::clock,
};

/// Objects that are told of, and processes of each.
const MAX_TOLD: usize = 8;

/// What to say of them. `unseen`: how many executed programs had ended before they were looked at.
pub fn warnings(watched: &[Watched], unseen: u64) -> Vec<Warning> {
    let late = watched.iter().map(|watched| (watched.pid(), watched.late()));
    let mut warnings = told(late);
    let replaced: Vec<u32> =
        watched.iter().filter(|watched| watched.is_replaced()).map(Watched::pid).collect();
    if !replaced.is_empty() {
        let text = format!(
            "{} executed a program when it had several threads, with one of which its probes may have gone: some of what it \
             handed out in the milliseconds until they were in again may not be in this report",
            named(&replaced),
        );
        warnings.push(Warning { kind: "met_late".to_owned(), text });
    }
    if unseen > 0 {
        let text = format!(
            "{} had ended before leakprobe looked: what was handed out there by an allocator that the process had not had \
             before is not in this report",
            counted(unseen, "executed program"),
        );
        warnings.push(Warning { kind: "programs_unseen".to_owned(), text });
    }
    warnings
}

/// Processes that were made by one without a guard, and one of both has ended: the kernel may have exchanged their probes
/// (see [`crate::sys::perf::open_guard`]).
#[derive(Default)]
pub struct Doubtful {
    number: u64,
    longest_ns: u64,
}

impl Doubtful {
    /// Notes one that was made at that time, `CLOCK_MONOTONIC` nanoseconds; those that go on have probes of their own now.
    pub fn note(&mut self, made_ns: u64) {
        self.number += 1;
        self.longest_ns = self.longest_ns.max(clock::monotonic_ns().saturating_sub(made_ns));
    }

    /// What to say of them.
    pub fn warning(&self) -> Option<Warning> {
        let text = format!(
            "{} made by one that leakprobe had not guarded yet, and one of the two has ended (daemons, `( command & )` in \
             a shell): until both were guarded, at most {} ms, and seldom for good, this kernel may have taken the probes of the one \
             that goes on, and blocks may be missing; Linux 6.13 leaves them",
            counted(self.number, "process"),
            self.longest_ns.div_ceil(1_000_000)
        );
        (self.number > 0).then(|| Warning { kind: "probes_in_doubt".to_owned(), text })
    }
}

/// What to say of those that were found when the session had begun, so many: what they are is looked up twice a second.
pub fn came_later(number: u64) -> Option<Warning> {
    let text = format!(
        "{} came after the start: what was allocated there in the first half second is not in this report (with --follow, \
         what the others start is counted from its first instruction on)",
        counted(number, "process")
    );
    (number > 0).then(|| Warning { kind: "came_later".to_owned(), text })
}

/// What to say of those that execute programs which cannot be profiled.
pub fn refused(watched: &[Watched]) -> Vec<Warning> {
    let mut refusals = watched.iter().flat_map(Watched::refusals);
    let left_out = |text: String| Warning { kind: "left_out".to_owned(), text: format!("left out: {text}") };
    let mut warnings: Vec<Warning> = refusals
        .by_ref()
        .take(MAX_TOLD)
        .map(|why| left_out(format!("{why} (what it executes or starts is recorded where it can be)")))
        .collect();
    let others = refusals.count();
    if others > 0 {
        warnings
            .push(left_out(format!("{} that cannot be profiled", counted(others as u64, "more program"))));
    }
    warnings
}

/// What to say of those that there was no room for, of so many.
pub fn crowded_out(pids: &BTreeSet<u32>, room: usize) -> Option<Warning> {
    let pids: Vec<u32> = pids.iter().copied().collect();
    let text = format!(
        "left out: {}: {} can be profiled at a time; raise --max-processes",
        named(&pids),
        counted(room as u64, "process")
    );
    (!pids.is_empty()).then(|| Warning { kind: "left_out".to_owned(), text })
}

fn told<'a>(late: impl Iterator<Item = (u32, &'a [Late])>) -> Vec<Warning> {
    let mut by_object: BTreeMap<&str, (Vec<u32>, Vec<Option<u64>>)> = BTreeMap::new();
    for (pid, objects) in late {
        for late in objects {
            let (pids, times) = by_object.entry(&late.object).or_default();
            pids.push(pid);
            times.push(late.by_ns);
        }
    }
    let others = by_object.len().saturating_sub(MAX_TOLD);
    let mut warnings: Vec<Warning> = by_object
        .into_iter()
        .take(MAX_TOLD)
        .map(|(object, (pids, times))| {
            let who = named(&pids);
            let longest_ns =
                times.into_iter().collect::<Option<Vec<u64>>>().and_then(|times| times.into_iter().max());
            let for_how_long =
                longest_ns.map_or_else(String::new, |ns| format!(", {} ms at most,", ns.div_ceil(1_000_000)));
            let text = format!(
                "{object} came to {who} by an exec, by dlopen, or by a fork soon after: what it handed out until its probes \
                 were in{for_how_long} is not in this report (a program that leakprobe itself starts has them from the \
                 beginning)"
            );
            Warning { kind: "met_late".to_owned(), text }
        })
        .collect();
    if others > 0 {
        let text = format!("so did {}", counted(others as u64, "other object"));
        warnings.push(Warning { kind: "met_late".to_owned(), text });
    }
    warnings
}

/// `process 7`, `processes 7, 8 and 9`, `processes 1, 2, 3, 4, 5, 6, 7, 8 and 3 others`.
fn named(pids: &[u32]) -> String {
    let listed = |pids: &[u32]| pids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    match pids {
        [] => String::new(),
        [pid] => format!("process {pid}"),
        [some @ .., last] if some.len() <= MAX_TOLD => format!("processes {} and {last}", listed(some)),
        [..] => format!("processes {} and {} others", listed(&pids[..MAX_TOLD]), pids.len() - MAX_TOLD),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_is_told_of_once_and_not_all_of_many() {
        let objects = |names: &[(&str, Option<u64>)]| {
            let late = |&(name, by_ns): &(&str, _)| Late { object: str::to_owned(name), by_ns };
            names.iter().map(late).collect::<Vec<_>>()
        };
        let one = objects(&[("/lib/libjemalloc.so.2", Some(12_000_001))]);
        let both = objects(&[("/lib/libc.so", Some(1)), ("/lib/libjemalloc.so.2", Some(7_000_000))]);
        let dlopened = objects(&[("/lib/libc.so", None)]);
        let all =
            told([(7, &one[..]), (8, &both[..]), (9, &[&both[1..], &dlopened[..]].concat())].into_iter());
        let texts: Vec<(&str, bool)> = all
            .iter()
            .map(|warning| {
                let begin = warning.text.split(" by ").next().unwrap_or_default();
                (begin, warning.text.contains("until its probes were in, 13 ms at most, is not"))
            })
            .collect();
        assert_eq!(
            texts,
            [
                ("/lib/libc.so came to processes 8 and 9", false),
                ("/lib/libjemalloc.so.2 came to processes 7, 8 and 9", true)
            ]
        );
        let pids: Vec<u32> = (1..=9).collect();
        assert_eq!(named(&pids), "processes 1, 2, 3, 4, 5, 6, 7, 8 and 9");
        let pids: Vec<u32> = (1..=11).collect();
        assert_eq!(named(&pids), "processes 1, 2, 3, 4, 5, 6, 7, 8 and 3 others");
        let many: Vec<Late> =
            (0..20).map(|number| Late { object: format!("/bin/{number}"), by_ns: None }).collect();
        let told = told([(1, &many[..])].into_iter());
        assert_eq!((told.len(), told[MAX_TOLD].text.as_str()), (MAX_TOLD + 1, "so did 12 other objects"));
    }
}

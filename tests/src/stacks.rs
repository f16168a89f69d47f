//! Stacks: what a victim's own unwinder has seen, held against a report, address by address.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::compile;
use crate::report::Report;

/// Return addresses, innermost first.
pub type Frames = Vec<u64>;

/// By stack: how many blocks were taken there, and how many bytes.
pub type Stacks = HashMap<Frames, (u64, u64)>;

/// A file for a victim's truth, removed when it goes out of scope.
#[derive(Debug)]
pub struct TruthFile(PathBuf);

impl TruthFile {
    /// A path that nobody else writes to.
    pub fn new(name: &str) -> Self {
        Self(compile::scratch().join(format!("stacks-{name}-{}.txt", std::process::id())))
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What the victim wrote: a line for each block, its size, then the return addresses from the caller of the function
    /// that took it outward.
    ///
    /// # Panics
    ///
    /// When there is no such file, or it has another form.
    pub fn read(&self) -> Stacks {
        let text = fs::read_to_string(&self.0)
            .unwrap_or_else(|e| panic!("failed to read {}: {e}", self.0.display()));
        let mut stacks = Stacks::new();
        for line in text.lines() {
            let mut words = line.split(' ');
            let size: u64 = words.next().and_then(|word| word.parse().ok()).expect("a size");
            let frames = words.map(|word| u64::from_str_radix(word, 16).expect("an address")).collect();
            let sums = stacks.entry(frames).or_default();
            *sums = (sums.0 + 1, sums.1 + size);
        }
        stacks
    }
}

impl Drop for TruthFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The stacks of a report in which `taker` is, without it and what it has called; all, each without its first frame, where
/// it has no name.
pub fn reported(report: &Report, taker: Option<&str>) -> Stacks {
    let mut stacks = Stacks::new();
    for site in &report.sites {
        // Inlined functions have no address of their own.
        let frames: Vec<_> = site.stack.frames.iter().filter(|frame| !frame.inlined).collect();
        let at = match taker {
            Some(_) => frames.iter().position(|frame| frame.function.as_deref() == taker),
            None => (!frames.is_empty()).then_some(0),
        };
        let Some(at) = at else { continue };
        let sums = stacks.entry(frames[at + 1..].iter().map(|frame| frame.address).collect()).or_default();
        *sums = (sums.0 + site.live_blocks, sums.1 + site.live_bytes);
    }
    stacks
}

/// How many blocks were reported with the very stack that the victim's own unwinder saw, of how many.
pub fn agreeing(truth: &Stacks, reported: &Stacks) -> (u64, u64) {
    let all = truth.values().map(|sums| sums.0).sum();
    let same = truth.iter().filter(|(frames, sums)| reported.get(*frames) == Some(sums));
    (same.map(|(_, sums)| sums.0).sum(), all)
}

/// The first few stacks that differ, for a test's failure.
pub fn differences(truth: &Stacks, reported: &Stacks) -> String {
    let show = |frames: &Frames| frames.iter().map(|frame| format!(" {frame:x}")).collect::<String>();
    let only = |these: &Stacks, those: &Stacks, whose: &str| {
        let differing = these.iter().filter(|(frames, sums)| those.get(*frames) != Some(sums));
        let lines = differing.take(4).map(|(frames, sums)| format!("  {whose} {sums:?}:{}\n", show(frames)));
        lines.collect::<String>()
    };
    only(truth, reported, "truth") + &only(reported, truth, "reported")
}

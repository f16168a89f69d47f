//! The victim that makes the kernel's objects, and what a report says of them.

use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::probe::Probe;
use crate::report::{Report, Site};
use crate::victim::Victim;
use crate::{compile, pace};

/// What the victim's thread is called.
pub const NAME: &str = "kobjects";

/// A kind of object: a word for it, and what tells its sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Beginning of the name of the cache; several, of which a kernel has one, are separated by `|`.
    pub cache: &'static str,
    /// Text that a function of the stack has in its name, with `^` before it the first function; one of
    /// several that are separated by `|`; "" where any has.
    pub function: &'static str,
}

/// Starts the victim, with a folder of its own to make files in.
pub fn start() -> (Victim, PathBuf) {
    let folder = compile::scratch().join(format!("kobjects.{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    let victim = Victim::start("kobjects", &[&folder.display().to_string()]);
    (victim, folder)
}

/// Sites of a kind that have survivors made while the victim ran.
pub fn of(report: &Report, kind: Kind) -> impl Iterator<Item = &Site> {
    report.sites.iter().filter(move |site| {
        kind.cache.split('|').any(|cache| site.allocator.starts_with(cache))
            && is_called_in(site, kind.function)
            && of_victim(site) > 0
    })
}

/// Survivors of a kind that were made while the victim ran.
pub fn made(report: &Report, kind: Kind) -> u64 {
    of(report, kind).map(of_victim).sum()
}

fn of_victim(site: &Site) -> u64 {
    site.made_by.iter().filter(|maker| maker.name == NAME).map(|maker| maker.blocks).sum()
}

fn is_called_in(site: &Site, function: &str) -> bool {
    let (text, depth) = function.strip_prefix('^').map_or((function, usize::MAX), |text| (text, 1));
    let mut names = site.stack.frames.iter().take(depth).filter_map(|frame| frame.function.as_deref());
    text.is_empty() || names.any(|name| text.split('|').any(|text| name.contains(text)))
}

/// The first report of which this holds; the last one that came where it does not in time: frees wait for grace
/// periods.
pub fn report_in_which(probe: &mut Probe, holds: impl Fn(&Report) -> bool) -> Report {
    let deadline = Instant::now() + pace::patience(Duration::from_secs(15));
    loop {
        let report = probe.next_report();
        if holds(&report) || Instant::now() >= deadline {
            return report;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// What a report says of the victim's sites, for a failure.
pub fn digest(report: &Report) -> String {
    let mut text = String::new();
    for site in report.sites.iter().filter(|site| site.made_by.iter().any(|maker| maker.name == NAME)) {
        let names: Vec<&str> =
            site.stack.frames.iter().filter_map(|frame| frame.function.as_deref()).take(5).collect();
        let makers: Vec<String> =
            site.made_by.iter().map(|maker| format!("{} {}", maker.name, maker.blocks)).collect();
        text.push_str(&format!(
            "\n  {} {}: live {}, by {}: {}",
            site.kind,
            site.allocator,
            site.live_blocks,
            makers.join(", "),
            names.join(" < ")
        ));
    }
    text
}

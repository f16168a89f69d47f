//! One report: drained, analysed, named.

use std::{collections::HashSet, time::Duration};

use anyhow::Result;
use leakprobe_common::{NO_STACK, StackEnd};

use super::{Session, doubts, output::Reader, watched::Watched};
use crate::{
    analysis::{
        balance::{self, Counting},
        sites::{Analysis, RankedSite},
    },
    drain::snapshot::Snapshot,
    lifetime::ranges::RANGE_FAMILY,
    report::model::{
        Frame, Process as ProcessRow, ProcessState, Report, SCHEMA_VERSION, SiteKind, SiteRow, StackQuality,
        StackRow, Totals,
    },
    symbolize::Unknown,
    sys::clock,
};

/// Functions from which a program or a thread is started: a stack that reaches one is whole.
const STARTS: [&str; 9] = [
    "main",
    "_start",
    "__libc_start_main",
    "__libc_start_main_impl",
    "__libc_start_call_main",
    "start_thread",
    "clone",
    "clone3",
    "__clone3",
];

/// The ID that stands for all stacks that were deleted with their process.
const GONE: u64 = u64::MAX;

/// Whether a report is the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// The interval is over.
    Interval,
    /// The session is over.
    End,
}

impl Session {
    /// Drains the maps, and writes a report.
    ///
    /// The last one comes after [`Session::stop`]: it reads one moment, and its ledger must balance.
    pub(super) fn report(&mut self, occasion: Occasion) -> Result<Reader> {
        self.forget_ended_children()?;
        let counting = match occasion {
            Occasion::Interval => Counting::Runs,
            Occasion::End => Counting::Stands,
        };
        let now = self.stopped_ns.unwrap_or_else(clock::monotonic_ns);
        let all_ended = !self.goes_on();
        let elapsed = Duration::from_nanos(now.saturating_sub(self.started_ns));
        // Nothing that a dead process left behind will be freed: all of it has survived.
        let older = match (self.options.older, all_ended) {
            (None, true) => Duration::ZERO,
            _ => self.options.older_after(elapsed),
        };
        let older_ns = older.as_nanos() as u64;
        let begun = match counting {
            Counting::Runs => Snapshot::new(now, older_ns),
            Counting::Stands => Snapshot::of_standing(now, older_ns),
        };
        let mut snapshot = self.maps.fill(begun)?;
        if let Some(gone) = self.children.gone() {
            snapshot.sites.insert(GONE, gone);
        }
        snapshot.settle(&self.dropped);
        if let Some(ranges) = &self.ranges {
            ranges.add_to(&mut snapshot);
        }
        if counting == Counting::Runs {
            self.own.recursion_misses = self.recursion_misses();
        }
        if occasion == Occasion::End {
            self.anew.leave_all(&mut self.maps);
        }
        let named = self.maps.mismatches()?.into_iter().map(|(key, _)| key.stack).collect();
        self.anew.give_back(&mut snapshot, &mut self.dropped, &named, &self.maps);
        let undescribed = |stack| snapshot.sites.get(&stack).map_or(0, |site| site.undescribed_blocks);
        self.own.corrections = self.anew.corrections(undescribed);
        let all_undescribed = snapshot.sites.values().map(|site| site.undescribed_blocks).sum();
        let unsettled = self.anew.unsettled(all_undescribed, undescribed);
        snapshot.unite(&self.same_stacks());
        let ledger = balance::ledger(&snapshot, &self.own, counting, self.options.mmap);
        self.look_for_hidden();
        self.look_for_prefixes();
        let mut warnings = self.warnings(&ledger);
        warnings.extend(doubts::destroyed(&ledger));
        warnings.extend(doubts::warnings(&ledger, unsettled, self.options.unwind));
        let records = snapshot.records;
        let analysis = self.analyst.next(snapshot);
        self.reports += 1;
        let since_last = now.saturating_sub(self.last_report_ns);
        self.last_report_ns = now;
        let sites = self.rows(&analysis);
        let report = Report {
            version: SCHEMA_VERSION,
            generator: format!("leakprobe {}", env!("CARGO_PKG_VERSION")),
            sequence: self.reports,
            is_final: occasion == Occasion::End,
            time: crate::sys::clock::utc_now(),
            elapsed_seconds: elapsed.as_secs_f64(),
            since_last_seconds: Duration::from_nanos(since_last).as_secs_f64(),
            older_seconds: older.as_secs_f64(),
            warnings,
            processes: self.processes(&analysis),
            kernel: None,
            totals: totals(&analysis),
            sites,
            sites_with_survivors: analysis.sites.len() as u64,
            mismatches: self.mismatches()?,
            ledger,
            verbose: self.options.verbose,
            probes: if self.options.verbose {
                self.watched.iter().flat_map(|watched| watched.probes().to_vec()).collect()
            } else {
                Vec::new()
            },
            stacks: self.unwinding.rows(),
        };
        if occasion == Occasion::Interval {
            self.make_room(records)?;
        }
        self.output.write(&report)
    }

    /// The processes, those that hold the most survivors first.
    fn processes(&mut self, analysis: &Analysis) -> Vec<ProcessRow> {
        (0..self.watched.len()).for_each(|index| self.read_kin(index));
        let mut rows: Vec<ProcessRow> = self
            .watched
            .iter_mut()
            .map(|watched| {
                let sums = analysis.processes.get(&watched.pid()).copied().unwrap_or_default();
                let minutes = watched.watched_for().as_secs_f64() / 60.0;
                let growth_bytes_per_minute =
                    if minutes > 0.0 { sums.live_bytes as f64 / minutes } else { 0.0 };
                ProcessRow {
                    live_bytes: sums.live_bytes,
                    live_blocks: sums.live_blocks,
                    survivor_bytes: sums.survivor_bytes,
                    survivor_blocks: sums.survivor_blocks,
                    growth_bytes_per_minute,
                    ..watched.row()
                }
            })
            .collect();
        let is_running = |row: &ProcessRow| row.state == ProcessState::Running;
        rows.sort_by_key(|row| std::cmp::Reverse((is_running(row), row.survivor_bytes, row.live_bytes)));
        rows
    }

    /// Whether something is still there to be profiled.
    fn goes_on(&self) -> bool {
        self.waits_for_more() || !self.all_ended()
    }

    fn rows(&mut self, analysis: &Analysis) -> Vec<SiteRow> {
        let mut sites: Vec<&RankedSite> = analysis.sites.iter().collect();
        if self.goes_on() {
            // What a process held that has ended leaks no more, while others do.
            let ended: HashSet<u32> =
                self.watched.iter().filter(|watched| watched.has_ended()).map(Watched::pid).collect();
            sites.sort_by_key(|site| ended.contains(&site.key.tgid));
        }
        let top: Vec<RankedSite> = sites.into_iter().take(self.options.top).copied().collect();
        top.iter().zip(1..).map(|(site, rank)| self.row(site, rank)).collect()
    }

    fn row(&mut self, site: &RankedSite, rank: u32) -> SiteRow {
        let seconds = |ns: u64| Duration::from_nanos(ns).as_secs_f64();
        let (kind, allocator) = if site.family == RANGE_FAMILY {
            (SiteKind::Mapping, "mmap".to_owned())
        } else {
            (SiteKind::Heap, self.family_name(site.family))
        };
        SiteRow {
            rank,
            pid: site.key.tgid,
            kind,
            allocator,
            live_bytes: site.live_bytes,
            live_blocks: site.live_blocks,
            survivor_bytes: site.ages.bytes,
            survivor_blocks: site.ages.blocks,
            growth_bytes: site.growth_bytes,
            growth_bytes_per_minute: site.growth_bytes_per_minute,
            oldest_seconds: seconds(site.ages.oldest_ns),
            median_seconds: seconds(site.ages.median_ns),
            allocated_blocks: site.totals.allocated_blocks,
            allocated_bytes: site.totals.allocated_bytes,
            freed_blocks: site.totals.freed_blocks,
            freed_bytes: site.totals.freed_bytes,
            made_by: Vec::new(),
            contradiction: None,
            stack: self.stack_row(site.key.tgid, site.key.stack, kind),
        }
    }

    pub(super) fn stack_row(&mut self, tgid: u32, id: u64, kind: SiteKind) -> StackRow {
        let not_kept =
            || StackRow { id: format!("{id:016x}"), quality: StackQuality::NotKept, frames: Vec::new() };
        if id == NO_STACK {
            return not_kept();
        }
        let Some(stack) = self.maps.stack(id) else { return not_kept() };
        let addresses = &stack.frames[..(stack.len as usize).min(stack.frames.len())];
        let index = self.watched.iter().position(|watched| watched.pid() == tgid);
        let frames = match index.and_then(|index| self.watched[index].space_of(id, stack.generation)) {
            Some(space) => self.symbolizer.stack(&space, addresses),
            None => addresses.iter().map(|&address| unmapped(address)).collect(),
        };
        let reached = quality(StackEnd::from_raw(stack.end), stack.guessed != 0, &frames);
        let quality = match (reached, kind) {
            // The kernel's own walk, of which the end is not known, starts in libc's wrapper of the system call, which has
            // no frame: its caller is left out.
            (StackQuality::Guessed, SiteKind::Mapping) if stack.end == StackEnd::Lost as u32 => {
                StackQuality::Partial
            }
            (quality, _) => quality,
        };
        StackRow { id: format!("{id:016x}"), quality, frames }
    }
}

fn unmapped(address: u64) -> Frame {
    let unknown = Some("the program's mappings were not read before it was replaced".to_owned());
    Frame { address, unknown, ..Frame::default() }
}

/// How far a stack reaches. One that was walked by tables alone is whole when it has come to its end. A walk by frame
/// pointers that lost its way may have done so behind the start of the program: libc, which calls `main`, has none. One
/// that ended properly may have ended at a zero in a register used for another purpose, unless it ended in libc, where
/// threads start (in a function whose name a stripped libc does not have).
fn quality(end: StackEnd, guessed: bool, frames: &[Frame]) -> StackQuality {
    let starts = |frame: &Frame| frame.function.as_deref().is_some_and(|name| STARTS.contains(&name));
    // Another return probe's frame stands for one that is not known.
    let held = Unknown::ReturnProbe.to_string();
    match end {
        StackEnd::Truncated => StackQuality::Truncated,
        _ if frames.iter().any(|frame| frame.unknown.as_ref() == Some(&held)) => StackQuality::Partial,
        StackEnd::Base if !guessed => StackQuality::Whole,
        StackEnd::Lost if !guessed => StackQuality::Partial,
        StackEnd::Base | StackEnd::Lost if frames.iter().rev().take(3).any(starts) => StackQuality::Guessed,
        StackEnd::Base if frames.len() > 1 && frames.last().is_some_and(in_libc) => StackQuality::Guessed,
        StackEnd::Base | StackEnd::Lost => StackQuality::Partial,
    }
}

fn in_libc(frame: &Frame) -> bool {
    let file = frame.object.as_deref().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    ["libc.so", "libc-2.", "libpthread", "ld-musl"].iter().any(|name| file.starts_with(name))
}

pub(super) fn totals(analysis: &Analysis) -> Totals {
    let sums = &analysis.sums;
    Totals {
        live_bytes: sums.live_bytes,
        live_blocks: sums.live_blocks,
        survivor_bytes: sums.survivor_bytes,
        survivor_blocks: sums.survivor_blocks,
        growth_bytes: sums.growth_bytes,
        growth_bytes_per_minute: sums.growth_bytes_per_minute,
        allocated_blocks: sums.totals.allocated_blocks,
        allocated_bytes: sums.totals.allocated_bytes,
        freed_blocks: sums.totals.freed_blocks,
        freed_bytes: sums.totals.freed_bytes,
    }
}

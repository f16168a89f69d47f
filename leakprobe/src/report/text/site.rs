//! One site: what it holds, how it moves, and its stack.

use super::head::since;
use super::page::{Page, Tone};
use super::{is_verbose, stack};
use crate::report::escape::{Cut, fit, visible};
use crate::report::model::{Maker, ProcessState, Report, SiteKind, SiteRow};
use crate::report::units::{count, counted, duration, signed_size, size, size_per_minute};

/// `made while nginx (pid 812) ran: all`, `... while sh ran, in 40 processes: 71%`.
fn made_by(maker: &Maker, of: u64) -> String {
    let share = match maker.blocks.saturating_mul(100).checked_div(of) {
        Some(100..) | None => "all".to_owned(),
        Some(0) => "under 1%".to_owned(),
        Some(percent) => format!("{percent}%"),
    };
    let name = fit(&visible(&maker.name), NAME, Cut::Middle).into_owned();
    if maker.processes > 1 {
        format!("made while {name} ran, in {} processes: {share}", count(maker.processes))
    } else if maker.pid == 0 {
        format!("made while the CPU was idle ({name}), in an interrupt: {share}")
    } else {
        format!("made while {name} (pid {}) ran: {share}", maker.pid)
    }
}

/// Blanks before everything that belongs to a site's heading.
const INDENT: usize = 4;

/// Columns of the name of an allocator, a cache or a thread; the kernel's own are at most 64 bytes.
const NAME: usize = 64;

pub(super) fn site(page: &mut Page, report: &Report, row: &SiteRow) {
    let noun = match row.kind {
        SiteKind::Heap | SiteKind::Pages | SiteKind::PerCpu => "block",
        SiteKind::Slab => "object",
        SiteKind::Mapping => "range",
    };
    let mut heading =
        vec![format!("#{:<2} {} in {}", row.rank, size(row.live_bytes), counted(row.live_blocks, noun))];
    if row.growth_bytes == 0 && row.growth_bytes_per_minute.round() == 0.0 {
        heading.push("not growing".to_owned());
    } else {
        heading.push(format!("{} {}", signed_size(row.growth_bytes), since(report)));
        heading.push(size_per_minute(row.growth_bytes_per_minute));
    }
    page.flow(Tone::Strong, INDENT, "  ", &heading);

    let older = duration(report.older_seconds);
    let survivors = if (row.survivor_bytes, row.survivor_blocks) == (row.live_bytes, row.live_blocks) {
        format!("    all older than {older}:")
    } else {
        format!("    {} in {} older than {older}:", size(row.survivor_bytes), count(row.survivor_blocks))
    };
    let mut details = vec![
        survivors,
        format!("oldest {},", duration(row.oldest_seconds)),
        format!("median {};", duration(row.median_seconds)),
        format!("allocated {},", count(row.allocated_blocks)),
        format!("freed {}", count(row.freed_blocks)),
    ];
    let allocator = fit(&visible(&row.allocator), NAME, Cut::Middle).into_owned();
    if report.processes.len() > 1 {
        let of = report.processes.iter().find(|process| process.pid == row.pid);
        let ended = of.is_some_and(|process| process.state != ProcessState::Running);
        details.push(format!("[{allocator}, pid {}{}]", row.pid, if ended { ", exited" } else { "" }));
    } else {
        details.push(format!("[{allocator}]"));
    }
    page.flow(Tone::Plain, INDENT, " ", &details);
    if let Some(contradiction) = &row.contradiction {
        page.prose(Tone::Warning, INDENT, &format!("    {}", visible(contradiction)));
    }
    if let Some(maker) = row.made_by.first() {
        page.prose(Tone::Plain, INDENT, &format!("    {}", made_by(maker, row.survivor_blocks)));
    }
    stack::stack(page, &row.stack, is_verbose(report));
}

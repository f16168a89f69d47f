//! One site: what it holds, how it moves, and its stack.

use super::head::since;
use super::page::{Page, Tone};
use super::{is_verbose, stack};
use crate::report::escape::visible;
use crate::report::model::{Report, SiteKind, SiteRow};
use crate::report::units::{count, counted, duration, signed_size, size, size_per_minute};

/// Blanks before everything that belongs to a site's heading.
const INDENT: usize = 4;

pub(super) fn site(page: &mut Page, report: &Report, row: &SiteRow) {
    let noun = match row.kind {
        SiteKind::Heap => "block",
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
    if report.processes.len() > 1 {
        details.push(format!("[{}, pid {}]", visible(&row.allocator), row.pid));
    } else {
        details.push(format!("[{}]", visible(&row.allocator)));
    }
    page.flow(Tone::Plain, INDENT, " ", &details);
    stack::stack(page, &row.stack, is_verbose(report));
}

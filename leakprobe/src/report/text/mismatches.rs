//! Blocks that were given back to another allocator than their own.

use super::page::{Page, Tone};
use super::{is_verbose, stack};
use crate::report::escape::{Cut, fit, visible};
use crate::report::model::Report;
use crate::report::units::{counted, size};

/// Columns of an allocator's name.
const NAME: usize = 64;

pub(super) fn mismatches(page: &mut Page, report: &Report) {
    page.prose(
        Tone::Strong,
        4,
        "mismatched frees: given back to another allocator than the one that handed them out",
    );
    for row in &report.mismatches {
        let name = |name: &str| fit(&visible(name), NAME, Cut::Middle).into_owned();
        let mut heading = vec![
            format!("  {} in {}", size(row.bytes), counted(row.blocks, "block")),
            format!("from {}", name(&row.allocator)),
            format!("given to {}", name(&row.freed_by)),
        ];
        if report.processes.len() > 1 {
            heading.push(format!("in process {}", row.pid));
        }
        page.flow(Tone::Strong, 4, " ", &heading);
        page.line(Tone::Plain, "    allocated by");
        stack::stack(page, &row.stack, is_verbose(report));
        page.line(Tone::Plain, "    given back by");
        stack::stack(page, &row.freed_stack, is_verbose(report));
    }
}

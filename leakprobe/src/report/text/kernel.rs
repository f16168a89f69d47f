//! The head of a report on the kernel: its sums, and its caches.

use super::head;
use super::page::{Page, Tone};
use super::table::{Form, Row, table};
use crate::report::escape::{Cut, fit, visible};
use crate::report::model::{CacheRow, Kernel};
use crate::report::units::{count, counted, signed_count, size, size_per_minute};

/// Columns of a cache's name; longer ones lose their middle. Room for `a cache of 16384-byte objects`.
const NAME: usize = 32;

/// From this share on, a cache's frees are said to be partly untraced.
const UNTRACED: f64 = 0.001;

/// What is shown of a cache.
type Cells = [String; 8];

/// The size of an object goes first where there is little room: most names tell it.
const FORM: Form<8> = Form {
    heads: &[
        ["cache", "object", "traced", "traced", "traced", "slabinfo", "slabinfo", "frees"],
        ["", "bytes", "live", "bytes", "per min", "per min", "objects", "untraced"],
    ],
    left: &[0],
    forms: &[&[0, 1, 2, 3, 4, 5, 6, 7], &[0, 2, 3, 4, 5, 6, 7]],
};

/// `verbose`: how it is traced, too.
pub(super) fn kernel(page: &mut Page, kernel: &Kernel, verbose: bool) {
    page.flow(Tone::Strong, 2, " ", &[format!("kernel {}", visible(&kernel.release))]);
    let sums: Vec<String> = kernel
        .memory
        .iter()
        .enumerate()
        .map(|(index, row)| {
            let lead = if index == 0 { "  " } else { "" };
            format!("{lead}{} {}", visible(&row.name), head::bytes(row.bytes))
        })
        .collect();
    page.flow(Tone::Plain, 2, "  ", &sums);
    if verbose {
        page.prose(Tone::Plain, 4, &format!("  {}", traced_by(kernel)));
    }
    if kernel.caches.is_empty() {
        return;
    }
    page.blank();
    caches(page, &kernel.caches);
    let left_out = kernel.caches_with_live_objects.saturating_sub(kernel.caches.len() as u64);
    if left_out > 0 {
        page.line(Tone::Plain, &format!("  ... {} more (--top)", counted(left_out, "cache")));
    }
    if kernel.caches.iter().any(|cache| cache.contradicted) {
        let text = "! by /proc/slabinfo the cache did not grow by most of what was traced as live";
        page.prose(Tone::Warning, 2, text);
    }
    if let Some(slabs) = kernel.slab_pages.filter(|slabs| slabs.blocks > 0) {
        let (bytes, blocks) = (size(slabs.bytes), counted(slabs.blocks, "block"));
        let text = format!(
            "  {bytes} in {blocks} of pages are left out: slabs took them, and their objects are counted"
        );
        page.prose(Tone::Plain, 4, &text);
    }
}

/// `traced by raw tracepoints; kmem_cache_free_bulk (patched); not seen: ...`.
fn traced_by(kernel: &Kernel) -> String {
    let mut text = format!("traced by {} tracepoints", visible(&kernel.tracepoints));
    for function in &kernel.probed_functions {
        text.push_str(&format!("; {} ({})", visible(&function.name), visible(&function.how)));
    }
    for function in &kernel.unprobed_functions {
        text.push_str(&format!("; not seen: {}", visible(function)));
    }
    text
}

/// The caches in a table where one fits, else below each other.
fn caches(page: &mut Page, caches: &[CacheRow]) {
    let row = |cache: &CacheRow| Row {
        tone: if cache.contradicted { Tone::Warning } else { Tone::Plain },
        mark: mark(cache.contradicted),
        cells: cells(cache),
    };
    let rows: Vec<Row<8>> = caches.iter().map(row).collect();
    if !table(page, &FORM, &rows) {
        for (row, cache) in rows.iter().zip(caches) {
            page.flow(row.tone, 6, " ", &pieces(cache, &row.cells));
        }
    }
}

/// What stands before a cache: a log file has no colors.
fn mark(contradicted: bool) -> &'static str {
    if contradicted { "! " } else { "  " }
}

/// Name, object, live, bytes, growth traced and by /proc/slabinfo, change of its objects there, frees untraced. Growth is
/// by the minute, which the heading says.
fn cells(cache: &CacheRow) -> Cells {
    let per_minute = |rate| size_per_minute(rate).trim_end_matches("/min").to_owned();
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        fit(&visible(&cache.name), NAME, Cut::Middle).into_owned(),
        or_none(cache.object_bytes.map(count)),
        count(cache.live_objects),
        size(cache.live_bytes),
        per_minute(cache.growth_bytes_per_minute),
        or_none(cache.slabinfo_bytes_per_minute.map(per_minute)),
        or_none(cache.slabinfo_change.map(signed_count)),
        untraced(cache),
    ]
}

fn untraced(cache: &CacheRow) -> String {
    if cache.untraced_frees == 0 {
        "none seen".to_owned()
    } else if cache.untraced_free_share < UNTRACED {
        "<0.1%".to_owned()
    } else {
        format!("{:.1}%", cache.untraced_free_share * 100.0)
    }
}

/// A cache in words.
fn pieces(cache: &CacheRow, cells: &Cells) -> Vec<String> {
    let [name, object, live, bytes, traced, slabinfo, there, untraced] = cells;
    let mut pieces = vec![format!("{}{name}:", mark(cache.contradicted))];
    if cache.object_bytes.is_some() {
        pieces.push(format!("{object}-byte objects,"));
    }
    pieces.push(format!("{live} traced live,"));
    pieces.push(format!("{bytes},"));
    pieces.push(format!("{traced}/min;"));
    if cache.slabinfo_change.is_some() {
        pieces.push(format!("by slabinfo {there},"));
        pieces.push(format!("{slabinfo}/min;"));
    }
    pieces.push(format!("frees untraced: {untraced}"));
    pieces
}

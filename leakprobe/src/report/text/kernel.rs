//! The head of a report on the kernel: its sums, and its caches.

use super::head;
use super::page::{Page, Tone};
use crate::report::escape::{Cut, columns, fit, visible};
use crate::report::model::{CacheRow, Kernel};
use crate::report::units::{count, counted, signed_count, size, size_per_minute};

/// Columns of a cache's name; longer ones lose their middle.
const NAME: usize = 24;

/// Narrower pages have the caches below each other instead of in a table.
const TABLE: usize = 92;

/// From this share on, a cache's frees are said to be partly untraced.
const UNTRACED: f64 = 0.001;

pub(super) fn kernel(page: &mut Page, kernel: &Kernel) {
    page.flow(Tone::Strong, 2, " ", &[format!("kernel {}", visible(&kernel.release))]);
    let sums: Vec<String> = kernel
        .memory
        .iter()
        .enumerate()
        .map(|(index, row)| {
            let lead = if index == 0 { "  " } else { "" };
            format!("{lead}{} {}", row.name, head::bytes(row.bytes))
        })
        .collect();
    page.flow(Tone::Plain, 2, "  ", &sums);
    if kernel.caches.is_empty() {
        return;
    }
    page.blank();
    if page.width() >= TABLE {
        table(page, &kernel.caches);
    } else {
        list(page, &kernel.caches);
    }
    let left_out = kernel.caches_with_live_objects.saturating_sub(kernel.caches.len() as u64);
    if left_out > 0 {
        page.line(Tone::Plain, &format!("  ... {} more (--top)", counted(left_out, "cache")));
    }
}

/// A cache's cells: name, object, live, bytes, growth traced and by /proc/slabinfo, change of its objects there, frees
/// untraced.
fn cells(cache: &CacheRow) -> [String; 8] {
    [
        fit(&visible(&cache.name), NAME, Cut::Middle).into_owned(),
        cache.object_bytes.map_or_else(|| "-".to_owned(), count),
        count(cache.live_objects),
        size(cache.live_bytes),
        size_per_minute(cache.growth_bytes_per_minute),
        cache.slabinfo_bytes_per_minute.map_or_else(|| "-".to_owned(), size_per_minute),
        cache.slabinfo_change.map_or_else(|| "-".to_owned(), signed_count),
        untraced(cache),
    ]
}

fn untraced(cache: &CacheRow) -> String {
    if cache.untraced_frees == 0 {
        "none".to_owned()
    } else if cache.untraced_free_share < UNTRACED {
        "<0.1%".to_owned()
    } else {
        format!("{:.1}%", cache.untraced_free_share * 100.0)
    }
}

fn table(page: &mut Page, caches: &[CacheRow]) {
    let head =
        ["cache", "object", "live", "bytes", "traced", "slabinfo", "objects", "frees"].map(str::to_owned);
    let below = ["", "bytes", "traced", "", "growth", "growth", "there", "untraced"].map(str::to_owned);
    let rows: Vec<[String; 8]> = caches.iter().map(cells).collect();
    let all = || [&head, &below].into_iter().chain(&rows);
    let widths: [usize; 8] =
        std::array::from_fn(|column| all().map(|row| columns(&row[column])).max().unwrap_or(0));
    let line = |row: &[String; 8]| {
        let mut text = String::from("  ");
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let pad = " ".repeat(width.saturating_sub(columns(cell)));
            if column == 0 {
                text.push_str(cell);
                text.push_str(&pad);
            } else {
                text.push_str("  ");
                text.push_str(&pad);
                text.push_str(cell);
            }
        }
        text
    };
    page.line(Tone::Strong, &line(&head));
    page.line(Tone::Strong, &line(&below));
    for (row, cache) in rows.iter().zip(caches) {
        page.line(if cache.contradicted { Tone::Warning } else { Tone::Plain }, &line(row));
    }
}

fn list(page: &mut Page, caches: &[CacheRow]) {
    for cache in caches {
        let [name, object, live, bytes, traced, slabinfo, there, untraced] = cells(cache);
        let mut pieces = vec![format!("  {name}:")];
        if cache.object_bytes.is_some() {
            pieces.push(format!("{object}-byte objects,"));
        }
        pieces.push(format!("{live} live traced,"));
        pieces.push(format!("{bytes},"));
        pieces.push(format!("{traced};"));
        if cache.slabinfo_change.is_some() {
            pieces.push(format!("by slabinfo {there},"));
            pieces.push(format!("{slabinfo};"));
        }
        pieces.push(format!("frees untraced: {untraced}"));
        page.flow(if cache.contradicted { Tone::Warning } else { Tone::Plain }, 6, " ", &pieces);
    }
}

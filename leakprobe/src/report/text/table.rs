//! Tables: columns as wide as their widest cell, in the widest form that fits the page.

use super::page::{Page, Tone};
use crate::report::escape::columns;

/// A row: how it is set off, a mark of two columns before it (a log file has no colors), and its cells.
pub(super) struct Row<const N: usize> {
    pub tone: Tone,
    pub mark: &'static str,
    pub cells: [String; N],
}

/// Which columns stand on the left side of their room; numbers stand on the right.
pub(super) struct Form<const N: usize> {
    /// Lines of the heading.
    pub heads: &'static [[&'static str; N]],
    /// Columns of text.
    pub left: &'static [usize],
    /// The columns of each form of the table, the widest form first.
    pub forms: &'static [&'static [usize]],
}

/// Writes a table where one fits; whether one did.
pub(super) fn table<const N: usize>(page: &mut Page, form: &Form<N>, rows: &[Row<N>]) -> bool {
    let heads: Vec<[String; N]> = form.heads.iter().map(|head| head.map(str::to_owned)).collect();
    let cells = || heads.iter().chain(rows.iter().map(|row| &row.cells));
    let widths: [usize; N] =
        std::array::from_fn(|column| cells().map(|row| columns(&row[column])).max().unwrap_or(0));
    let fits =
        |columns: &&&[usize]| columns.iter().map(|&column| widths[column] + 2).sum::<usize>() <= page.width();
    let Some(shown) = form.forms.iter().find(fits) else { return false };
    let line = |mark: &str, cells: &[String; N]| {
        let mut text = mark.to_owned();
        for (place, &column) in shown.iter().enumerate() {
            let pad = " ".repeat(widths[column].saturating_sub(columns(&cells[column])));
            let gap = if place == 0 { "" } else { "  " };
            if form.left.contains(&column) {
                text.push_str(&format!("{gap}{}{pad}", cells[column]));
            } else {
                text.push_str(&format!("{gap}{pad}{}", cells[column]));
            }
        }
        text.truncate(text.trim_end().len());
        text
    };
    for head in &heads {
        page.line(Tone::Strong, &line("  ", head));
    }
    for row in rows {
        page.line(row.tone, &line(row.mark, &row.cells));
    }
    true
}

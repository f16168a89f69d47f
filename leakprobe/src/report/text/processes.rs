//! Several processes: one line each.

use super::head;
use super::page::{Page, Tone};
use super::table::{Form, Row, table};
use crate::report::escape::{Cut, fit, visible};
use crate::report::model::{Process, ProcessState, Report};
use crate::report::units::{count, counted, signed_size, size, size_per_minute};

/// Columns of a process's name in the table; the kernel's own are at most 15 bytes.
const NAME: usize = 16;

/// Columns of a container's name.
const CONTAINER: usize = 24;

/// Processes shown, unless all are asked for.
const SHOWN: usize = 20;

const FORM: Form<9> = Form {
    heads: &[["pid", "name", "RSS", "change", "outstanding", "older", "per min", "blocks", "container"]],
    left: &[1, 8],
    forms: &[&[0, 1, 2, 3, 4, 5, 6, 7, 8], &[0, 1, 2, 4, 5, 6, 8], &[0, 1, 4, 5, 8], &[0, 1, 4, 5]],
};

/// The same where none of them is in a container.
const BARE: Form<9> =
    Form { forms: &[&[0, 1, 2, 3, 4, 5, 6, 7], &[0, 1, 2, 4, 5, 6], &[0, 1, 4, 5]], ..FORM };

/// `verbose`: all of them.
pub(super) fn processes(page: &mut Page, report: &Report, verbose: bool) {
    let all = &report.processes;
    let shown = if verbose { all.len() } else { SHOWN };
    let rows: Vec<Row<9>> = all.iter().take(shown).map(row).collect();
    let form = if all.iter().any(|process| process.container.is_some()) { FORM } else { BARE };
    if !table(page, &form, &rows) {
        for (row, process) in rows.iter().zip(all) {
            page.flow(row.tone, 4, " ", &pieces(process, &row.cells));
        }
    }
    let with_copies = all.iter().filter(|process| process.inherited_blocks > 0).count();
    if with_copies > 0 {
        let pieces = [
            format!("  forked: {}", head::processes(with_copies as u64)),
            "with copies of blocks of the one before,".to_owned(),
            "which count for that one alone".to_owned(),
        ];
        page.flow(Tone::Plain, 4, " ", &pieces);
    }
    if let Some(left_out @ 1..) = all.len().checked_sub(shown) {
        page.line(Tone::Plain, &format!("  ... {} more (--verbose)", head::processes(left_out as u64)));
    }
}

fn row(process: &Process) -> Row<9> {
    let (rss, change) = match (&process.state, process.vm_rss_bytes) {
        (ProcessState::Exited(_), _) => ("exited".to_owned(), "-".to_owned()),
        (ProcessState::Running, Some(gauge)) => (size(gauge.now), signed_size(gauge.change)),
        (ProcessState::Running, None) => ("unknown".to_owned(), "-".to_owned()),
    };
    let per_minute = size_per_minute(process.growth_bytes_per_minute);
    Row {
        tone: Tone::Plain,
        mark: "  ",
        cells: [
            process.pid.to_string(),
            fit(&visible(&process.name), NAME, Cut::Middle).into_owned(),
            rss,
            change,
            size(process.live_bytes),
            size(process.survivor_bytes),
            per_minute.trim_end_matches("/min").to_owned(),
            count(process.live_blocks),
            fit(&head::container(process).unwrap_or_default(), CONTAINER, Cut::Middle).into_owned(),
        ],
    }
}

/// A process in words.
fn pieces(process: &Process, cells: &[String; 9]) -> Vec<String> {
    let [pid, name, rss, _, live, older, per_minute, ..] = cells;
    vec![
        format!("  {name} (pid {pid}):"),
        format!("RSS {rss},"),
        format!("{live} in {},", counted(process.live_blocks, "block")),
        format!("{older} older,"),
        format!("{per_minute}/min"),
    ]
}

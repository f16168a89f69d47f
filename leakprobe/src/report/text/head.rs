//! The top of a report: which process, how big it is, how much is outstanding.

use super::page::{Page, Tone};
use crate::report::escape::{Cut, columns, fit, visible};
use crate::report::model::{Gauge, Process, ProcessState, Report};
use crate::report::units::{count, counted, duration, signed_count, signed_size, size, size_per_minute};

/// A rule is not drawn further than this, however wide the terminal.
const RULE: usize = 120;

/// Columns of a process's name; the kernel's own are at most 15 bytes.
const NAME: usize = 32;

/// The line that separates a report from the one before it.
pub(super) fn headline(page: &mut Page, report: &Report) {
    let kind = if report.is_final { "final report" } else { "report" };
    let subject = match report.processes.as_slice() {
        [] if report.kernel.is_some() => "the kernel".to_owned(),
        [process] => format!("{} (pid {})", name(process), process.pid),
        all => processes(all.len() as u64),
    };
    let pieces = [
        format!("== {kind} {}:", count(report.sequence)),
        subject,
        format!("after {},", duration(report.elapsed_seconds)),
        format!("{} ==", visible(&report.time)),
    ];
    let line = pieces.join(" ");
    let used = columns(&line);
    if used <= page.width() {
        page.line(Tone::Strong, &(line + &"=".repeat(page.width().min(RULE).saturating_sub(used))));
    } else {
        page.flow(Tone::Strong, 3, " ", &pieces);
    }
}

/// One process: name, command line and gauges.
pub(super) fn process(page: &mut Page, process: &Process) {
    let state = match &process.state {
        ProcessState::Running => "running".to_owned(),
        ProcessState::Exited(None) => "exited".to_owned(),
        ProcessState::Exited(Some(how)) => format!("exited: {}", visible(how)),
    };
    let mut first = vec![format!("{} (pid {}),", name(process), process.pid), state];
    if process.programs > 1 {
        first.push(format!("(its {} program, by exec)", ordinal(process.programs)));
    }
    if let Some(pid) = process.namespace_pid {
        first.push(format!("(pid {pid} in its own namespace)"));
    }
    page.flow(Tone::Strong, 2, " ", &first);
    if let Some(parent) = process.forked_from {
        page.flow(Tone::Plain, 4, " ", &forked(process, parent));
    }
    if let Some(container) = container(process) {
        page.flow(Tone::Plain, 4, " ", &[format!("  container {container}")]);
    }
    if !process.command_line.is_empty() {
        let line = format!("  {}", command_line(&process.command_line));
        page.line(Tone::Plain, &fit(&line, page.width(), Cut::End));
    }
    page.flow(
        Tone::Plain,
        2,
        "  ",
        &[
            format!("  VmSize {}", bytes(process.vm_size_bytes)),
            format!("VmRSS {}", bytes(process.vm_rss_bytes)),
            format!("VmData {}", bytes(process.vm_data_bytes)),
            format!("threads {}", number(process.threads)),
            format!("open files {}", number(process.open_files)),
        ],
    );
}

/// Whose child it is, and what it had from it.
fn forked(process: &Process, parent: u32) -> Vec<String> {
    let mut words = vec![format!("  forked from process {parent}")];
    if process.inherited_blocks > 0 {
        words.push(format!("with copies of its {}", counted(process.inherited_blocks, "block")));
        words.push(format!("({}),", size(process.inherited_bytes)));
        words.push("which are not counted here;".to_owned());
        words.push(format!("has given back {} from before", count(process.inherited_freed)));
    }
    words
}

/// `12 processes`.
pub(super) fn processes(number: u64) -> String {
    if number == 1 { "1 process".to_owned() } else { format!("{} processes", count(number)) }
}

/// The container's name, escaped.
pub(super) fn container(process: &Process) -> Option<String> {
    process.container.as_deref().map(|name| visible(name).into_owned())
}

fn name(process: &Process) -> String {
    fit(&visible(&process.name), NAME, Cut::Middle).into_owned()
}

/// Arguments as a shell would show them, in so far as one can tell where each begins and ends.
fn command_line(arguments: &[String]) -> String {
    // A program that writes a title over its arguments leaves empty ones behind it.
    let last = arguments.iter().rposition(|argument| !argument.is_empty()).map_or(0, |last| last + 1);
    let mut line = String::new();
    for argument in &arguments[..last] {
        if !line.is_empty() {
            line.push(' ');
        }
        let shown = visible(argument);
        if shown.is_empty() || shown.contains([' ', '\'', '"']) {
            line.push_str(&format!("'{}'", shown.replace('\'', r"'\''")));
        } else {
            line.push_str(&shown);
        }
        // More than any terminal shows in a line; there can be megabytes of it.
        if line.len() > crate::report::escape::MAX_CHARS {
            break;
        }
    }
    line
}

pub(super) fn bytes(gauge: Option<Gauge>) -> String {
    gauge.map_or_else(
        || "unknown".to_owned(),
        |gauge| format!("{}{}", size(gauge.now), change(gauge.change, signed_size)),
    )
}

fn number(gauge: Option<Gauge>) -> String {
    gauge.map_or_else(
        || "unknown".to_owned(),
        |gauge| format!("{}{}", count(gauge.now), change(gauge.change, signed_count)),
    )
}

fn change(change: i64, show: impl Fn(i64) -> String) -> String {
    if change == 0 { " (unchanged)".to_owned() } else { format!(" ({})", show(change)) }
}

fn ordinal(number: u32) -> String {
    let suffix = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{suffix}")
}

/// The sums over all sites.
pub(super) fn totals(page: &mut Page, report: &Report) {
    let totals = &report.totals;
    page.flow(
        Tone::Strong,
        2,
        " ",
        &[
            format!("outstanding: {} in {};", size(totals.live_bytes), counted(totals.live_blocks, "block")),
            format!("{} {},", signed_size(totals.growth_bytes), since(report)),
            size_per_minute(totals.growth_bytes_per_minute),
        ],
    );
    let mut survivors = vec![
        format!("older than {}:", duration(report.older_seconds)),
        format!("{} in {}", size(totals.survivor_bytes), counted(totals.survivor_blocks, "block")),
    ];
    if report.sites_with_survivors > 0 {
        survivors.push(format!("at {}", counted(report.sites_with_survivors, "site")));
    }
    let shown = report.sites.len() as u64;
    if shown > 0 && shown < report.sites_with_survivors {
        survivors.push(format!("({} shown)", count(shown)));
    }
    page.flow(Tone::Plain, 2, " ", &survivors);
}

/// Since when growth is counted.
pub(super) fn since(report: &Report) -> &'static str {
    if report.sequence <= 1 { "since the start" } else { "since last report" }
}

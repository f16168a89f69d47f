//! The report as text for a terminal, a log file or a mail.

mod head;
mod kernel;
mod ledger;
mod mismatches;
mod page;
mod probes;
mod processes;
mod site;
mod stack;
mod table;

#[cfg(test)]
mod kernel_snapshots;
#[cfg(test)]
mod snapshots;
#[cfg(test)]
mod tests;

use super::model::Report;
use super::units::{counted, duration};
use page::{Page, Tone};

/// The report as text of at most `width` columns (20 at least; [`usize::MAX`] for no limit), with line
/// breaks and without blanks at their ends. Colors, which are terminal escape sequences, only with `color`.
///
/// The order is that of a reader who was woken by it: what may be wrong with the numbers, what the process
/// is, how much is outstanding, who owns it, what was lost. A report with probes in it (`--verbose`) shows
/// the whole ledger, the probes and whole stacks too.
pub fn text(report: &Report, width: usize, color: bool) -> String {
    let mut page = Page::new(width, color);
    head::headline(&mut page, report);
    for warning in &report.warnings {
        let text = format!("warning: {}", super::escape::visible(&warning.text));
        page.prose(Tone::Warning, 2, &text);
    }
    if report.processes.len() > 1 {
        page.blank();
        processes::processes(&mut page, report, is_verbose(report));
    }
    if report.processes.len() == 1 || (is_verbose(report) && !report.processes.is_empty()) {
        for process in &report.processes {
            page.blank();
            head::process(&mut page, process);
        }
    }
    if let Some(kernel) = &report.kernel {
        page.blank();
        kernel::kernel(&mut page, kernel, is_verbose(report));
    }
    page.blank();
    head::totals(&mut page, report);
    if report.sites.is_empty() {
        page.blank();
        page.prose(Tone::Strong, 0, &nothing_to_show(report));
    }
    for row in &report.sites {
        page.blank();
        site::site(&mut page, report, row);
    }
    if !report.mismatches.is_empty() {
        page.blank();
        mismatches::mismatches(&mut page, report);
    }
    page.blank();
    ledger::ledger(&mut page, &report.ledger, report.kernel.is_some(), is_verbose(report));
    if !report.probes.is_empty() {
        page.blank();
        probes::probes(&mut page, report);
    }
    if is_verbose(report) && !report.stacks.is_empty() {
        page.blank();
        probes::stacks(&mut page, report);
    }
    page.finish()
}

/// Probes are in a report only when `--verbose` asks for them; the kernel's are always few.
fn is_verbose(report: &Report) -> bool {
    !report.probes.is_empty() || report.verbose
}

fn nothing_to_show(report: &Report) -> String {
    let watched = duration(report.elapsed_seconds);
    let calls = report.ledger.allocations.hits;
    let doubt = if report.ledger.lost() > 0 { " Something was lost, though: see the ledger." } else { "" };
    if report.sites_with_survivors > 0 {
        let sites = counted(report.sites_with_survivors, "site");
        format!("no site is shown: --top leaves out all of the {sites} that hold survivors.")
    } else if report.totals.allocated_blocks > 0 {
        let older = duration(report.older_seconds);
        format!("no block older than {older} is outstanding: nothing has survived so far.{doubt}")
    } else if calls > 0 {
        let calls = counted(calls, "allocation");
        format!("no block was recorded in {watched}, of {calls}: the ledger says why.{doubt}")
    } else if report.kernel.is_some() {
        format!("no allocation of the kernel's was seen in {watched}.{doubt}")
    } else {
        format!(
            "no allocation was seen in {watched}: nothing has called a probed allocator function. Is the \
             program idle?{doubt}"
        )
    }
}

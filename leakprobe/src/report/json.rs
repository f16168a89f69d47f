//! The report as JSON: one object, one line. `docs/report-schema.md` is its documentation.

use super::escape::bounded;
use super::model::{Frame, Kernel, Process, ProcessState, Report, SiteRow};

/// Characters of one string that are written at most; of longer ones the middle is left out.
pub const MAX_CHARS: usize = 16 * 1024;

/// Arguments of a command line that are written at most.
pub const MAX_ARGUMENTS: usize = 1024;

/// The report as one JSON object in one line, without a line break at its end: a session's reports,
/// written one a line, are JSON Lines.
///
/// Strings are whole up to [`MAX_CHARS`]; JSON's own escapes take care of control characters. Numbers that
/// are not finite, which JSON cannot write, become 0.
///
/// # Errors
/// None is known: it fails when a value of the model cannot be written as JSON, and all can.
pub fn json(report: &Report) -> serde_json::Result<String> {
    let mut report = report.clone();
    tidy(&mut report);
    serde_json::to_string(&report)
}

fn tidy(report: &mut Report) {
    for seconds in [&mut report.elapsed_seconds, &mut report.since_last_seconds, &mut report.older_seconds] {
        finite(seconds);
    }
    finite(&mut report.totals.growth_bytes_per_minute);
    report.warnings.iter_mut().for_each(|warning| bound(&mut warning.text));
    report.processes.iter_mut().for_each(tidy_process);
    report.kernel.iter_mut().for_each(tidy_kernel);
    report.sites.iter_mut().for_each(tidy_site);
    for probe in &mut report.probes {
        bound(&mut probe.object);
        probe.symbols.iter_mut().for_each(bound);
        probe.reason.iter_mut().for_each(bound);
    }
}

fn tidy_process(process: &mut Process) {
    bound(&mut process.name);
    process.command_line.truncate(MAX_ARGUMENTS);
    process.command_line.iter_mut().for_each(bound);
    if let ProcessState::Exited(Some(how)) = &mut process.state {
        bound(how);
    }
}

fn tidy_kernel(kernel: &mut Kernel) {
    bound(&mut kernel.release);
    kernel.probed_functions.iter_mut().for_each(|function| bound(&mut function.name));
    kernel.unprobed_functions.iter_mut().for_each(bound);
    for cache in &mut kernel.caches {
        bound(&mut cache.name);
        finite(&mut cache.growth_bytes_per_minute);
        finite(&mut cache.untraced_free_share);
        cache.slabinfo_bytes_per_minute.iter_mut().for_each(finite);
    }
}

fn tidy_site(site: &mut SiteRow) {
    for number in [&mut site.growth_bytes_per_minute, &mut site.oldest_seconds, &mut site.median_seconds] {
        finite(number);
    }
    bound(&mut site.allocator);
    site.made_by.iter_mut().for_each(|maker| bound(&mut maker.name));
    site.contradiction.iter_mut().for_each(bound);
    for Frame { function, file, object, unknown, .. } in &mut site.stack.frames {
        [function, file, object, unknown].into_iter().flatten().for_each(bound);
    }
}

fn bound(text: &mut String) {
    if let std::borrow::Cow::Owned(shorter) = bounded(text, MAX_CHARS) {
        *text = shorter;
    }
}

fn finite(number: &mut f64) {
    if !number.is_finite() {
        *number = 0.0;
    }
}

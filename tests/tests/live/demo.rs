//! `leakprobe demo`: what a newcomer runs first.

use leakprobe_tests::{probe, run};

use crate::last;

/// The first site whose stack has this function.
fn rank(report: &leakprobe_tests::report::Report, function: &str) -> Option<usize> {
    let named = |name: &Option<String>| name.as_deref().is_some_and(|name| name.ends_with(function));
    report.sites.iter().position(|site| site.stack.frames.iter().any(|frame| named(&frame.function)))
}

#[test]
fn the_demonstration_shows_its_two_leaks_first_and_ends() {
    let output = probe::fresh_output();
    let mut arguments = vec!["demo".to_owned()];
    arguments.extend(["--duration", "3s", "--format", "json", "--output"].map(str::to_owned));
    arguments.push(output.display().to_string());
    let ended = run::to_end(&mut run::command(&arguments));
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let reports = probe::final_reports(&output);
    let report = last(&reports);
    assert_eq!(rank(report, "remember_header"), Some(0), "{}", report.digest());
    assert_eq!(rank(report, "append_audit_line"), Some(1), "{}", report.digest());
    // Each block of the first path is of 256 bytes, and none is ever given back.
    let leak = &report.sites[0];
    assert_eq!(leak.live_bytes, 256 * leak.live_blocks, "{}", report.digest());
    assert_eq!((leak.allocated_blocks, leak.freed_blocks), (leak.live_blocks, 0), "{}", report.digest());
    let _ = std::fs::remove_file(&output);
}

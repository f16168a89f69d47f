//! What holds for every report's text.

use super::text;
use crate::report::escape::columns;
use crate::report::model::{Report, StackQuality};
use crate::report::sample;

fn samples() -> [Report; 6] {
    use sample::{everyday, full, hostile, idle, losses, nothing_survived};
    [everyday(), nothing_survived(), idle(), losses(), full(), hostile()]
}

#[test]
fn lines_fit_and_end_without_blanks_and_hold_no_control_character() {
    for report in samples() {
        for width in 40..140 {
            for line in text(&report, width, false).lines() {
                assert!(columns(line) <= width, "{} columns of {width}: {line}", columns(line));
                assert_eq!(line, line.trim_end());
                assert!(
                    !line.contains(|c: char| c.is_control() || "\u{202e}\u{200b}".contains(c)),
                    "{line:?}"
                );
            }
        }
    }
}

#[test]
fn any_width_is_taken() {
    for report in samples() {
        for width in [0, 1, 20, usize::MAX] {
            assert!(text(&report, width, true).ends_with('\n'));
        }
    }
}

#[test]
fn colors_add_nothing_but_colors() {
    for report in samples() {
        let colored = text(&report, 80, true);
        assert!(colored.starts_with("\x1b[1m== "));
        let plain =
            ["\x1b[1;33m", "\x1b[1m", "\x1b[0m"].iter().fold(colored, |text, code| text.replace(code, ""));
        assert_eq!(plain, text(&report, 80, false));
    }
}

#[test]
fn warnings_and_losses_are_yellow() {
    let colored = text(&sample::losses(), 80, true);
    assert_eq!(colored.matches("\x1b[1;33mwarning: ").count(), 3);
    assert_eq!(colored.matches("\x1b[1;33m        lost: ").count(), 3);
}

/// A report whose only site has these frames.
fn with_frames(functions: impl IntoIterator<Item = String>) -> Report {
    let mut report = sample::everyday();
    let frame = report.sites[0].stack.frames[1].clone();
    report.sites.truncate(1);
    report.sites[0].stack.quality = StackQuality::Whole;
    report.sites[0].stack.frames = functions
        .into_iter()
        .map(|function| crate::report::model::Frame { function: Some(function), ..frame.clone() })
        .collect();
    report
}

/// The lines of the only stack, without the places.
fn names(report: &Report) -> Vec<String> {
    let text = text(report, 80, false);
    let lines = text.lines().filter_map(|line| line.strip_prefix("      "));
    lines
        .filter(|line| !line.starts_with(' '))
        .map(|line| line.split("  ").next().unwrap().to_owned())
        .collect()
}

#[test]
fn recursion_is_cut_short_from_the_fifth_frame_on() {
    let repeat = |times| names(&with_frames(std::iter::repeat_n("f".to_owned(), times)));
    assert_eq!(repeat(4), ["f", "f", "f", "f"]);
    assert_eq!(repeat(5), ["f", "... 4 more of the same"]);
    assert_eq!(repeat(127), ["f", "... 126 more of the same"]);
}

#[test]
fn mutual_recursion_is_cut_short_too() {
    let cycle = ["even", "odd"].map(str::to_owned).into_iter().cycle().take(101);
    assert_eq!(names(&with_frames(cycle)), ["even", "odd", "... 49 rounds more of these 2 frames", "even"]);
}

#[test]
fn a_deep_stack_shows_both_ends_unless_all_is_wanted() {
    let mut report = with_frames((0..100).map(|n| format!("f{n}")));
    let shown = names(&report);
    assert_eq!(shown.len(), 39);
    assert_eq!(shown[29..32], ["f29", "... 62 frames, shown by --verbose", "f92"]);
    report.probes = sample::full().probes;
    assert_eq!(names(&report).iter().filter(|name| name.starts_with('f')).count(), 100);
    let report = with_frames((0..39).map(|n| format!("f{n}")));
    assert!(names(&report).iter().all(|name| name.starts_with('f')));
}

#[test]
fn nothing_to_show_says_why() {
    let strong = |report: &Report| text(report, usize::MAX, false).split("\n\n").nth(3).unwrap().to_owned();
    let mut report = sample::nothing_survived();
    assert_eq!(strong(&report), "no block older than 7.5s is outstanding: nothing has survived so far.");
    report.ledger = sample::losses().ledger;
    assert_eq!(
        strong(&report),
        "no block older than 7.5s is outstanding: nothing has survived so far. Something was lost, though: see \
         the ledger."
    );
    report.sites_with_survivors = 2;
    assert_eq!(strong(&report), "no site is shown: --top leaves out all of the 2 sites that hold survivors.");
    let mut report = sample::idle();
    report.ledger.allocations.hits = 3;
    assert_eq!(strong(&report), "no block was recorded in 15s, of 3 allocations: the ledger says why.");
}

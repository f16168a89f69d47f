//! The matrix as a table: test groups by kernel, then what failed, what was skipped and why, and what the verifiers
//! counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use super::verdict::{Outcome, Run};

/// The verifier's limit of instructions for one program.
const VERIFIER_LIMIT: u64 = 1_000_000;

/// Instructions of one program from which on it is told of.
const EARLY: u64 = VERIFIER_LIMIT / 4;

/// A kernel's name, its run, and how long that took.
pub type Row<'a> = (&'a str, &'a Run, Duration);

/// Everything that there is to say.
pub fn print(rows: &[Row<'_>]) -> String {
    let mut text = groups(rows);
    let _ = writeln!(
        text,
        "\nverifier: instructions processed (of {VERIFIER_LIMIT}), and ms to load under emulation"
    );
    text.push_str(&programs(rows));
    text.push_str(&near_the_limit(rows));
    text.push_str(&skipped(rows));
    for (name, run, _) in rows {
        for failure in &run.failures {
            let _ = writeln!(text, "\n{name} FAILED: {failure}");
        }
    }
    text
}

/// Aligns cells in columns, the first to the left and the others to the right.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            let _ = if column == 0 { write!(row, "{cell:<width$}") } else { write!(row, "  {cell:>width$}") };
        }
        let _ = writeln!(text, "{}", row.trim_end());
    }
    text
}

fn groups(rows: &[Row<'_>]) -> String {
    let group = |name: &str| name.split("::").next().unwrap_or_default().to_owned();
    let all: BTreeSet<String> =
        rows.iter().flat_map(|(_, run, _)| run.tests.keys().map(|name| group(name))).collect();
    let line = |first: &str, cell: &dyn Fn(&Row<'_>) -> String| {
        std::iter::once(first.to_owned()).chain(rows.iter().map(cell)).collect::<Vec<_>>()
    };
    let mut lines = vec![
        line("kernel", &|(name, ..)| (*name).to_owned()),
        line("", &|(_, run, _)| if run.release.is_empty() { "?".to_owned() } else { run.release.clone() }),
    ];
    for name in &all {
        lines.push(line(name, &|(_, run, _)| {
            counts(run.tests.iter().filter(|(test, _)| group(test) == *name).map(|(_, outcome)| outcome))
        }));
    }
    lines.push(line("all", &|(_, run, _)| counts(run.tests.values())));
    lines.push(line("seconds", &|(.., took)| took.as_secs().to_string()));
    lines.push(line("verdict", &|(_, run, _)| if run.is_good() { "ok" } else { "FAILED" }.to_owned()));
    aligned(&lines)
}

/// `5 pass, 1 FAIL, 2 skip`, without what is zero.
fn counts<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> String {
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for outcome in outcomes {
        match outcome {
            Outcome::Passed => passed += 1,
            Outcome::Failed => failed += 1,
            Outcome::Skipped(_) => skipped += 1,
        }
    }
    let parts: Vec<String> = [(passed, "pass"), (failed, "FAIL"), (skipped, "skip")]
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

fn programs(rows: &[Row<'_>]) -> String {
    let names: BTreeSet<&str> = rows
        .iter()
        .flat_map(|(_, run, _)| run.programs.iter().map(|program| program.name.as_str()))
        .collect();
    let mut lines = vec![
        std::iter::once("program".to_owned())
            .chain(rows.iter().map(|(name, ..)| (*name).to_owned()))
            .collect::<Vec<_>>(),
    ];
    for name in names {
        let cells = rows.iter().map(|(_, run, _)| {
            run.programs.iter().find(|program| program.name == name).map_or_else(
                || "-".to_owned(),
                |program| format!("{} {:>5.0} ms", program.instructions, program.load_ms),
            )
        });
        lines.push(std::iter::once(name.to_owned()).chain(cells).collect());
    }
    aligned(&lines)
}

/// Programs that a small change, or the next kernel, could bring to the verifier's limit.
fn near_the_limit(rows: &[Row<'_>]) -> String {
    let mut text = String::new();
    for (kernel, run, _) in rows {
        for program in run.programs.iter().filter(|program| program.instructions >= EARLY) {
            let percent = program.instructions * 100 / VERIFIER_LIMIT;
            let _ = writeln!(
                text,
                "warning: {} takes {percent}% of the verifier's limit on {kernel}",
                program.name
            );
        }
    }
    text
}

/// Each reason once, with the tests and kernels that it holds for.
fn skipped(rows: &[Row<'_>]) -> String {
    let mut reasons: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for (kernel, run, _) in rows {
        for (test, outcome) in &run.tests {
            if let Outcome::Skipped(reason) = outcome {
                reasons.entry((test, reason)).or_default().push(kernel);
            }
        }
    }
    let mut text = String::new();
    if !reasons.is_empty() {
        let _ = writeln!(text, "\nskipped, each with the reason that it proved:");
    }
    for ((test, reason), kernels) in reasons {
        let _ = writeln!(text, "  {test} ({}): {reason}", kernels.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::verdict::Program;

    #[test]
    fn the_table_shows_groups_programs_and_reasons() {
        let mut old = Run { release: "5.10.0".to_owned(), ..Run::default() };
        old.tests.insert("calls::one".to_owned(), Outcome::Passed);
        old.tests.insert("calls::two".to_owned(), Outcome::Failed);
        old.failures.push("the live tests ended with status 101".to_owned());
        let mut new = Run { release: "7.2.13".to_owned(), ..Run::default() };
        new.tests.insert("calls::one".to_owned(), Outcome::Passed);
        new.tests.insert("calls::two".to_owned(), Outcome::Passed);
        new.tests.insert("life::exec".to_owned(), Outcome::Skipped("there is no python3".to_owned()));
        new.programs.push(Program { name: "mmap_enter".to_owned(), instructions: 250_000, load_ms: 900.0 });
        new.programs.push(Program { name: "free_enter".to_owned(), instructions: 347, load_ms: 12.4 });
        let rows = [("5.10", &old, Duration::from_secs(61)), ("7.x", &new, Duration::from_millis(48_900))];
        let expected = "\
kernel             5.10           7.x
                 5.10.0        7.2.13
calls    1 pass, 1 FAIL        2 pass
life                  -        1 skip
all      1 pass, 1 FAIL  2 pass, 1 skip
";
        let text = print(&rows);
        let squeezed = |text: &str| -> Vec<String> {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
        };
        assert_eq!(squeezed(&text)[..5], squeezed(expected)[..], "{text}");
        assert!(squeezed(&text).contains(&"verdict FAILED ok".to_owned()), "{text}");
        assert!(squeezed(&text).contains(&"free_enter - 347 12 ms".to_owned()), "{text}");
        let warnings: Vec<&str> = text.lines().filter(|line| line.starts_with("warning: ")).collect();
        assert_eq!(warnings, ["warning: mmap_enter takes 25% of the verifier's limit on 7.x"]);
        assert!(text.contains("  life::exec (7.x): there is no python3\n"), "{text}");
        assert!(text.contains("5.10 FAILED: the live tests ended with status 101"), "{text}");
    }
}

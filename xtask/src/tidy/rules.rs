//! The rules about the text of a file.

use std::path::Path;

use super::{Findings, Problem};

/// Words that code in a folder (or a file) must not contain. Comments and tests are free.
pub struct Rule {
    /// From the workspace's folder, without the extension of a file.
    place: &'static str,
    forbidden: &'static [&'static [&'static str]],
    why: &'static str,
}

const CLOCKS: &[&str] = &["Instant::now", "SystemTime", "clock_gettime"];
const FILES: &[&str] = &["std::fs", "std::io", "procfs", "nix"];
const BPF: &[&str] = &["aya", "aya_obj", "MapData"];

/// The folders that are pure, and what that means for each.
pub const RULES: &[Rule] = &[
    Rule {
        place: "leakprobe/src/probe/plan",
        forbidden: &[CLOCKS, FILES, BPF],
        why: "the plan is a function of code bytes alone",
    },
    Rule {
        place: "leakprobe/src/lifetime",
        forbidden: &[CLOCKS, FILES, BPF],
        why: "lifetimes are computed from snapshots, which carry their time: a session can be replayed",
    },
    Rule {
        place: "leakprobe/src/analysis",
        forbidden: &[CLOCKS, FILES, BPF],
        why: "verdicts are computed from what was counted: a session can be replayed",
    },
    Rule {
        place: "leakprobe/src/report",
        forbidden: &[BPF],
        why: "printers see the report, which is plain data, and no map",
    },
];

/// Markers of unfinished work; written in two parts, since this file is checked too.
const UNFINISHED: [&str; 3] = [concat!("to", "do!"), concat!("unim", "plemented!"), concat!("FIX", "ME")];

/// Lines at which a file deserves a second look, and at which it is too long.
const LONG: usize = 400;
const TOO_LONG: usize = 600;

/// A map that is longer is not read.
const MAP_LINES: usize = 150;

impl Rule {
    /// Whether the file is the rule's, or lies in the rule's folder.
    pub fn is_about(&self, file: &Path, root: &Path) -> bool {
        let place = root.join(self.place);
        file.starts_with(&place) || file.with_extension("") == place
    }
}

/// Checks one file; its name is from the workspace's folder.
pub fn check(file: &Path, text: &str, findings: &mut Findings) {
    let problem = |line, what| Problem { file: file.to_path_buf(), line, what };
    let lines = written_lines(text);
    if lines > TOO_LONG {
        findings.problems.push(problem(0, format!("{lines} lines; split it ({TOO_LONG} at most)")));
    } else if lines > LONG {
        findings.warnings.push(problem(0, format!("{lines} lines; is it still one idea?")));
    }
    for (number, line) in text.lines().enumerate() {
        for word in UNFINISHED.into_iter().filter(|word| line.contains(word)) {
            findings.problems.push(problem(number + 1, format!("{word}: finish it or leave it out")));
        }
    }
    for rule in RULES.iter().filter(|rule| rule.is_about(file, Path::new(""))) {
        for (number, code) in code_lines(file, text) {
            for word in rule.forbidden.iter().copied().flatten().filter(|word| has_word(code, word)) {
                findings.problems.push(problem(number, format!("{word} in {}: {}", rule.place, rule.why)));
            }
        }
    }
}

/// Checks ARCHITECTURE.md.
pub fn check_map(text: &str, problems: &mut Vec<Problem>) {
    let lines = text.lines().count();
    if lines > MAP_LINES {
        let what = format!("{lines} lines; a map of the code has {MAP_LINES} at most");
        problems.push(Problem { file: "ARCHITECTURE.md".into(), line: 0, what });
    }
}

/// Lines without those of inline snapshots (`@r"` to a line that begins with the closing quote): these are
/// recorded output, not something to read as code.
fn written_lines(text: &str) -> usize {
    let mut closing = None;
    let mut written = 0;
    for line in text.lines() {
        match closing {
            Some(quote) if line.trim_start().starts_with(quote) => closing = None,
            Some(_) => continue,
            None if line.trim_end().ends_with("@r\"") => closing = Some("\""),
            None if line.trim_end().ends_with("@r#\"") => closing = Some("\"#"),
            None => {}
        }
        written += 1;
    }
    written
}

/// The numbered lines before the tests, without comments: `//` ends a line unless it is part of a URL.
fn code_lines<'a>(file: &Path, text: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    let is_test = file.file_stem().is_some_and(|stem| stem == "tests");
    let code = text.lines().take_while(move |line| !is_test && line.trim() != "#[cfg(test)]");
    code.enumerate().map(|(index, line)| {
        let comment = line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':'));
        (index + 1, comment.map_or(line, |(at, _)| &line[..at]))
    })
}

/// Whether the word stands there, and not as a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let in_name = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let bytes = line.as_bytes();
    line.match_indices(word).any(|(at, _)| {
        let before = at.checked_sub(1).and_then(|at| bytes.get(at));
        !in_name(before) && !in_name(bytes.get(at + word.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(file: &str, text: &str) -> Vec<(usize, String)> {
        let mut findings = Findings::default();
        check(Path::new(file), text, &mut findings);
        findings.problems.into_iter().map(|problem| (problem.line, problem.what)).collect()
    }

    #[test]
    fn a_clock_in_the_lifetimes_is_found() {
        let text = "use std::time::Instant;\nfn now() -> Instant {\n    Instant::now()\n}\n";
        for file in
            ["leakprobe/src/lifetime/mod.rs", "leakprobe/src/lifetime.rs", "leakprobe/src/analysis/trend.rs"]
        {
            let found = problems(file, text);
            assert_eq!(found.len(), 1, "{file}");
            assert!(found[0].0 == 3 && found[0].1.starts_with("Instant::now in leakprobe/src/"), "{found:?}");
        }
        assert_eq!(problems("leakprobe/src/drain/mod.rs", text), []);
        assert_eq!(problems("leakprobe/src/lifetimes.rs", text), []);
    }

    #[test]
    fn a_printer_that_reads_a_map_is_found() {
        assert_eq!(problems("leakprobe/src/report/text.rs", "use aya::maps::HashMap;\n").len(), 1);
        assert_eq!(problems("leakprobe/src/report/text.rs", "let bayaya = 1; // aya\nlet aya_x = 2;\n"), []);
    }

    #[test]
    fn tests_may_read_their_files() {
        let text = "fn pure() {}\n#[cfg(test)]\nmod tests { use std::fs; }\n";
        assert_eq!(problems("leakprobe/src/analysis/trend.rs", text), []);
        assert_eq!(problems("leakprobe/src/analysis/tests.rs", "use std::fs;\n"), []);
        assert_eq!(problems("leakprobe/src/analysis/trend.rs", "use std::fs;\n").len(), 1);
    }

    #[test]
    fn unfinished_work_and_long_files_are_found() {
        for word in UNFINISHED {
            assert_eq!(problems("leakprobe/src/main.rs", &format!("// {word}\n")).len(), 1);
        }
        assert_eq!(problems("leakprobe/src/main.rs", &"\n".repeat(TOO_LONG)), []);
        assert_eq!(problems("leakprobe/src/main.rs", &"\n".repeat(TOO_LONG + 1)).len(), 1);
        let mut findings = Findings::default();
        check(Path::new("leakprobe/src/main.rs"), &"\n".repeat(LONG + 1), &mut findings);
        assert_eq!(findings.warnings.len(), 1);
    }

    #[test]
    fn recorded_output_makes_no_file_long() {
        let text = "a();\n    insta::assert_snapshot!(at(40), @r\"\n== report\n  \\ \n    \");\nb();\n";
        assert_eq!(written_lines(text), 4);
        assert_eq!(written_lines("f(@r#\"\none \"\n\"#);\n"), 2);
        assert_eq!(written_lines("let r = 1;\n\nlet s = 2;\n"), 3);
    }

    #[test]
    fn a_long_map_is_found() {
        let mut found = Vec::new();
        check_map(&"\n".repeat(MAP_LINES), &mut found);
        assert_eq!(found, []);
        check_map(&"\n".repeat(MAP_LINES + 1), &mut found);
        assert_eq!(found.len(), 1);
    }
}

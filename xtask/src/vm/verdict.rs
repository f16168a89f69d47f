//! What a guest said, and what follows from it. Pure: the report is text.

use std::collections::BTreeMap;

/// How one live test ended in a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It could not run there, for this reason, which it proved.
    Skipped(String),
}

/// One BPF program as a kernel's verifier saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier followed; its limit is 1,000,000.
    pub instructions: u64,
    /// Time to load it, ms, under emulation.
    pub load_ms: f64,
}

/// A guest's run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// The kernel's release, by its own word.
    pub release: String,
    /// leakprobe's BPF programs.
    pub programs: Vec<Program>,
    /// Live tests by name, such as `calls::every_call`.
    pub tests: BTreeMap<String, Outcome>,
    /// Why the run failed; empty when it passed. Several lines each, where a program's own words are quoted.
    pub failures: Vec<String>,
}

/// How the machine itself ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest switched itself off.
    PoweredOff,
    /// It was killed after this many seconds.
    TimedOut(u64),
}

/// Most lines of a program's words that are quoted.
const QUOTED: usize = 40;

/// Reads a guest's report. `number` is what its init puts before each line of its own; `console` is what its
/// kernel printed.
pub fn read(report: &str, number: &str, console: &str, end: End) -> Run {
    let mut run = Run::default();
    let mut verdict = None;
    let mut words = Vec::new();
    let mut refusals = Vec::new();
    let mut doctor = None;
    let mut output = Vec::new();
    for line in report.lines().map(|line| line.trim_end_matches('\r')) {
        let Some((kind, rest)) = line.strip_prefix(number).and_then(|line| {
            let line = line.strip_prefix(' ')?;
            Some(line.split_once(' ').unwrap_or((line, "")))
        }) else {
            run.read_test(line);
            output.push(line);
            continue;
        };
        match kind {
            "kernel" => rest.clone_into(&mut run.release),
            "doctor" => doctor = rest.parse::<i32>().ok(),
            "facts" => refusals.extend(run.read_facts(rest)),
            "words" => words.push(rest),
            "skip" => run.read_skip(rest),
            "kernel-said" => run.failures.push(format!("the kernel complained: {rest}")),
            "verdict" => verdict = rest.parse::<i32>().ok(),
            _ => {}
        }
    }
    if doctor.is_some_and(|status| status != 0) {
        let said: Vec<&str> =
            words.iter().copied().chain(refusals.iter().flat_map(|text| text.lines())).collect();
        run.failures.push(format!("leakprobe doctor failed: {}", quote(&said)));
    }
    match (verdict, end) {
        (Some(0), _) => {}
        (Some(_), _) if doctor != Some(0) => {}
        (Some(status), _) => {
            run.failures
                .push(format!("the live tests ended with status {status}: {}", quote(&failed(&output))));
        }
        (None, end) => run.failures.push(no_verdict(end, console)),
    }
    let passed = run.tests.values().filter(|outcome| **outcome == Outcome::Passed).count();
    if run.failures.is_empty() && passed == 0 {
        run.failures.push("no live test passed".to_owned());
    }
    run
}

fn no_verdict(end: End, console: &str) -> String {
    let how = match end {
        End::PoweredOff => "the guest ended without a verdict".to_owned(),
        End::TimedOut(seconds) => format!("the guest gave no verdict within {seconds} s"),
    };
    let lines: Vec<&str> = console.lines().map(|line| line.trim_end_matches('\r')).collect();
    // From the panic on, where there is one; else the last lines.
    let from = lines
        .iter()
        .position(|line| line.contains("Kernel panic") || line.contains("BUG:"))
        .unwrap_or_else(|| lines.len().saturating_sub(8));
    format!("{how}; its console says: {}", quote(&lines[from..]))
}

/// The part of libtest's output that tells of failures.
fn failed<'a>(output: &[&'a str]) -> Vec<&'a str> {
    let from = output.iter().position(|line| *line == "failures:").unwrap_or(0);
    output[from..].to_vec()
}

fn quote(lines: &[&str]) -> String {
    let shown = lines.iter().take(QUOTED).map(|line| format!("\n    {}", plain(line)));
    let more = lines.len().saturating_sub(QUOTED);
    let rest = (more > 0).then(|| format!("\n    ... and {more} lines more"));
    shown.chain(rest).collect()
}

/// Without what would move the cursor of the terminal that shows it.
fn plain(line: &str) -> String {
    line.chars().filter(|c| !c.is_control() || *c == '\t').collect()
}

impl Run {
    /// Whether all is well.
    pub fn is_good(&self) -> bool {
        self.failures.is_empty()
    }

    /// Reads libtest's `test calls::every_call ... ok`.
    fn read_test(&mut self, line: &str) {
        let Some((name, outcome)) = line.strip_prefix("test ").and_then(|line| line.split_once(" ... "))
        else {
            return;
        };
        let outcome = match outcome {
            "ok" => Outcome::Passed,
            _ if outcome.starts_with("ignored") => Outcome::Skipped("ignored".to_owned()),
            _ => Outcome::Failed,
        };
        self.tests.entry(name.to_owned()).or_insert(outcome);
    }

    /// Reads `calls::every_call: python3 is not there`. libtest takes a skipped test for a passed one.
    fn read_skip(&mut self, line: &str) {
        let Some((name, reason)) = line.split_once(": ") else { return };
        if let Some(outcome @ Outcome::Passed) = self.tests.get_mut(name) {
            *outcome = Outcome::Skipped(plain(reason));
        }
    }

    /// Reads what `leakprobe doctor --format json` has found, and returns why leakprobe does not work there.
    fn read_facts(&mut self, json: &str) -> Option<String> {
        let Ok(facts) = serde_json::from_str::<serde_json::Value>(json) else {
            self.failures.push("leakprobe doctor printed what is no JSON".to_owned());
            return None;
        };
        for program in facts["programs"].as_array().into_iter().flatten() {
            self.programs.push(Program {
                name: program["name"].as_str().unwrap_or_default().to_owned(),
                instructions: program["instructions"].as_u64().unwrap_or_default(),
                load_ms: program["load_ms"].as_f64().unwrap_or_default(),
            });
        }
        facts["refusal"].as_str().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "N7 kernel 6.1.0\r\nN7 doctor 0\r\n\
        N7 facts {\"programs\":[{\"name\":\"free_enter\",\"instructions\":347,\"load_ms\":1.5}]}\r\n\
        \r\nrunning 3 tests\r\ntest calls::rows ... ok\r\ntest life::exec ... ok\r\n\
        N7 skip life::exec: there is no python3\r\nN7 verdict 0\r\n";

    fn failures(report: &str, console: &str, end: End) -> String {
        read(report, "N7", console, end).failures.join("\n")
    }

    #[test]
    fn a_good_report_is_read() {
        let run = read(GOOD, "N7", "", End::PoweredOff);
        assert!(run.is_good(), "{run:?}");
        assert_eq!(run.release, "6.1.0");
        let program = Program { name: "free_enter".to_owned(), instructions: 347, load_ms: 1.5 };
        assert_eq!(run.programs, [program]);
        assert_eq!(run.tests["calls::rows"], Outcome::Passed);
        assert_eq!(run.tests["life::exec"], Outcome::Skipped("there is no python3".to_owned()));
    }

    #[test]
    fn only_the_guests_init_gives_the_verdict() {
        let spoken_by_a_test = GOOD.replace("N7 verdict 0", "N8 verdict 0");
        let said = failures(&spoken_by_a_test, "all quiet", End::PoweredOff);
        assert!(said.contains("ended without a verdict"), "{said}");
    }

    #[test]
    fn a_panic_is_a_failure_with_the_kernels_words() {
        let console = "booting\r\n[ 2.1] Kernel panic - not syncing: sysrq\r\n[ 2.2] Call Trace:\r\n";
        let said = failures("", console, End::PoweredOff);
        assert!(said.contains("without a verdict") && said.contains("Kernel panic - not syncing"), "{said}");
        assert!(!said.contains("booting"), "{said}");
    }

    #[test]
    fn a_hang_is_a_failure() {
        let cut = GOOD.replace("N7 verdict 0\r\n", "");
        let said = failures(&cut, "quiet", End::TimedOut(90));
        assert!(said.contains("no verdict within 90 s"), "{said}");
    }

    #[test]
    fn failing_tests_fail_the_run_and_are_quoted() {
        let report = GOOD
            .replace("test calls::rows ... ok", "test calls::rows ... FAILED\r\nfailures:\r\n  3 != 4")
            .replace("verdict 0", "verdict 101");
        let run = read(&report, "N7", "", End::PoweredOff);
        assert_eq!(run.tests["calls::rows"], Outcome::Failed);
        assert!(run.failures.join("").contains("3 != 4"), "{run:?}");
    }

    #[test]
    fn a_refused_program_fails_the_run_in_the_verifiers_words() {
        let report = "N7 kernel 5.10\nN7 doctor 1\nN7 words a warning\n\
                      N7 facts {\"refusal\":\"failed to load:\\nunknown func bpf_loop#181\"}\nN7 verdict 1\n";
        let said = failures(report, "", End::PoweredOff);
        assert!(said.contains("doctor failed") && said.contains("unknown func bpf_loop#181"), "{said}");
    }

    #[test]
    fn a_kernel_that_complains_and_a_run_without_tests_have_failed() {
        let report = GOOD.replace("N7 verdict", "N7 kernel-said [3.1] WARNING: CPU: 1\nN7 verdict");
        assert!(failures(&report, "", End::PoweredOff).contains("WARNING: CPU: 1"));
        let nothing = "N7 kernel 6.1\nN7 doctor 0\nN7 verdict 0\n";
        assert_eq!(failures(nothing, "", End::PoweredOff), "no live test passed");
    }
}

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

/// What a kernel's console has only when something is badly wrong.
const COMPLAINTS: [&str; 6] =
    ["Kernel panic", "BUG:", "kernel BUG at", "Oops", "general protection", "Unable to handle kernel"];

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
    let mut announced = 0;
    let mut taint = None;
    for line in report.lines().map(|line| line.trim_end_matches('\r')) {
        let Some((kind, rest)) = line.strip_prefix(number).and_then(|line| {
            let line = line.strip_prefix(' ')?;
            Some(line.split_once(' ').unwrap_or((line, "")))
        }) else {
            run.read_test(line);
            announced = announced.max(announcement(line));
            output.push(line);
            continue;
        };
        match kind {
            "kernel" => rest.clone_into(&mut run.release),
            "doctor" => doctor = rest.parse::<i32>().ok(),
            "facts" => refusals.extend(run.read_facts(rest)),
            "words" => words.push(rest),
            "skip" => run.read_skip(rest),
            "tainted" => taint = Some(rest),
            "kernel-said" => run.failures.push(format!("the kernel complained: {rest}")),
            "verdict" => verdict = rest.parse::<i32>().ok(),
            _ => {}
        }
    }
    match doctor {
        Some(0) => {}
        Some(_) => {
            let said: Vec<&str> =
                words.iter().copied().chain(refusals.iter().flat_map(|text| text.lines())).collect();
            run.failures.push(format!("leakprobe doctor failed: {}", quote(&said)));
        }
        None if verdict.is_some() => run.failures.push("leakprobe doctor was not run".to_owned()),
        None => {}
    }
    match (verdict, end) {
        (Some(0), End::PoweredOff) => {}
        (Some(0), End::TimedOut(seconds)) => {
            run.failures.push(format!("the guest did not switch itself off within {seconds} s"));
        }
        // The tests were not begun.
        (Some(_), _) if doctor.is_some_and(|status| status != 0) => {}
        (Some(status), _) => {
            run.failures
                .push(format!("the live tests ended with status {status}: {}", quote(&failed(&output))));
        }
        (None, end) => run.failures.push(no_verdict(end, console, &output)),
    }
    if verdict.is_some() && doctor == Some(0) {
        run.check_tests(announced);
    }
    if verdict.is_some() {
        run.read_taint(taint.unwrap_or("nothing was said of it"));
    }
    let complaints: Vec<&str> =
        console.lines().filter(|line| COMPLAINTS.iter().any(|complaint| line.contains(complaint))).collect();
    if verdict.is_some() && !complaints.is_empty() {
        run.failures.push(format!("the kernel complained on its console: {}", quote(&complaints)));
    }
    run
}

fn no_verdict(end: End, console: &str, output: &[&str]) -> String {
    let how = match end {
        End::PoweredOff => "the guest ended without a verdict".to_owned(),
        End::TimedOut(seconds) => format!("the guest gave no verdict within {seconds} s"),
    };
    let lines: Vec<&str> = console.lines().map(|line| line.trim_end_matches('\r')).collect();
    // From the panic on, where there is one; else the last lines.
    let from = lines
        .iter()
        .position(|line| COMPLAINTS.iter().any(|complaint| line.contains(complaint)))
        .unwrap_or_else(|| lines.len().saturating_sub(8));
    let console = if lines.is_empty() {
        "its console says nothing".to_owned()
    } else {
        format!("its console says: {}", quote(&lines[from..]))
    };
    let last = output.len().saturating_sub(4);
    let tests = if output.is_empty() {
        String::new()
    } else {
        format!("\n  the tests' last words: {}", quote(&output[last..]))
    };
    format!("{how}; {console}{tests}")
}

/// How many tests libtest says that it will run: `running 68 tests`; 0 where it says nothing of it.
fn announcement(line: &str) -> usize {
    let number = line
        .strip_prefix("running ")
        .and_then(|rest| rest.strip_suffix(" tests").or(rest.strip_suffix(" test")));
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
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
    /// A run that did not come to a verdict, for a reason of this machine's.
    pub fn failed(error: &anyhow::Error) -> Self {
        Self { failures: vec![format!("{error:#}")], ..Self::default() }
    }

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
        let known =
            line.split_once(": ").and_then(|(name, reason)| Some((self.tests.get_mut(name)?, reason)));
        match known {
            Some((outcome @ Outcome::Passed, reason)) => *outcome = Outcome::Skipped(plain(reason)),
            // A test may prove why it skips and fail nevertheless, or skip two things.
            Some(_) => {}
            None => self.failures.push(format!("a skip of no known test: {}", plain(line))),
        }
    }

    /// Reads the kernel's taint: bit 7 is set by an oops, bit 9 by a warning. (An out-of-tree module sets others.)
    fn read_taint(&mut self, number: &str) {
        const OOPS_OR_WARNING: u64 = 1 << 7 | 1 << 9;
        match number.parse::<u64>() {
            Ok(taint) if taint & OOPS_OR_WARNING == 0 => {}
            _ => self
                .failures
                .push(format!("the kernel is tainted by an oops or a warning: {}", plain(number))),
        }
    }

    /// Checks that there is a result for each test that was announced, and that none is a failure: the status
    /// that the test program ended with says the same, but through one more pair of hands.
    fn check_tests(&mut self, announced: usize) {
        if self.programs.is_empty() {
            self.failures.push("leakprobe doctor has loaded no BPF program".to_owned());
        }
        if self.tests.len() != announced {
            let seen = self.tests.len();
            self.failures.push(format!("{announced} live tests were announced, and {seen} have a result"));
        }
        let with = |wanted: fn(&Outcome) -> bool| {
            let named =
                self.tests.iter().filter(|(_, outcome)| wanted(outcome)).map(|(name, _)| name.as_str());
            named.collect::<Vec<_>>()
        };
        let failed = with(|outcome| *outcome == Outcome::Failed).join(", ");
        let nothing = with(|outcome| *outcome == Outcome::Passed).is_empty();
        if !failed.is_empty() {
            self.failures.push(format!("failed: {failed}"));
        }
        if nothing {
            self.failures.push("no live test passed; is the filter right?".to_owned());
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
        \r\nrunning 2 tests\r\ntest calls::rows ... ok\r\ntest life::exec ... ok\r\n\
        N7 skip life::exec: there is no python3\r\nN7 tainted 0\r\nN7 verdict 0\r\n";

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
    fn nothing_passes_that_is_not_whole() {
        let said = |from: &str, to: &str| failures(&GOOD.replace(from, to), "", End::PoweredOff);
        assert_eq!(said("", ""), "");
        assert!(said("N7 doctor 0\r\n", "").contains("doctor was not run"));
        let none = GOOD.replace("N7 doctor 0\r\n", "").replace("verdict 0", "verdict 101");
        assert!(failures(&none, "", End::PoweredOff).contains("status 101"));
        assert!(said("\"programs\"", "\"other\"").contains("no BPF program"));
        assert!(said("running 2 tests", "running 3 tests").contains("3 live tests were announced, and 2"));
        assert!(said("calls::rows ... ok", "calls::rows ... FAILED").contains("failed: calls::rows"));
        assert!(said("N7 skip life::exec", "N7 skip life::gone").contains("a skip of no known test"));
        assert!(said("N7 tainted 0", "N7 tainted 12288").is_empty(), "a module from elsewhere");
        assert!(said("N7 tainted 0", "N7 tainted 12416").contains("tainted by an oops"));
        assert!(said("N7 tainted 0\r\n", "").contains("nothing was said of it"));
        assert!(failures(GOOD, "", End::TimedOut(9)).contains("not switch itself off within 9 s"));
        let console = "all quiet\n[ 3.2] kernel BUG at leaky.c:7!\n";
        assert!(failures(GOOD, console, End::PoweredOff).contains("kernel BUG at leaky.c:7"));
    }

    #[test]
    fn a_hang_is_a_failure() {
        let cut = GOOD.replace("N7 verdict 0\r\n", "");
        let said = failures(&cut, "quiet", End::TimedOut(90));
        assert!(said.contains("no verdict within 90 s"), "{said}");
        assert!(said.contains("last words") && said.contains("test life::exec ... ok"), "{said}");
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
        let nothing = "N7 kernel 6.1\nN7 doctor 0\nN7 facts {\"programs\":[{\"name\":\"a\"}]}\nrunning 0 tests\nN7 verdict 0\n";
        assert!(failures(nothing, "", End::PoweredOff).starts_with("no live test passed"));
    }
}

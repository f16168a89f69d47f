//! `cargo xtask test`: every test that runs on this machine.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::{
    command,
    debian::{self, Evidence, Need},
};

/// What the live tests need beyond Rust and a C compiler.
pub const NEEDS: &[Need] = &[
    Need { evidence: Evidence::Program("cc"), package: "gcc", purpose: "compiles the test programs in C" },
    Need { evidence: Evidence::Program("g++"), package: "g++", purpose: "compiles the test programs in C++" },
    Need {
        evidence: Evidence::Program("objcopy"),
        package: "binutils",
        purpose: "strips and splits debug information",
    },
    Need {
        evidence: Evidence::Program("valgrind"),
        package: "valgrind",
        purpose: "counts what test programs say",
    },
    Need { evidence: Evidence::Program("xz"), package: "xz-utils", purpose: "makes .gnu_debugdata sections" },
    Need { evidence: Evidence::Program("python3"), package: "python3", purpose: "a real service to profile" },
    Need {
        evidence: Evidence::Program("redis-server"),
        package: "redis-server",
        purpose: "a real service to profile",
    },
    Need {
        evidence: Evidence::Program("redis-benchmark"),
        package: "redis-tools",
        purpose: "load for redis-server",
    },
    Need { evidence: Evidence::Program("node"), package: "nodejs", purpose: "a real service to profile" },
    Need {
        evidence: Evidence::Program("make"),
        package: "make",
        purpose: "builds jemalloc for a test program in Rust",
    },
    Need { evidence: Evidence::Program("nginx"), package: "nginx", purpose: "a real service to profile" },
    Need {
        evidence: Evidence::Library("libjemalloc.so.2"),
        package: "libjemalloc2",
        purpose: "an allocator to probe",
    },
    Need {
        evidence: Evidence::Library("libtcmalloc_minimal.so.4"),
        package: "libtcmalloc-minimal4",
        purpose: "an allocator to probe",
    },
    Need {
        evidence: Evidence::Library("libmimalloc.so.2.0"),
        package: "libmimalloc2.0",
        purpose: "an allocator to probe",
    },
    Need {
        evidence: Evidence::Program("musl-gcc"),
        package: "musl-tools",
        purpose: "another C library, and its allocator",
    },
];

/// The package of live tests.
const LIVE: &str = "leakprobe-tests";

/// Options of `test`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only tests whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Only what needs no root: no live tests
    #[arg(long)]
    no_live: bool,
}

/// Builds the tool, runs the unit tests and then the live tests, one at a time, and prints the sum.
///
/// # Errors
/// When a test fails, when no test ran, or when something that the tests need is missing.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if !arguments.no_live {
        if !command::is_root() {
            bail!(
                "failed to run the live tests: they attach probes, which needs root; run \
                 `sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask test`, or the unit tests alone: \
                 `cargo xtask test --no-live`"
            );
        }
        debian::ensure(NEEDS)?;
        // The live tests run the tool as a user has it.
        command::run(command::cargo().args(["build", "--release", "--package", "leakprobe"]))?;
    }
    let mut sum = Summary::default();
    let filter = arguments.filter.as_deref();
    let unit = cargo_test(&["--workspace", "--exclude", LIVE], filter, &[], &mut sum);
    let live = if arguments.no_live {
        Ok(())
    } else {
        // One at a time: each attaches probes and counts what it sees, and they share two CPUs on small machines.
        cargo_test(&["--package", LIVE], filter, &["--test-threads=1"], &mut sum)
    };
    println!("{sum}");
    unit.and(live)?;
    if sum.passed == 0 {
        bail!("failed to find a test to run; is the filter right?");
    }
    Ok(())
}

/// Runs cargo test, shows what it prints, and adds its counts to the sum.
fn cargo_test(
    packages: &[&str],
    filter: Option<&str>,
    options: &[&str],
    sum: &mut Summary,
) -> anyhow::Result<()> {
    let mut cargo = command::cargo();
    cargo.args(["test", "--no-fail-fast"]).args(packages).arg("--").args(filter).args(options);
    run_counted(&mut cargo, sum)
}

fn run_counted(command: &mut Command, sum: &mut Summary) -> anyhow::Result<()> {
    let shown = command::show(command);
    eprintln!("+ {shown}");
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("failed to start `{shown}`"))?;
    let output = child.stdout.take().context("failed to read the output of cargo test")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.with_context(|| format!("failed to read the output of `{shown}`"))?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        sum.add(&line);
    }
    let status = child.wait().with_context(|| format!("failed to wait for `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

/// The sum of cargo test's result lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    passed: u64,
    failed: u64,
    ignored: u64,
    filtered: u64,
}

impl Summary {
    /// Adds `test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s`.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                "filtered out" => self.filtered += number,
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { passed, failed, ignored, filtered } = self;
        let verdict = if *failed == 0 { "ok" } else { "FAILED" };
        write!(
            f,
            "test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; {filtered} filtered out, \
             in all"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_summed() {
        let mut sum = Summary::default();
        sum.add("running 3 tests");
        sum.add(
            "test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
        );
        sum.add("test result: FAILED. 10 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s");
        assert_eq!(sum, Summary { passed: 14, failed: 3, ignored: 1, filtered: 2 });
        assert_eq!(
            sum.to_string(),
            "test result: FAILED. 14 passed; 3 failed; 1 ignored; 2 filtered out, in all"
        );
    }

    #[test]
    fn each_need_says_what_for() {
        assert!(NEEDS.iter().all(|need| !need.package.is_empty() && !need.purpose.is_empty()));
    }
}

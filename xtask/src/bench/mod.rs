//! `cargo xtask bench`: what leakprobe costs, beside what it may cost.
//!
//! Absolute times differ between machines, ratios hold better: what is compared is measured in turns, round by
//! round, and quoted as the median of the rounds' ratios. Every run is checked against a victim of known truth:
//! a figure of a run that missed something would be worth nothing.

mod attach;
mod idle;
mod pairs;
mod process;
mod profiler;
mod programs;
mod report;
mod table;
mod victim;

use anyhow::bail;

use self::table::Table;
use crate::command;

/// Options of `bench`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Fewer rounds: figures to look at, not to quote
    #[arg(long)]
    quick: bool,
    /// Succeed even when a bar is missed
    #[arg(long)]
    no_bars: bool,
    /// Only these parts
    #[arg(long, value_name = "PART", value_delimiter = ',', value_enum)]
    only: Vec<Part>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// What a malloc/free pair costs the target
    Pairs,
    /// What a report of a million blocks takes
    Report,
    /// How long attaching and detaching take
    Attach,
    /// What leakprobe itself uses between reports
    Idle,
    /// How large the BPF programs are
    Programs,
}

/// Builds the tool and its victim, measures, and prints a table.
///
/// # Errors
/// When this is not root, something cannot be built or started, a run shows other numbers than its victim's
/// truth, or a bar is missed (unless `--no-bars`).
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if !command::is_root() {
        bail!("failed to measure: attaching probes needs root; run `sudo cargo xtask bench`");
    }
    let quick = arguments.quick;
    let parts: [(Part, &dyn Fn(&mut Table) -> anyhow::Result<()>); 5] = [
        (Part::Pairs, &|table| pairs::measure(if quick { 3 } else { 9 }, table)),
        (Part::Report, &|table| report::measure(if quick { 1 } else { 3 }, table)),
        (Part::Attach, &|table| attach::measure(if quick { 3 } else { 11 }, table)),
        (Part::Idle, &|table| idle::measure(if quick { 1 } else { 4 }, table)),
        (Part::Programs, &programs::measure),
    ];
    command::run(command::cargo().args(["build", "--release", "--package", "leakprobe"]))?;
    victim::build()?;
    let mut misses = 0;
    for (part, measure) in parts {
        if arguments.only.is_empty() || arguments.only.contains(&part) {
            let mut table = Table::default();
            measure(&mut table)?;
            println!("{table}");
            misses += table.misses();
        }
    }
    match misses {
        0 => Ok(()),
        _ if arguments.no_bars => Ok(()),
        1 => bail!("1 figure misses its bar"),
        _ => bail!("{misses} figures miss their bars"),
    }
}

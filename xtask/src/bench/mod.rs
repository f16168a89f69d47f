//! `cargo xtask bench`: what leakprobe costs, beside what it may cost.
//!
//! Absolute times differ between machines, ratios hold better: what is compared is measured in turns, round by
//! round, and quoted as the median of the rounds' ratios. Every run is checked against a victim of known truth:
//! a figure of a run that missed something would be worth nothing.

mod attach;
mod idle;
mod kernel;
mod pairs;
mod process;
mod profiler;
mod programs;
mod real;
mod report;
mod stacks;
mod table;
mod victim;
mod witness;

use anyhow::bail;
use clap::ValueEnum as _;

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
    /// What `leakprobe --kernel` costs, instead
    #[arg(long, conflicts_with = "only")]
    kernel: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// What a malloc/free pair costs the target
    Pairs,
    /// What the stack costs of that, by tables and by frame pointers
    Stacks,
    /// What a report of a million blocks takes
    Report,
    /// How long attaching and detaching take
    Attach,
    /// What leakprobe itself uses between reports
    Idle,
    /// How large the BPF programs are
    Programs,
    /// Whether stacks of real programs are whole, and another unwinder's; only when asked for: it installs them
    RealStacks,
    /// What a kmalloc/kfree pair costs under --kernel
    KernelPairs,
    /// How much slower a machine that forks and sends becomes under --kernel
    KernelLoad,
    /// Whether /proc/slabinfo bears out what --kernel ranks first in 10 minutes of load; only when asked for
    KernelWitness,
}

impl Part {
    /// Whether it is about the kernel's own memory.
    fn is_kernels(self) -> bool {
        matches!(self, Self::KernelPairs | Self::KernelLoad | Self::KernelWitness)
    }

    /// Whether it takes minutes.
    fn is_long(self) -> bool {
        matches!(self, Self::KernelWitness | Self::RealStacks)
    }

    fn measure(self, quick: bool, table: &mut Table) -> anyhow::Result<()> {
        let rounds = |few, many| if quick { few } else { many };
        match self {
            Self::Pairs => pairs::measure(rounds(3, 9), table),
            Self::Stacks => stacks::measure(rounds(3, 9), table),
            Self::Report => report::measure(rounds(1, 3), table),
            Self::Attach => attach::measure(rounds(3, 11), table),
            Self::Idle => idle::measure(rounds(1, 4), table),
            Self::Programs => programs::measure(table),
            Self::RealStacks => real::measure(quick, table),
            Self::KernelPairs => kernel::measure_pairs(rounds(3, 11), table),
            Self::KernelLoad => kernel::measure_load(rounds(2, 7), table),
            Self::KernelWitness => witness::measure(rounds(1, 10), table),
        }
    }
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
    command::run(command::cargo().args(["build", "--release", "--package", "leakprobe"]))?;
    victim::build()?;
    let mut misses = 0;
    for part in Part::value_variants() {
        let asked = match &arguments.only[..] {
            [] => part.is_kernels() == arguments.kernel && !part.is_long(),
            only => only.contains(part),
        };
        if asked {
            let mut table = Table::default();
            part.measure(arguments.quick, &mut table)?;
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

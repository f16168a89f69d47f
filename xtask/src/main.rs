//! leakprobe's development tasks: `cargo xtask --help`.
//!
//! The modules stand in the order of a contributor's day: set the machine up, build the BPF programs, test,
//! measure, and check the invariants that ARCHITECTURE.md states.

mod bench;
mod bpf;
mod command;
mod debian;
mod setup;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development tasks of leakprobe.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building the BPF programs and running all tests needs (Debian, as root)
    Setup,
    /// Build the committed BPF objects, leakprobe/ebpf/*.bpf.o, from leakprobe-ebpf
    BuildEbpf(bpf::Arguments),
    /// Run every test that runs on this machine; live tests need root
    Test(test::Arguments),
    /// Measure what leakprobe costs, beside what it may cost; needs root
    Bench(bench::Arguments),
    /// Build for the Arm guest (temporary)
    #[command(hide = true)]
    Cross { toolchain: std::path::PathBuf, target_dir: std::path::PathBuf },
    /// Check the invariants of ARCHITECTURE.md, and the sizes of files
    Tidy,
}

fn main() -> ExitCode {
    if let Some(code) = bpf::run_as_rustc_wrapper() {
        return code;
    }
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Setup => setup::run(),
        Task::BuildEbpf(arguments) => bpf::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Cross { toolchain, target_dir } => {
            let vm::cross::Cross { leakprobe, live_tests, victims, libraries } =
                vm::cross::build(&toolchain, &target_dir)?;
            println!("{}\n{}\n{}", leakprobe.display(), live_tests.display(), victims.display());
            println!("{libraries:?}\nof {:?}", vm::cross::packages());
            Ok(())
        }
        Task::Tidy => tidy::run(),
    }
}

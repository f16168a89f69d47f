//! The command-line tool: parse, run, exit code.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use leakprobe::{
    cli::{self, DEMO_VICTIM, Invocation, Options, Subject},
    demo, doctor,
    launch::LaunchError,
    session::{self, Begun},
};

fn main() -> ExitCode {
    let begun = Begun { at: Instant::now() };
    let invocation = match cli::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(error) => {
            // Nobody is left to be told when this fails.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    match run(invocation, begun) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(io::stderr(), "leakprobe: {error:#}");
            let code = error.downcast_ref::<LaunchError>().map_or(1, LaunchError::exit_code);
            ExitCode::from(code)
        }
    }
}

fn run(invocation: Invocation, begun: Begun) -> Result<u8> {
    match invocation {
        Invocation::Doctor { format, output } => {
            doctor::run(format, output.as_deref()).map(|usable| u8::from(!usable))
        }
        Invocation::DemoVictim => {
            demo::run_victim(Duration::MAX);
            Ok(0)
        }
        Invocation::Profile(options) => match options.subject.clone() {
            Subject::Processes(_) => session::run_processes(*options, begun).map(|()| 0),
            Subject::Command(command) => session::run_command(*options, &command, begun),
            Subject::Demo => run_demo(*options, begun),
            Subject::Kernel => session::run_kernel(*options, begun).map(|()| 0),
        },
    }
}

/// Profiles the built-in victim for some seconds.
fn run_demo(mut options: Options, begun: Begun) -> Result<u8> {
    let own = std::env::current_exe().context("failed to find leakprobe's own file")?;
    let duration = *options.duration.get_or_insert(Duration::from_secs(6));
    options.interval = options.interval.max(duration);
    session::run_command(options, &[own.into(), DEMO_VICTIM.into()], begun)
}

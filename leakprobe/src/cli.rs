//! The command line: what a user can ask for, as [`Options`].

mod args;
#[cfg(test)]
mod tests;

use crate::report::units::duration;
use args::{Cli, Mode};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// What the program was called to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// Profile something.
    Profile(Box<Options>),
    /// Tell what this machine offers.
    Doctor {
        /// Form of the answer.
        format: Format,
        /// File for the answer; `None`: standard output.
        output: Option<PathBuf>,
    },
    /// Be the small leaking program that `leakprobe demo` profiles.
    DemoVictim,
}

/// What is profiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Running processes.
    Processes(Selection),
    /// A program to start, with its arguments; at least one word.
    Command(Vec<OsString>),
    /// The built-in leaking program.
    Demo,
    /// The kernel's own memory.
    Kernel,
}

/// Which running processes are profiled; at least one thing is named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// These; each once.
    pub pids: Vec<u32>,
    /// All in these control groups, by directory or by the path that `/proc/PID/cgroup` shows.
    pub cgroups: Vec<PathBuf>,
    /// All of these names.
    pub names: Vec<String>,
}

impl Selection {
    /// Whether processes can come to it.
    pub fn is_open(&self) -> bool {
        !self.cgroups.is_empty() || !self.names.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.pids.is_empty() && !self.is_open()
    }
}

/// When the probes go in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trigger {
    /// As soon as a process has so much resident memory, bytes.
    pub rss: Option<u64>,
    /// As soon as a process's resident memory has grown so much in that time.
    pub growth: Option<Growth>,
}

impl Trigger {
    /// Whether the probes go in at once.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// How fast memory grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Bytes; above 0.
    pub bytes: u64,
    /// Within this time; above 0.
    pub within: Duration,
}

/// Form of the reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line; docs/report-schema.md documents it.
    Json,
}

/// Where in an allocator function its probe goes; other ways than [`Placement::Auto`] are for benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Placement {
    /// At an instruction that the kernel emulates, where there is one.
    Auto,
    /// At the symbol, whatever that costs.
    Symbol,
    /// As [`Placement::Auto`], with programs that do nothing: the cost that no profiler can undercut.
    Floor,
}

/// How probes are attached; other ways than [`AttachWith::Auto`] are for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AttachWith {
    /// By one link for many probes, where the kernel has such links.
    Auto,
    /// By one perf event a probe, as on older kernels.
    PerfEvent,
    /// As [`AttachWith::PerfEvent`], and without cookies, as before Linux 5.15.
    PerfEventByAddress,
}

/// How stacks are unwound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Unwind {
    /// By each object's call frame information; by frame pointers through code that has none
    Auto,
    /// By call frame information alone: a stack ends at code that has none
    Dwarf,
    /// By frame pointers alone
    Fp,
    /// By the kernel's own walk along frame pointers, for benchmarks
    #[value(hide = true)]
    Kernel,
    /// Not at all, for benchmarks
    #[value(hide = true)]
    Caller,
}

/// How functions of the kernel's without a tracepoint are probed; other ways than [`ProbeFunctions::Auto`] are for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ProbeFunctions {
    /// By patching them, where the kernel can do that, else by breakpoints, where it has those.
    Auto,
    /// By breakpoints.
    Breakpoint,
    /// Not at all, as on kernels that have neither.
    Not,
}

/// Where the reports go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// Standard error: standard output belongs to the program that was started.
    Stderr,
    /// A file.
    File(PathBuf),
}

/// What only `--kernel` can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelOptions {
    /// Globs of the caches recorded; empty: all.
    pub caches: Vec<String>,
    /// Whether pages of the page allocator are recorded too.
    pub pages: bool,
    /// Whether per-CPU memory is recorded too.
    pub percpu: bool,
    /// One address in so many is recorded; at least 1.
    pub one_in: u32,
    /// Whether stacks are taken; otherwise the allocator's caller alone.
    pub stacks: bool,
    /// How functions without a tracepoint are probed.
    pub functions: ProbeFunctions,
}

/// Everything that a profiling run can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What is profiled.
    pub subject: Subject,
    /// When it begins.
    pub trigger: Trigger,
    /// Time from report to report; at least [`MIN_INTERVAL`].
    pub interval: Duration,
    /// When to end by itself; above 0.
    pub duration: Option<Duration>,
    /// The age of a survivor; see [`Options::older_after`] where none was given.
    pub older: Option<Duration>,
    /// Sites shown; at least 1.
    pub top: usize,
    /// Smallest blocks recorded, bytes.
    pub min_size: Option<u64>,
    /// Largest blocks recorded, bytes; not below `min_size`.
    pub max_size: Option<u64>,
    /// Outstanding blocks that there is room for; at least 1.
    ///
    /// `None`: what the kernel lets be afforded.
    pub max_blocks: Option<u32>,
    /// Distinct stacks that there is room for; at least 1.
    pub max_stacks: u32,
    /// Processes that are profiled at a time, where some can come and go; at least 1.
    pub max_processes: u32,
    /// How stacks are unwound.
    pub unwind: Unwind,
    /// Rows of unwind tables that there is room for; at least 1.
    pub max_unwind_rows: u32,
    /// Prefixes of the functions of allocators that are not known.
    pub allocator_prefixes: Vec<String>,
    /// Names or paths of the objects whose allocators are recorded; empty: all.
    pub allocator_objects: Vec<PathBuf>,
    /// Whether ranges of the address space are profiled too.
    pub mmap: bool,
    /// Whether children are profiled too.
    pub follow: bool,
    /// Of meaning where the subject is [`Subject::Kernel`].
    pub kernel: KernelOptions,
    /// Form of the reports.
    pub format: Format,
    /// File for the reports; see [`Options::destination`].
    pub output: Option<PathBuf>,
    /// Whether the report shows the whole ledger and the probes, and diagnostics are on.
    pub verbose: bool,
    /// Whether the danger of return probes to a target with a seccomp filter is accepted.
    pub allow_return_probes_under_seccomp: bool,
    /// Whether functions that may throw have their returns probed.
    pub record_operator_new: bool,
    /// Where probes go.
    pub placement: Placement,
    /// How probes are attached.
    pub attach_with: AttachWith,
    /// File for copies of stacks, for tests.
    pub stack_copies: Option<PathBuf>,
    /// One stack in so many is copied; at least 1.
    pub stack_copies_one_in: u32,
}

/// Distinct stacks that there is room for by default.
pub const DEFAULT_MAX_STACKS: u32 = 16_384;

/// Processes that there is room for by default, where some can come and go: 22 MiB of tables.
pub const DEFAULT_MAX_PROCESSES: u32 = 256;

/// Rows of unwind tables that there is room for by default: 16 MiB. libLLVM has one million.
pub const DEFAULT_MAX_UNWIND_ROWS: u32 = 4_194_304;

/// The shortest time from report to report.
pub const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The longest age of a survivor that is taken by default.
pub const MAX_DEFAULT_OLDER: Duration = Duration::from_secs(30);

impl Options {
    /// The age that makes a survivor after watching for `elapsed`: as asked for, or half of that time, at
    /// most [`MAX_DEFAULT_OLDER`].
    pub fn older_after(&self, elapsed: Duration) -> Duration {
        self.older.unwrap_or_else(|| (elapsed / 2).min(MAX_DEFAULT_OLDER))
    }

    /// Where the reports go: the program that leakprobe starts keeps its standard output for itself.
    pub fn destination(&self) -> Destination {
        match (&self.output, &self.subject) {
            (Some(path), _) => Destination::File(path.clone()),
            (None, Subject::Command(_)) => Destination::Stderr,
            (None, Subject::Processes(_) | Subject::Demo | Subject::Kernel) => Destination::Stdout,
        }
    }
}

/// The word that makes this program the one that `leakprobe demo` profiles.
pub const DEMO_VICTIM: &str = "demo-victim";

/// Reads a command line, the program's own name first.
///
/// # Errors
/// The error is for the user as it stands, `--help` and `--version` among them: print it
/// ([`clap::Error::print`] picks the stream) and end with its [`clap::Error::exit_code`], 2 for wrong usage.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let words: Vec<OsString> = words.into_iter().collect();
    if words.len() == 2 && words[1] == DEMO_VICTIM {
        // Not by the parser, which would leave blocks of its own in the victim's report.
        return Ok(Invocation::DemoVictim);
    }
    let cli = Cli::try_parse_from(words).map_err(explain_stray_word)?;
    let kernel = kernel_options(&cli)?;
    if cli.advanced.allocator_prefix.len() > args::MAX_PREFIXES {
        let what = format!("at most {} prefixes can be given to --allocator-prefix", args::MAX_PREFIXES);
        return Err(wrong(ErrorKind::TooManyValues, &what));
    }
    let trigger = Trigger { rss: cli.begin.when_rss, growth: cli.begin.when_growth };
    let asked = Selection { pids: each_once(cli.what.pid), cgroups: cli.what.cgroup, names: cli.what.comm };
    let subject = match (cli.mode, asked, cli.what.command) {
        (None, asked, command) if cli.what.kernel && asked.is_empty() && command.is_empty() => {
            Subject::Kernel
        }
        (None, asked, command) if cli.what.kernel => {
            let what = match (&asked, command.is_empty()) {
                (asked, false) if asked.is_empty() => "-- COMMAND",
                (asked, _) if !asked.pids.is_empty() => "--pid",
                (asked, _) if !asked.cgroups.is_empty() => "--cgroup",
                _ => "--comm",
            };
            let what = format!(
                "--kernel records what the kernel allocates for itself, for all processes at once, and {what} what one \
                 process takes from its own allocator: run them one after the other, or as two leakprobes at the same \
                 time"
            );
            return Err(wrong(ErrorKind::ArgumentConflict, &what));
        }
        (Some(mode), ..) if cli.what.kernel => {
            let what = format!("--kernel does not go with {}: leave one of them out", mode.word());
            return Err(wrong(ErrorKind::ArgumentConflict, &what));
        }
        (Some(Mode::Doctor), asked, command) if asked.is_empty() && command.is_empty() => {
            return Ok(Invocation::Doctor { format: cli.output.format, output: cli.output.output });
        }
        (Some(Mode::Demo), asked, command) if asked.is_empty() && command.is_empty() => Subject::Demo,
        (None, asked, command) if !asked.is_empty() && command.is_empty() => Subject::Processes(asked),
        (None, asked, command) if asked.is_empty() && !command.is_empty() => Subject::Command(command),
        (None, asked, command) if asked.is_empty() && command.is_empty() => {
            let what = "nothing to profile: give --pid PID, or --cgroup PATH, or --comm NAME, or --kernel, or \
                        -- COMMAND, or demo";
            return Err(wrong(ErrorKind::MissingRequiredArgument, what));
        }
        _ => {
            let what = "more than one thing to profile: give either --pid, --cgroup and --comm (as often as you like), \
                        or -- COMMAND, or demo";
            return Err(wrong(ErrorKind::ArgumentConflict, what));
        }
    };
    let options = Options {
        subject,
        trigger,
        interval: cli.show.interval,
        duration: cli.show.duration,
        older: cli.show.older,
        top: cli.show.top as usize,
        min_size: cli.limits.min_size,
        max_size: cli.limits.max_size,
        max_blocks: cli.limits.max_blocks,
        max_stacks: cli.limits.max_stacks,
        max_processes: cli.limits.max_processes,
        unwind: cli.show.unwind,
        max_unwind_rows: cli.limits.max_unwind_rows,
        allocator_prefixes: cli.advanced.allocator_prefix,
        allocator_objects: cli.advanced.allocator_object,
        mmap: cli.what.mmap,
        follow: cli.what.follow,
        kernel,
        format: cli.output.format,
        output: cli.output.output,
        verbose: cli.output.verbose,
        allow_return_probes_under_seccomp: cli.advanced.allow_return_probes_under_seccomp,
        record_operator_new: cli.advanced.record_operator_new,
        placement: cli.advanced.placement,
        attach_with: cli.advanced.attach_with,
        stack_copies: cli.advanced.stack_copies,
        stack_copies_one_in: cli.advanced.stack_copies_one_in,
    };
    check(&options)?;
    Ok(Invocation::Profile(Box::new(options)))
}

/// What is asked of `--kernel`; refused where that is not given.
fn kernel_options(cli: &Cli) -> Result<KernelOptions, clap::Error> {
    let asked = &cli.kernel;
    let given = [
        ("--cache", !asked.cache.is_empty()),
        ("--pages", asked.pages),
        ("--percpu", asked.percpu),
        ("--sample", asked.sample.is_some()),
        ("--no-stacks", asked.no_stacks),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((option, _)) if !cli.what.kernel => {
            let what = format!("{option} says what is recorded of the kernel's memory: it needs --kernel");
            return Err(wrong(ErrorKind::MissingRequiredArgument, &what));
        }
        _ => {}
    }
    if cli.what.kernel && cli.what.mmap {
        let what = "--mmap is about the address space of a process; with --kernel, --pages records pages";
        return Err(wrong(ErrorKind::ArgumentConflict, what));
    }
    if cli.what.kernel && cli.what.follow {
        let what = "--follow takes in what processes fork and start; --kernel records for all processes at once: leave \
                    --follow out";
        return Err(wrong(ErrorKind::ArgumentConflict, what));
    }
    Ok(KernelOptions {
        caches: asked.cache.clone(),
        pages: asked.pages,
        percpu: asked.percpu,
        one_in: asked.sample.unwrap_or(1),
        stacks: !asked.no_stacks,
        functions: cli.advanced.probe_functions,
    })
}

/// What no option can see of itself.
fn check(options: &Options) -> Result<(), clap::Error> {
    if !options.trigger.is_none() && !matches!(options.subject, Subject::Processes(_)) {
        let option = if options.trigger.rss.is_some() { "--when-rss" } else { "--when-growth" };
        let what =
            format!("{option} waits for a running process to grow: it needs --pid, --cgroup or --comm");
        return Err(wrong(ErrorKind::ArgumentConflict, &what));
    }
    if let (Some(min), Some(max)) = (options.min_size, options.max_size)
        && min > max
    {
        let what = format!(
            "--min-size ({min} bytes) is above --max-size ({max} bytes): no block can be both; exchange them or \
             leave one out"
        );
        return Err(wrong(ErrorKind::ArgumentConflict, &what));
    }
    if let (Some(older), Some(whole)) = (options.older, options.duration)
        && older > whole
    {
        let what = format!(
            "--older ({}) is longer than --duration ({}): no block can get that old; raise --duration or lower \
             --older",
            duration(older.as_secs_f64()),
            duration(whole.as_secs_f64())
        );
        return Err(wrong(ErrorKind::ArgumentConflict, &what));
    }
    Ok(())
}

/// Says what was most likely meant by a word that is neither an option nor an option's value.
fn explain_stray_word(error: clap::Error) -> clap::Error {
    let word = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(word))) if !word.starts_with('-') => word,
        _ => return error,
    };
    let advice = if word.bytes().all(|byte| byte.is_ascii_digit()) {
        format!("to profile this process too, write --pid {word}")
    } else {
        format!("to profile a program, put -- before it: leakprobe -- {word}")
    };
    wrong(ErrorKind::UnknownArgument, &format!("unexpected argument '{word}'; {advice}"))
}

fn wrong(kind: ErrorKind, what: &str) -> clap::Error {
    Cli::command().error(kind, what)
}

/// The process IDs without repetitions, in the order given.
fn each_once(pids: Vec<u32>) -> Vec<u32> {
    let mut once = Vec::with_capacity(pids.len());
    for pid in pids {
        if !once.contains(&pid) {
            once.push(pid);
        }
    }
    once
}

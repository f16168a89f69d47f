//! The options as clap reads them and shows them in its help.

use super::{
    AttachWith, DEFAULT_MAX_PROCESSES, DEFAULT_MAX_STACKS, DEFAULT_MAX_UNWIND_ROWS, Format, Growth,
    MIN_INTERVAL, Placement, ProbeFunctions, Unwind,
};
use crate::report::units::{UnitError, parse_duration, parse_size};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// No Linux process has a higher ID: PID_MAX_LIMIT of the kernel's include/linux/threads.h.
const MAX_PID: u32 = 1 << 22;

/// A map of BPF with more entries than that is refused, or takes more memory than a profiler should.
const MAX_ENTRIES: i64 = 1 << 27;

/// The BPF programs know no more targets.
const MAX_PROCESSES: i64 = 4096;

const EXAMPLES: &str = "\
Examples:
  A running service, until Ctrl-C:
    sudo leakprobe --pid 1298
  Every process of a service, new ones too:
    sudo leakprobe \
      --cgroup system.slice/nginx.service
  Not before it has grown:
    sudo leakprobe --pid 1298 \
      --when-growth 200M/10m
  The 5 largest sites of what is older than a minute:
    sudo leakprobe --pid 1298 \\
      --older 1m --top 5
  A minute of reports for a script:
    sudo leakprobe --pid 1298 \\
      --duration 60s --format json \\
      --output leaks.json
  The kernel's own memory:
    sudo leakprobe --kernel
  One of its caches, on a busy machine:
    sudo leakprobe --kernel \\
      --cache 'kmalloc-*' --sample 512
  A program from its first allocation on:
    sudo leakprobe -- ./server --flag
  See what a report looks like:
    sudo leakprobe demo
  See what this machine offers:
    sudo leakprobe doctor";

/// Find the line of code that owns the memory a running process, or the kernel, does not give back.
///
/// Watches the allocator of a live process from outside, with eBPF, and reports the blocks that are not
/// given back by the stack that allocated them. The process is neither stopped nor restarted. Or watches the
/// kernel's own allocators. Needs root.
#[derive(Debug, Parser)]
#[command(
    name = "leakprobe",
    version,
    override_usage = "leakprobe [OPTIONS] --pid PID...\n       leakprobe [OPTIONS] --cgroup PATH\n       leakprobe [OPTIONS] --comm NAME\n       leakprobe [OPTIONS] --kernel\n       \
                      leakprobe [OPTIONS] -- COMMAND...\n       leakprobe [OPTIONS] demo\n       leakprobe doctor",
    after_help = "Durations: 30s, 500ms, 5m, 1h30m; sizes: 4096, 64k, 1.5GiB. See --help for more.",
    after_long_help = EXAMPLES,
    disable_help_subcommand = true,
    disable_help_flag = true,
    disable_version_flag = true,
    max_term_width = 100,
    subcommand_help_heading = "Instead of --pid"
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub what: What,
    #[command(flatten)]
    pub begin: Begin,
    #[command(flatten)]
    pub kernel: Kernel,
    #[command(flatten)]
    pub show: Show,
    #[command(flatten)]
    pub limits: Limits,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub advanced: Advanced,
    #[command(flatten)]
    pub help: Help,
    #[command(subcommand)]
    pub mode: Option<Mode>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Mode {
    /// Profile a small built-in program that leaks
    #[command(override_usage = "leakprobe demo [OPTIONS]")]
    Demo,
    /// Tell what this machine offers, and whether leakprobe works here
    ///
    /// Probes what the kernel can do, and loads each of leakprobe's BPF programs once, with the time that it takes
    /// and the instructions that the verifier goes through. Attaches nothing to any other process. Ends with 0 when
    /// leakprobe can work here, else with 1.
    // The other options, which all subcommands take, mean nothing here.
    #[command(
        override_usage = "leakprobe doctor [--format FORMAT] [--output FILE]",
        help_template = "{about-with-newline}\n{usage-heading} {usage}{after-help}",
        after_help = "Options:\n  --format FORMAT    text or json [default: text]\n  --output FILE, -o  Write there \
                      instead of to standard output"
    )]
    Doctor,
}

impl Mode {
    /// The word that asks for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Doctor => "doctor",
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What to profile")]
pub(super) struct What {
    /// ID of a process to profile; can be given several times
    #[arg(short, long, value_name = "PID", value_delimiter = ',', allow_negative_numbers = true, value_parser = pid)]
    pub pid: Vec<u32>,

    /// Control group of which every process is profiled, new ones as they come; can be given several times
    ///
    /// A directory, or a path as /proc/PID/cgroup shows it: system.slice/nginx.service. With the groups below it. It goes on
    /// when the group is empty, until Ctrl-C or --duration.
    #[arg(long, value_name = "PATH")]
    pub cgroup: Vec<PathBuf>,

    /// Name of the processes to profile, new ones as they come; several times, or with commas
    ///
    /// The kernel's short name (`ps -eo pid,comm`), of which 15 bytes are compared. It goes on when the last one has exited,
    /// until Ctrl-C or --duration.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub comm: Vec<String>,

    /// Profile the kernel's own memory: slab caches and kmalloc
    ///
    /// Reports each cache, traced and by /proc/slabinfo, then the longest-lived survivors with the kernel's stacks. It
    /// watches the whole machine: on a busy one, --sample makes it cheaper.
    #[arg(short, long, global = true)]
    pub kernel: bool,

    /// Program to start (after --) and profile from its first allocation on, with its arguments
    ///
    /// Its exit status is passed on. Reports go to standard error unless --output is given: standard output is the
    /// program's own.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,

    /// Profile children too: what is forked, and the programs that it executes, from their first instruction on
    ///
    /// Those that are there already are taken in as they are. A new child has a copy of its parent's blocks, which stay its
    /// parent's in the report; its own are listed for itself. It goes on until all have exited, children of the first ones
    /// included. Without it, children are left alone, and pay nothing. A program with an allocator that the one before did
    /// not have is probed some milliseconds after it begins; a warning says so.
    #[arg(long, global = true)]
    pub follow: bool,

    /// Profile mmap, mremap, munmap and brk too
    #[arg(long, global = true)]
    pub mmap: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "When to begin")]
pub(super) struct Begin {
    /// Wait, with no probe in place, until a process has this much resident memory
    ///
    /// It is read from /proc once a second. When it is crossed, all processes asked for are profiled, and --duration
    /// begins. With --when-growth, whichever comes first counts.
    #[arg(long, value_name = "SIZE", value_parser = positive_size, allow_negative_numbers = true)]
    pub when_rss: Option<u64>,

    /// Wait, with no probe in place, until a process's resident memory has grown by SIZE within DURATION: 200M/10m
    #[arg(long, value_name = "SIZE/DURATION", value_parser = growth)]
    pub when_growth: Option<Growth>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "With --kernel")]
pub(super) struct Kernel {
    /// Record only caches of these names (several times, or with commas), or of a glob: 'kmalloc-*'
    ///
    /// Names are those of /proc/slabinfo. In a glob, * stands for any text and ? for one character.
    #[arg(long, global = true, value_name = "NAME", value_delimiter = ',')]
    pub cache: Vec<String>,

    /// Record pages of the page allocator too, those that no slab took
    ///
    /// Pages of user space and of files are among them. They are not sampled.
    #[arg(long, global = true)]
    pub pages: bool,

    /// Record per-CPU memory too
    #[arg(long, global = true)]
    pub percpu: bool,

    /// Record one address in N: cheaper; counts become estimates
    ///
    /// Which addresses are recorded is decided by a hash, so that an object and its free are both seen or both left
    /// out. The report scales its numbers up and says so.
    #[arg(long, global = true, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub sample: Option<u32>,

    /// Tell sites apart by the allocator's caller alone: cheaper than whole stacks
    #[arg(long, global = true)]
    pub no_stacks: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What to show")]
pub(super) struct Show {
    /// Time from report to report, at least 100ms
    ///
    /// Durations are written 30s, 500ms, 5m, 1h30m or 2d; a bare number counts seconds.
    #[arg(long, global = true, value_name = "DURATION", default_value = "5s", value_parser = interval)]
    pub interval: Duration,

    /// Stop by itself after this time, with a last report
    ///
    /// Without it, leakprobe stops at Ctrl-C or when the last process has exited.
    #[arg(long, global = true, value_name = "DURATION", value_parser = positive_duration)]
    pub duration: Option<Duration>,

    /// Show only blocks at least this old
    ///
    /// By default half the time watched so far, at most 30s; all, once every process has exited. 0 shows all.
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_duration)]
    pub older: Option<Duration>,

    /// How stacks are unwound
    #[arg(long, global = true, value_name = "HOW", default_value = "auto")]
    pub unwind: Unwind,

    /// Number of sites shown
    #[arg(long, global = true, value_name = "N", allow_negative_numbers = true, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub top: u32,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct Limits {
    /// Record only blocks of at least this many bytes
    ///
    /// Sizes are written 4096, 64k, 1M, 10mb or 1.5GiB; k is 1024.
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_size)]
    pub min_size: Option<u64>,

    /// Record only blocks of at most this many bytes
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_size)]
    pub max_size: Option<u64>,

    /// Room for this many outstanding blocks [default: 2097152]
    ///
    /// Blocks beyond it are not recorded, and the report says how many those were. Kernels before 6.1 set the room
    /// aside at once, and --kernel always does: there the default is 524288.
    #[arg(long, global = true, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=MAX_ENTRIES))]
    pub max_blocks: Option<u32>,

    /// Room for this many distinct stacks
    ///
    /// Blocks of stacks beyond it are recorded without a stack, and the report says how many those were.
    #[arg(long, global = true, value_name = "N", allow_negative_numbers = true, default_value_t = DEFAULT_MAX_STACKS, value_parser = clap::value_parser!(u32).range(1..=MAX_ENTRIES))]
    pub max_stacks: u32,

    /// Room for this many processes at a time, with --cgroup, --comm and --follow
    ///
    /// Those beyond it are left out, and the report says so.
    #[arg(long, global = true, value_name = "N", allow_negative_numbers = true, default_value_t = DEFAULT_MAX_PROCESSES, value_parser = clap::value_parser!(u32).range(1..=MAX_PROCESSES))]
    pub max_processes: u32,

    /// Room for this many rows of unwind tables, 4 bytes each
    ///
    /// Through objects beyond it, frame pointers are followed, and the report names them.
    #[arg(long, global = true, value_name = "N", allow_negative_numbers = true, default_value_t = DEFAULT_MAX_UNWIND_ROWS, value_parser = clap::value_parser!(u32).range(1..=MAX_ENTRIES))]
    pub max_unwind_rows: u32,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(super) struct Output {
    /// Form of the reports
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub format: Format,

    /// Write the reports to this file
    #[arg(short, long, global = true, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Show the whole ledger and where the probes are
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Advanced")]
pub(super) struct Advanced {
    /// Accept that this may kill a process that has a seccomp filter
    ///
    /// On kernels 6.11 to 6.13 a return probe makes the process use a system call that its seccomp filter may
    /// refuse, as those of containers do; leakprobe then refuses to profile it, unless told so.
    #[arg(long, global = true, next_line_help = true)]
    pub allow_return_probes_under_seccomp: bool,

    /// Record an allocator whose functions have this prefix: pool_ for pool_malloc, pool_free, ...
    ///
    /// Several times, or with commas. The functions are taken to behave as those of C and of jemalloc without the prefix,
    /// and to be the program's allocator: what they take from another one inside is not counted again. Those of the known
    /// allocators (glibc, musl, jemalloc, tcmalloc, mimalloc) are found without it.
    #[arg(long, global = true, next_line_help = true, value_name = "PREFIX", value_delimiter = ',', value_parser = prefix)]
    pub allocator_prefix: Vec<String>,

    /// Record only the allocators in objects of this file name or path (several times, or with commas)
    #[arg(long, global = true, next_line_help = true, value_name = "FILE", value_delimiter = ',')]
    pub allocator_object: Vec<PathBuf>,

    /// Record operator new where its code cannot be followed; accept that std::bad_alloc then ends the process
    ///
    /// The operator new of tcmalloc, jemalloc and mimalloc is recorded without this option: probes go to the instructions by
    /// which it returns. Where these cannot be found, which a warning says, only a return probe is left. It replaces return
    /// addresses, and an exception finds no way past one.
    #[arg(long, global = true, next_line_help = true)]
    pub record_operator_new: bool,

    /// Where in a function its probe goes
    #[arg(long, global = true, hide = true, value_name = "HOW", default_value = "auto")]
    pub placement: Placement,

    /// How probes are attached
    #[arg(long, global = true, hide = true, value_name = "HOW", default_value = "auto")]
    pub attach_with: AttachWith,

    /// Copy stacks, with their registers and memory, to this file: for tests
    #[arg(long, global = true, hide = true, value_name = "FILE")]
    pub stack_copies: Option<PathBuf>,

    /// Copy one stack in so many
    #[arg(long, global = true, hide = true, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub stack_copies_one_in: u32,

    /// How functions of the kernel's without a tracepoint are probed
    #[arg(long, global = true, hide = true, value_name = "HOW", default_value = "auto")]
    pub probe_functions: ProbeFunctions,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Help")]
pub(super) struct Help {
    /// Print help: -h in short, --help in full, with examples
    #[arg(short, long, global = true, action = clap::ArgAction::Help)]
    help: Option<bool>,

    /// Print the version
    #[arg(short = 'V', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

fn pid(text: &str) -> Result<u32, &'static str> {
    match text.trim().parse() {
        Ok(pid @ 1..=MAX_PID) => Ok(pid),
        _ => Err("expected a process ID such as 1298 (pidof NAME tells it)"),
    }
}

/// The longest prefix.
const MAX_PREFIX: usize = 64;

/// Prefixes that can be named: an allocator's number is a byte, and there are some that are known.
pub const MAX_PREFIXES: usize = 128;

fn prefix(text: &str) -> Result<String, &'static str> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_$.".contains(&byte));
    match text.len() {
        1..=MAX_PREFIX if is_plain => Ok(text.to_owned()),
        _ => Err(
            "expected what the names of functions begin with, such as je_ (letters, digits and _, at most 64)",
        ),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(interval) if interval < MIN_INTERVAL => {
            Err("shorter than 100ms, the shortest interval".to_owned())
        }
        Ok(interval) => Ok(interval),
        Err(error) => Err(error.to_string()),
    }
}

fn positive_size(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(0) => Err("every process has more than nothing; give a size such as 500M".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.to_string()),
    }
}

fn growth(text: &str) -> Result<Growth, String> {
    let Some((bytes, within)) = text.split_once('/') else {
        return Err("expected a size and a time with a / between, such as 200M/10m".to_owned());
    };
    Ok(Growth { bytes: positive_size(bytes.trim())?, within: positive_duration(within.trim())? })
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(Duration::ZERO) => Err("a duration of 0 leaves no time to see anything".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(UnitError::to_string(&error)),
    }
}

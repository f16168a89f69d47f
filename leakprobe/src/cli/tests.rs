//! Command lines, good and bad, and the help.

use super::args::Cli;
use super::*;

fn parsed(line: &str) -> Result<Invocation, clap::Error> {
    parse(std::iter::once("leakprobe").chain(line.split_whitespace()).map(OsString::from))
}

fn options(line: &str) -> Options {
    match parsed(line) {
        Ok(Invocation::Profile(options)) => *options,
        other => panic!("{line}: {other:?}"),
    }
}

fn of_pids(pids: &[u32]) -> Subject {
    Subject::Processes(Selection { pids: pids.to_vec(), ..Selection::default() })
}

/// The exit code and the first line of the error.
fn refused(line: &str) -> (i32, String) {
    let error = parsed(line).unwrap_err();
    (error.exit_code(), error.to_string().lines().next().unwrap_or_default().to_owned())
}

/// What `--kernel` does without further options.
const WHOLE_KERNEL: KernelOptions = KernelOptions {
    caches: Vec::new(),
    pages: false,
    percpu: false,
    one_in: 1,
    stacks: true,
    functions: ProbeFunctions::Auto,
};

#[test]
fn the_kernels_options() {
    let found =
        options("--kernel --cache dentry,kmalloc-* --cache filp --pages --percpu --sample 64 --no-stacks");
    assert_eq!(found.subject, Subject::Kernel);
    let expected = KernelOptions {
        caches: ["dentry", "kmalloc-*", "filp"].map(str::to_owned).to_vec(),
        pages: true,
        percpu: true,
        one_in: 64,
        stacks: false,
        functions: ProbeFunctions::Auto,
    };
    assert_eq!(found.kernel, expected);
    assert_eq!(options("-k").kernel, WHOLE_KERNEL);
    assert_eq!(options("-k").destination(), Destination::Stdout);
}

#[test]
fn the_kernel_goes_with_nothing_else() {
    for (line, reason) in [
        ("--kernel --pid 1", "and --pid what one process takes"),
        ("--kernel -- ls", "and -- COMMAND what one process takes"),
        ("--kernel demo", "--kernel does not go with demo"),
        ("doctor --kernel", "--kernel does not go with doctor"),
        ("--kernel --mmap", "--pages records pages"),
        ("--kernel --follow", "leave --follow out"),
        ("--pid 1 --cache x", "--cache says what is recorded of the kernel's memory: it needs --kernel"),
        ("--pid 1 --sample 8", "--sample says"),
        ("--no-stacks demo", "--no-stacks says"),
        ("--kernel --sample 0", "invalid value '0' for '--sample <N>'"),
    ] {
        let (code, text) = refused(line);
        assert_eq!(code, 2, "{line}");
        assert!(text.contains(reason), "{line}: {text}");
    }
}

#[test]
fn defaults() {
    let expected = Options {
        subject: of_pids(&[1298]),
        trigger: Trigger::default(),
        interval: Duration::from_secs(5),
        duration: None,
        older: None,
        top: 10,
        min_size: None,
        max_size: None,
        max_blocks: None,
        max_stacks: 16_384,
        max_processes: 256,
        unwind: Unwind::Auto,
        max_unwind_rows: 4_194_304,
        allocator_prefixes: Vec::new(),
        allocator_objects: Vec::new(),
        mmap: false,
        follow: false,
        kernel: WHOLE_KERNEL,
        format: Format::Text,
        output: None,
        verbose: false,
        allow_return_probes_under_seccomp: false,
        record_operator_new: false,
        placement: Placement::Auto,
        attach_with: AttachWith::Auto,
        stack_copies: None,
        stack_copies_one_in: 1,
    };
    assert_eq!(options("--pid 1298"), expected);
    assert_eq!(options("-p1298"), expected);
}

#[test]
fn every_option() {
    let expected = Options {
        subject: Subject::Demo,
        trigger: Trigger::default(),
        interval: Duration::from_millis(100),
        duration: Some(Duration::from_secs(5_400)),
        older: Some(Duration::ZERO),
        top: 5,
        min_size: Some(65_536),
        max_size: Some(10 << 20),
        max_blocks: Some(7),
        max_stacks: 8,
        max_processes: 11,
        unwind: Unwind::Dwarf,
        max_unwind_rows: 9,
        allocator_prefixes: Vec::new(),
        allocator_objects: Vec::new(),
        mmap: true,
        follow: true,
        kernel: WHOLE_KERNEL,
        format: Format::Json,
        output: Some("leaks.json".into()),
        verbose: true,
        allow_return_probes_under_seccomp: true,
        record_operator_new: false,
        placement: Placement::Floor,
        attach_with: AttachWith::Auto,
        stack_copies: None,
        stack_copies_one_in: 1,
    };
    let line = "--interval 100ms --duration 1h30m --older 0 --top 5 --min-size 64k --max-size 10mb --max-blocks 7 \
                --max-stacks 8 --max-processes 11 --unwind dwarf --max-unwind-rows 9 --mmap --follow --format json -o leaks.json -v \
                --allow-return-probes-under-seccomp \
                --placement floor";
    // Options are taken on either side of the word.
    assert_eq!(options(&format!("{line} demo")), expected);
    assert_eq!(options(&format!("demo {line}")), expected);
    assert_eq!(options(&format!("--top 5 demo {}", line.replace("--top 5", ""))), expected);
}

#[test]
fn groups_of_processes_and_when_they_are_profiled() {
    let found = options(
        "--pid 7 --cgroup system.slice/web.service --comm nginx,redis-server --comm node --when-rss 1g",
    );
    let selection = Selection {
        pids: vec![7],
        cgroups: vec!["system.slice/web.service".into()],
        names: ["nginx", "redis-server", "node"].map(str::to_owned).to_vec(),
    };
    assert!(selection.is_open());
    assert_eq!(found.subject, Subject::Processes(selection));
    assert_eq!(found.trigger, Trigger { rss: Some(1 << 30), growth: None });
    let growth = Growth { bytes: 200 << 20, within: Duration::from_secs(600) };
    assert_eq!(
        options("--pid 7 --when-growth 200M/10m").trigger,
        Trigger { rss: None, growth: Some(growth) }
    );
    for (line, reason) in [
        ("--cgroup x --kernel", "and --cgroup what one process takes"),
        ("--comm x --kernel", "and --comm what one process takes"),
        ("--comm x -- ls", "more than one thing to profile"),
        ("--when-rss 1g -- ls", "--when-rss waits for a running process to grow"),
        ("demo --pid 1", "unexpected argument"),
        ("--pid 1 --when-growth 200M", "with a / between"),
        ("--pid 1 --when-growth 200M/0", "a duration of 0"),
        ("--pid 1 --when-rss 0", "more than nothing"),
        ("--pid 1 --when-rss -1", "expected a size"),
        ("--comm=", "a value is required"),
        ("--pid 1 --max-processes 5000", "'--max-processes <N>'"),
    ] {
        let (code, text) = refused(line);
        assert_eq!(code, 2, "{line}");
        assert!(text.contains(reason), "{line}: {text}");
    }
}

#[test]
fn several_processes_each_once() {
    assert_eq!(options("--pid 3 --pid 1 -p 3 -p 2,1").subject, of_pids(&[3, 1, 2]));
}

#[test]
fn a_command_keeps_its_own_options() {
    let expect = |words: &[&str]| Subject::Command(words.iter().map(OsString::from).collect());
    assert_eq!(
        options("--top 5 -- ./server --top 7 -- -v").subject,
        expect(&["./server", "--top", "7", "--", "-v"])
    );
    assert_eq!(options("--top 5 -- ./server --top 7").top, 5);
    assert_eq!(options("-- demo").subject, expect(&["demo"]));
    assert_eq!(options("-- --help").subject, expect(&["--help"]));
}

#[test]
fn the_victim_is_there_though_hidden() {
    assert_eq!(parsed("demo-victim").unwrap(), Invocation::DemoVictim);
    assert_eq!(parsed("doctor").unwrap(), Invocation::Doctor { format: Format::Text, output: None });
    let (format, output) = (Format::Json, Some("x.json".into()));
    assert_eq!(parsed("doctor --format json -o x.json").unwrap(), Invocation::Doctor { format, output });
    for help in [Cli::command().render_help(), Cli::command().render_long_help()] {
        let help = help.to_string();
        assert!(!help.contains("victim") && !help.contains("--placement"), "{help}");
    }
}

#[test]
fn the_doctors_help_names_its_own_options_only() {
    let mut command = Cli::command();
    command.build();
    let doctor = command.find_subcommand_mut("doctor").expect("a subcommand");
    let help = doctor.render_long_help().to_string();
    assert!(help.contains("--format FORMAT") && help.contains("--output FILE, -o"), "{help}");
    assert!(!help.contains("--interval") && !help.contains("--max-blocks"), "{help}");
}

#[test]
fn exactly_one_thing_is_profiled() {
    let nothing = "error: nothing to profile: give --pid PID, or --cgroup PATH, or --comm NAME, or --kernel, or -- COMMAND, or demo";
    for line in ["", "--top 5", "--"] {
        assert_eq!(refused(line), (2, nothing.to_owned()), "{line}");
    }
    let too_much = "error: more than one thing to profile: give either --pid, --cgroup and --comm (as often as you \
                    like), or -- COMMAND, or demo";
    for line in ["--pid 1 demo", "--pid 1 doctor", "--pid 1 -- true"] {
        assert_eq!(refused(line), (2, too_much.to_owned()), "{line}");
    }
}

#[test]
fn wrong_values_are_named() {
    let duration_forms =
        "expected a duration such as 30s, 500ms, 5m, 1h30m or 2d (a bare number counts seconds)";
    let size_forms = "expected a size such as 4096, 64k, 1.5MiB or 2g (k = 1024 bytes)";
    let pid_forms = "expected a process ID such as 1298 (pidof NAME tells it)";
    for (line, why) in [
        (
            "-p 1 --interval 0",
            "invalid value '0' for '--interval <DURATION>': shorter than 100ms, the shortest interval".to_owned(),
        ),
        (
            "-p 1 --interval 99ms",
            "invalid value '99ms' for '--interval <DURATION>': shorter than 100ms, the shortest interval".to_owned(),
        ),
        (
            "-p 1 --duration 0s",
            "invalid value '0s' for '--duration <DURATION>': a duration of 0 leaves no time to see anything".to_owned(),
        ),
        ("-p 1 --older soon", format!("invalid value 'soon' for '--older <DURATION>': {duration_forms}")),
        ("-p 1 --min-size big", format!("invalid value 'big' for '--min-size <SIZE>': {size_forms}")),
        ("-p 1 --max-size 16E", format!("invalid value '16E' for '--max-size <SIZE>': more than 16 EiB; {size_forms}")),
        (
            "-p 1 --min-size 2k --max-size 1k",
            "--min-size (2048 bytes) is above --max-size (1024 bytes): no block can be both; exchange them or leave \
             one out"
                .to_owned(),
        ),
        (
            "-p 1 --older 1m --duration 30s",
            "--older (1m 00s) is longer than --duration (30s): no block can get that old; raise --duration or lower \
             --older"
                .to_owned(),
        ),
        ("-p 0", format!("invalid value '0' for '--pid <PID>': {pid_forms}")),
        ("-p init", format!("invalid value 'init' for '--pid <PID>': {pid_forms}")),
        ("-p 4194305", format!("invalid value '4194305' for '--pid <PID>': {pid_forms}")),
        (
            "-p 12 13",
            "unexpected argument '13'; to profile this process too, write --pid 13".to_owned(),
        ),
        (
            "./server --flag",
            "unexpected argument './server'; to profile a program, put -- before it: leakprobe -- ./server".to_owned(),
        ),
        ("-p 1 --top 0", "invalid value '0' for '--top <N>': 0 is not in 1..=100000".to_owned()),
        ("-p 1 --max-blocks 0", "invalid value '0' for '--max-blocks <N>': 0 is not in 1..=134217728".to_owned()),
        ("-p 1 --format xml", "invalid value 'xml' for '--format <FORMAT>'".to_owned()),
        ("-p 1 --frobnicate", "unexpected argument '--frobnicate' found".to_owned()),
    ] {
        assert_eq!(refused(line), (2, format!("error: {why}")), "{line}");
    }
    assert_eq!(options("-p 1 --min-size 1k --max-size 1k").min_size, Some(1024));
    assert_eq!(options("-p 1 --older 30s --duration 30s").older, Some(Duration::from_secs(30)));
}

#[test]
fn help_and_version_are_no_errors() {
    for line in ["--help", "-h", "--version", "demo --help"] {
        assert_eq!(parsed(line).unwrap_err().exit_code(), 0, "{line}");
    }
    let text = |line| parsed(line).unwrap_err().to_string();
    assert!(text("-h").contains("Durations: ") && !text("-h").contains("Examples:"));
    assert!(text("--help").contains("Examples:"));
    assert_eq!(
        parsed("--version").unwrap_err().to_string(),
        format!("leakprobe {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn survivors_are_older_than_half_the_time_watched_up_to_30s() {
    let default = options("--pid 1");
    assert_eq!(default.older_after(Duration::from_secs(5)), Duration::from_millis(2_500));
    assert_eq!(default.older_after(Duration::from_secs(60)), Duration::from_secs(30));
    assert_eq!(default.older_after(Duration::from_secs(61)), Duration::from_secs(30));
    assert_eq!(options("--pid 1 --older 1m").older_after(Duration::from_secs(5)), Duration::from_secs(60));
}

#[test]
fn a_started_program_keeps_its_standard_output() {
    assert_eq!(options("--pid 1").destination(), Destination::Stdout);
    assert_eq!(options("demo").destination(), Destination::Stdout);
    assert_eq!(options("-- true").destination(), Destination::Stderr);
    assert_eq!(options("-o x -- true").destination(), Destination::File("x".into()));
}

#[test]
fn clap_finds_no_fault() {
    Cli::command().debug_assert();
}

fn help(width: usize, long: bool) -> String {
    let mut command = Cli::command().term_width(width);
    if long { command.render_long_help() } else { command.render_help() }.to_string()
}

#[test]
fn help_fits() {
    for long in [false, true] {
        for width in [40, 80, 100] {
            for line in help(width, long).lines() {
                // This option's name alone is 35 columns wide, and clap indents it by 6.
                let fits = line.len() <= width || line.trim() == "--allow-return-probes-under-seccomp";
                assert!(fits, "{} columns of {width}: {line}", line.len());
            }
        }
    }
}

/// The help, without the blanks that clap leaves at the ends of lines.
fn trimmed(width: usize, long: bool) -> String {
    help(width, long).lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[test]
fn short_help() {
    insta::assert_snapshot!(trimmed(80, false), @r"
Find the line of code that owns the memory a running process, or the kernel,
does not give back

Usage: leakprobe [OPTIONS] --pid PID...
       leakprobe [OPTIONS] --cgroup PATH
       leakprobe [OPTIONS] --comm NAME
       leakprobe [OPTIONS] --kernel
       leakprobe [OPTIONS] -- COMMAND...
       leakprobe [OPTIONS] demo
       leakprobe doctor

Instead of --pid:
  demo    Profile a small built-in program that leaks
  doctor  Tell what this machine offers, and whether leakprobe works here

What to profile:
  -p, --pid <PID>      ID of a process to profile; can be given several times
      --cgroup <PATH>  Control group of which every process is profiled, new
                       ones as they come; can be given several times
      --comm <NAME>    Name of the processes to profile, new ones as they come;
                       several times, or with commas
  -k, --kernel         Profile the kernel's own memory: slab caches and kmalloc
      --follow         Profile children too: what is forked, and the programs
                       that it executes, from their first instruction on
      --mmap           Profile mmap, mremap, munmap and brk too
  [COMMAND]...         Program to start (after --) and profile from its first
                       allocation on, with its arguments

When to begin:
      --when-rss <SIZE>
          Wait, with no probe in place, until a process has this much resident
          memory
      --when-growth <SIZE/DURATION>
          Wait, with no probe in place, until a process's resident memory has
          grown by SIZE within DURATION: 200M/10m

With --kernel:
      --cache <NAME>  Record only caches of these names (several times, or with
                      commas), or of a glob: 'kmalloc-*'
      --pages         Record pages of the page allocator too, those that no slab
                      took
      --percpu        Record per-CPU memory too
      --sample <N>    Record one address in N: cheaper; counts become estimates
      --no-stacks     Tell sites apart by the allocator's caller alone: cheaper
                      than whole stacks

What to show:
      --interval <DURATION>  Time from report to report, at least 100ms
                             [default: 5s]
      --duration <DURATION>  Stop by itself after this time, with a last report
      --older <DURATION>     Show only blocks at least this old
      --unwind <HOW>         How stacks are unwound [default: auto] [possible
                             values: auto, dwarf, fp]
      --top <N>              Number of sites shown [default: 10]

Limits:
      --min-size <SIZE>      Record only blocks of at least this many bytes
      --max-size <SIZE>      Record only blocks of at most this many bytes
      --max-blocks <N>       Room for this many outstanding blocks [default:
                             2097152]
      --max-stacks <N>       Room for this many distinct stacks [default: 16384]
      --max-processes <N>    Room for this many processes at a time, with
                             --cgroup, --comm and --follow [default: 256]
      --max-unwind-rows <N>  Room for this many rows of unwind tables, 4 bytes
                             each [default: 4194304]

Output:
      --format <FORMAT>  Form of the reports [default: text] [possible values:
                         text, json]
  -o, --output <FILE>    Write the reports to this file
  -v, --verbose          Show the whole ledger and where the probes are

Advanced:
      --allow-return-probes-under-seccomp
          Accept that this may kill a process that has a seccomp filter
      --allocator-prefix <PREFIX>
          Record an allocator whose functions have this prefix: pool_ for
          pool_malloc, pool_free, ...
      --allocator-object <FILE>
          Record only the allocators in objects of this file name or path
          (several times, or with commas)
      --record-operator-new
          Record operator new where its code cannot be followed; accept that
          std::bad_alloc then ends the process

Help:
  -h, --help     Print help: -h in short, --help in full, with examples
  -V, --version  Print the version

Durations: 30s, 500ms, 5m, 1h30m; sizes: 4096, 64k, 1.5GiB. See --help for more.
");
    insta::assert_snapshot!(trimmed(40, false), @r"
Find the line of code that owns the
memory a running process, or the kernel,
does not give back

Usage: leakprobe [OPTIONS] --pid PID...
       leakprobe [OPTIONS] --cgroup PATH
       leakprobe [OPTIONS] --comm NAME
       leakprobe [OPTIONS] --kernel
       leakprobe [OPTIONS] -- COMMAND...
       leakprobe [OPTIONS] demo
       leakprobe doctor

Instead of --pid:
  demo    Profile a small built-in
          program that leaks
  doctor  Tell what this machine offers,
          and whether leakprobe works
          here

What to profile:
  -p, --pid <PID>
          ID of a process to profile;
          can be given several times
      --cgroup <PATH>
          Control group of which every
          process is profiled, new ones
          as they come; can be given
          several times
      --comm <NAME>
          Name of the processes to
          profile, new ones as they
          come; several times, or with
          commas
  -k, --kernel
          Profile the kernel's own
          memory: slab caches and
          kmalloc
      --follow
          Profile children too: what is
          forked, and the programs that
          it executes, from their first
          instruction on
      --mmap
          Profile mmap, mremap, munmap
          and brk too
  [COMMAND]...
          Program to start (after --)
          and profile from its first
          allocation on, with its
          arguments

When to begin:
      --when-rss <SIZE>
          Wait, with no probe in place,
          until a process has this much
          resident memory
      --when-growth <SIZE/DURATION>
          Wait, with no probe in place,
          until a process's resident
          memory has grown by SIZE
          within DURATION: 200M/10m

With --kernel:
      --cache <NAME>
          Record only caches of these
          names (several times, or with
          commas), or of a glob:
          'kmalloc-*'
      --pages
          Record pages of the page
          allocator too, those that no
          slab took
      --percpu
          Record per-CPU memory too
      --sample <N>
          Record one address in N:
          cheaper; counts become
          estimates
      --no-stacks
          Tell sites apart by the
          allocator's caller alone:
          cheaper than whole stacks

What to show:
      --interval <DURATION>
          Time from report to report, at
          least 100ms [default: 5s]
      --duration <DURATION>
          Stop by itself after this
          time, with a last report
      --older <DURATION>
          Show only blocks at least this
          old
      --unwind <HOW>
          How stacks are unwound
          [default: auto] [possible
          values: auto, dwarf, fp]
      --top <N>
          Number of sites shown
          [default: 10]

Limits:
      --min-size <SIZE>
          Record only blocks of at least
          this many bytes
      --max-size <SIZE>
          Record only blocks of at most
          this many bytes
      --max-blocks <N>
          Room for this many outstanding
          blocks [default: 2097152]
      --max-stacks <N>
          Room for this many distinct
          stacks [default: 16384]
      --max-processes <N>
          Room for this many processes
          at a time, with --cgroup,
          --comm and --follow [default:
          256]
      --max-unwind-rows <N>
          Room for this many rows of
          unwind tables, 4 bytes each
          [default: 4194304]

Output:
      --format <FORMAT>
          Form of the reports [default:
          text] [possible values: text,
          json]
  -o, --output <FILE>
          Write the reports to this file
  -v, --verbose
          Show the whole ledger and
          where the probes are

Advanced:
      --allow-return-probes-under-seccomp
          Accept that this may kill a
          process that has a seccomp
          filter
      --allocator-prefix <PREFIX>
          Record an allocator whose
          functions have this prefix:
          pool_ for pool_malloc,
          pool_free, ...
      --allocator-object <FILE>
          Record only the allocators in
          objects of this file name or
          path (several times, or with
          commas)
      --record-operator-new
          Record operator new where its
          code cannot be followed;
          accept that std::bad_alloc
          then ends the process

Help:
  -h, --help
          Print help: -h in short,
          --help in full, with examples
  -V, --version
          Print the version

Durations: 30s, 500ms, 5m, 1h30m; sizes:
4096, 64k, 1.5GiB. See --help for more.
");
}

#[test]
fn long_help() {
    insta::assert_snapshot!(trimmed(80, true), @r"
Find the line of code that owns the memory a running process, or the kernel,
does not give back.

Watches the allocator of a live process from outside, with eBPF, and reports the
blocks that are not given back by the stack that allocated them. The process is
neither stopped nor restarted. Or watches the kernel's own allocators. Needs
root.

Usage: leakprobe [OPTIONS] --pid PID...
       leakprobe [OPTIONS] --cgroup PATH
       leakprobe [OPTIONS] --comm NAME
       leakprobe [OPTIONS] --kernel
       leakprobe [OPTIONS] -- COMMAND...
       leakprobe [OPTIONS] demo
       leakprobe doctor

Instead of --pid:
  demo    Profile a small built-in program that leaks
  doctor  Tell what this machine offers, and whether leakprobe works here

What to profile:
  -p, --pid <PID>
          ID of a process to profile; can be given several times

      --cgroup <PATH>
          Control group of which every process is profiled, new ones as they
          come; can be given several times

          A directory, or a path as /proc/PID/cgroup shows it:
          system.slice/nginx.service. With the groups below it. It goes on when
          the group is empty, until Ctrl-C or --duration.

      --comm <NAME>
          Name of the processes to profile, new ones as they come; several
          times, or with commas

          The kernel's short name (`ps -eo pid,comm`), of which 15 bytes are
          compared. It goes on when the last one has exited, until Ctrl-C or
          --duration.

  -k, --kernel
          Profile the kernel's own memory: slab caches and kmalloc

          Reports each cache, traced and by /proc/slabinfo, then the
          longest-lived survivors with the kernel's stacks. It watches the whole
          machine: on a busy one, --sample makes it cheaper.

      --follow
          Profile children too: what is forked, and the programs that it
          executes, from their first instruction on

          Those that are there already are taken in as they are. A new child has
          a copy of its parent's blocks, which stay its parent's in the report;
          its own are listed for itself. It goes on until all have exited,
          children of the first ones included. Without it, children are left
          alone, and pay nothing. A program with an allocator that the one
          before did not have is probed some milliseconds after it begins; a
          warning says so.

      --mmap
          Profile mmap, mremap, munmap and brk too

  [COMMAND]...
          Program to start (after --) and profile from its first allocation on,
          with its arguments

          Its exit status is passed on. Reports go to standard error unless
          --output is given: standard output is the program's own.

When to begin:
      --when-rss <SIZE>
          Wait, with no probe in place, until a process has this much resident
          memory

          It is read from /proc once a second. When it is crossed, all processes
          asked for are profiled, and --duration begins. With --when-growth,
          whichever comes first counts.

      --when-growth <SIZE/DURATION>
          Wait, with no probe in place, until a process's resident memory has
          grown by SIZE within DURATION: 200M/10m

With --kernel:
      --cache <NAME>
          Record only caches of these names (several times, or with commas), or
          of a glob: 'kmalloc-*'

          Names are those of /proc/slabinfo. In a glob, * stands for any text
          and ? for one character.

      --pages
          Record pages of the page allocator too, those that no slab took

          Pages of user space and of files are among them. They are not sampled.

      --percpu
          Record per-CPU memory too

      --sample <N>
          Record one address in N: cheaper; counts become estimates

          Which addresses are recorded is decided by a hash, so that an object
          and its free are both seen or both left out. The report scales its
          numbers up and says so.

      --no-stacks
          Tell sites apart by the allocator's caller alone: cheaper than whole
          stacks

What to show:
      --interval <DURATION>
          Time from report to report, at least 100ms

          Durations are written 30s, 500ms, 5m, 1h30m or 2d; a bare number
          counts seconds.

          [default: 5s]

      --duration <DURATION>
          Stop by itself after this time, with a last report

          Without it, leakprobe stops at Ctrl-C or when the last process has
          exited.

      --older <DURATION>
          Show only blocks at least this old

          By default half the time watched so far, at most 30s; all, once every
          process has exited. 0 shows all.

      --unwind <HOW>
          How stacks are unwound

          Possible values:
          - auto:  By each object's call frame information; by frame pointers
            through code that has none
          - dwarf: By call frame information alone: a stack ends at code that
            has none
          - fp:    By frame pointers alone

          [default: auto]

      --top <N>
          Number of sites shown

          [default: 10]

Limits:
      --min-size <SIZE>
          Record only blocks of at least this many bytes

          Sizes are written 4096, 64k, 1M, 10mb or 1.5GiB; k is 1024.

      --max-size <SIZE>
          Record only blocks of at most this many bytes

      --max-blocks <N>
          Room for this many outstanding blocks [default: 2097152]

          Blocks beyond it are not recorded, and the report says how many those
          were. Kernels before 6.1 set the room aside at once, and --kernel
          always does: there the default is 524288.

      --max-stacks <N>
          Room for this many distinct stacks

          Blocks of stacks beyond it are recorded without a stack, and the
          report says how many those were.

          [default: 16384]

      --max-processes <N>
          Room for this many processes at a time, with --cgroup, --comm and
          --follow

          Those beyond it are left out, and the report says so.

          [default: 256]

      --max-unwind-rows <N>
          Room for this many rows of unwind tables, 4 bytes each

          Through objects beyond it, frame pointers are followed, and the report
          names them.

          [default: 4194304]

Output:
      --format <FORMAT>
          Form of the reports

          Possible values:
          - text: For people
          - json: One JSON object a line; docs/report-schema.md documents it

          [default: text]

  -o, --output <FILE>
          Write the reports to this file

  -v, --verbose
          Show the whole ledger and where the probes are

Advanced:
      --allow-return-probes-under-seccomp
          Accept that this may kill a process that has a seccomp filter

          On kernels 6.11 to 6.13 a return probe makes the process use a system
          call that its seccomp filter may refuse, as those of containers do;
          leakprobe then refuses to profile it, unless told so.

      --allocator-prefix <PREFIX>
          Record an allocator whose functions have this prefix: pool_ for
          pool_malloc, pool_free, ...

          Several times, or with commas. The functions are taken to behave as
          those of C and of jemalloc without the prefix, and to be the program's
          allocator: what they take from another one inside is not counted
          again. Those of the known allocators (glibc, musl, jemalloc, tcmalloc,
          mimalloc) are found without it.

      --allocator-object <FILE>
          Record only the allocators in objects of this file name or path
          (several times, or with commas)

      --record-operator-new
          Record operator new where its code cannot be followed; accept that
          std::bad_alloc then ends the process

          The operator new of tcmalloc, jemalloc and mimalloc is recorded
          without this option: probes go to the instructions by which it
          returns. Where these cannot be found, which a warning says, only a
          return probe is left. It replaces return addresses, and an exception
          finds no way past one.

Help:
  -h, --help
          Print help: -h in short, --help in full, with examples

  -V, --version
          Print the version

Examples:
  A running service, until Ctrl-C:
    sudo leakprobe --pid 1298
  Every process of a service, new ones too:
    sudo leakprobe --cgroup system.slice/nginx.service
  Not before it has grown:
    sudo leakprobe --pid 1298 --when-growth 200M/10m
  The 5 largest sites of what is older than a minute:
    sudo leakprobe --pid 1298 \
      --older 1m --top 5
  A minute of reports for a script:
    sudo leakprobe --pid 1298 \
      --duration 60s --format json \
      --output leaks.json
  The kernel's own memory:
    sudo leakprobe --kernel
  One of its caches, on a busy machine:
    sudo leakprobe --kernel \
      --cache 'kmalloc-*' --sample 512
  A program from its first allocation on:
    sudo leakprobe -- ./server --flag
  See what a report looks like:
    sudo leakprobe demo
  See what this machine offers:
    sudo leakprobe doctor
");
}

//! The programs that are measured: tests/victims/bench.c and bench_kernel.c, which do what they are told line by line.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::command;

/// Folder of everything that is built for measuring.
pub fn folder() -> PathBuf {
    command::workspace().join("target/bench")
}

/// Compiles the victims, with frame pointers.
pub fn build() -> anyhow::Result<()> {
    std::fs::create_dir_all(folder()).with_context(|| format!("failed to create {}", folder().display()))?;
    for name in ["bench", "bench_kernel"] {
        let source = command::workspace().join(format!("tests/victims/{name}.c"));
        command::run(compiler().args(["-o"]).arg(folder().join(name)).arg(source).arg("-ldl"))?;
    }
    Ok(())
}

/// The C compiler, with the options that make every frame appear in a walk by frame pointers.
pub fn compiler() -> Command {
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-g", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"]);
    compiler
}

/// A running victim; killed when this goes.
pub struct Victim {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Victim {
    /// Starts it, and waits until it listens.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_program("bench")
    }

    /// Starts the one that makes the kernel allocate.
    pub fn start_for_kernel() -> anyhow::Result<Self> {
        Self::start_program("bench_kernel")
    }

    fn start_program(name: &str) -> anyhow::Result<Self> {
        let program = folder().join(name);
        let mut child = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {}", program.display()))?;
        let stdin = child.stdin.take().context("failed to open a pipe to the victim")?;
        let stdout = child.stdout.take().context("failed to open a pipe from the victim")?;
        let mut victim = Self { child, stdin, stdout: BufReader::new(stdout) };
        victim.answer("ready")?;
        Ok(victim)
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it do `count` pairs of malloc and free on a stack of `depth` frames; ns a pair.
    pub fn pairs(&mut self, count: u64, depth: u32) -> anyhow::Result<f64> {
        let answer = self.ask(&format!("pairs {count} {depth}"), "ns")?;
        answer.parse().with_context(|| format!("failed to read the victim's answer {answer:?}"))
    }

    /// Lets it make the kernel do `count` pairs of kmalloc and kfree; ns of CPU time a pair, the system call included.
    pub fn kernel_pairs(&mut self, count: u64) -> anyhow::Result<f64> {
        let answer = self.ask(&format!("pairs {count}"), "ns")?;
        answer.parse().with_context(|| format!("failed to read the victim's answer {answer:?}"))
    }

    /// Lets it fork and send for so many milliseconds; how many processes, and how many connections, that were.
    pub fn load(&mut self, ms: u64) -> anyhow::Result<(f64, f64)> {
        let answer = self.ask(&format!("load {ms}"), "load")?;
        let numbers = answer.split_once(' ').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        numbers.with_context(|| format!("failed to read the victim's answer {answer:?}"))
    }

    /// As [`Victim::load`], with a third process that works with files.
    pub fn busy(&mut self, ms: u64) -> anyhow::Result<()> {
        self.ask(&format!("busy {ms}"), "load").map(drop)
    }

    /// Lets it take a block on a stack of `depth` frames, and keep it.
    pub fn keep(&mut self, depth: u32) -> anyhow::Result<()> {
        self.ask(&format!("keep {depth}"), "kept").map(drop)
    }

    /// Lets it take `blocks` blocks of 32 bytes from `sites` stacks in turn, and keep them.
    pub fn hold(&mut self, blocks: u64, sites: u64) -> anyhow::Result<()> {
        self.ask(&format!("hold {blocks} {sites}"), "held").map(drop)
    }

    /// Lets it load a shared library.
    pub fn load_library(&mut self, library: &std::path::Path) -> anyhow::Result<()> {
        self.ask(&format!("load {}", library.display()), "loaded").map(drop)
    }

    /// Lets it map a file as code.
    pub fn map(&mut self, file: &std::path::Path) -> anyhow::Result<()> {
        self.ask(&format!("map {}", file.display()), "mapped").map(drop)
    }

    fn ask(&mut self, request: &str, expected: &str) -> anyhow::Result<String> {
        writeln!(self.stdin, "{request}")
            .with_context(|| format!("failed to tell the victim to {request}"))?;
        self.answer(expected).with_context(|| format!("failed to let the victim {request}"))
    }

    fn answer(&mut self, expected: &str) -> anyhow::Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).context("failed to read the victim's answer")?;
        match line.trim_end().split_once(' ') {
            Some((word, rest)) if word == expected => Ok(rest.to_owned()),
            _ => bail!("the victim answered {line:?}, not {expected}"),
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

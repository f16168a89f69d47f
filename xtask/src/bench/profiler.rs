//! leakprobe at work, seen from outside: when its probes were in place, when each report arrived, when it ended.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::command;

/// Nothing that is measured here takes longer: whoever waits for longer waits in vain.
const PATIENCE: Duration = Duration::from_secs(120);

/// An interval that is not over before the measurement is: the only report is the last one.
pub const NO_INTERVAL: [&str; 2] = ["--interval", "1h"];

/// A running leakprobe that prints JSON; killed when this goes.
pub struct Profiler {
    child: Child,
    reports: Receiver<Arrived>,
    /// Kept, so that what it says later finds a reader.
    errors: Receiver<Arrived>,
    /// When it was started.
    pub started: Instant,
    /// When it said that its probes are in place.
    pub in_place: Instant,
    /// How long that took by its own account.
    pub own_account: Duration,
}

/// A line of its output.
struct Arrived {
    at: Instant,
    line: Vec<u8>,
}

/// A report.
pub struct Report {
    /// When its last byte arrived.
    pub at: Instant,
    /// As docs/report-schema.md has it.
    pub json: Value,
}

/// How it ended.
pub struct Ended {
    /// From SIGINT to the last byte of the last report.
    pub until_report: Duration,
    /// From SIGINT to the process's end.
    pub until_exit: Duration,
    /// The last report.
    pub json: Value,
}

impl Profiler {
    /// Starts it on a process, and waits until its probes are in place.
    pub fn start(pid: u32, options: &[&str]) -> anyhow::Result<Self> {
        Self::start_on(&["--pid", &pid.to_string()], options)
    }

    /// Starts it on the kernel, and waits until its probes are in place.
    pub fn start_on_kernel(options: &[&str]) -> anyhow::Result<Self> {
        Self::start_on(&["--kernel"], options)
    }

    fn start_on(what: &[&str], options: &[&str]) -> anyhow::Result<Self> {
        let mut leakprobe = Command::new(command::workspace().join("target/release/leakprobe"));
        leakprobe.args(what).args(["--format", "json"]).args(options);
        let shown = command::show(&leakprobe);
        leakprobe.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = leakprobe.spawn().with_context(|| format!("failed to start `{shown}`"))?;
        let stdout = child.stdout.take().context("failed to open a pipe from leakprobe")?;
        let stderr = child.stderr.take().context("failed to open a pipe from leakprobe")?;
        let reports = lines(stdout);
        let errors = lines(stderr);
        let mut profiler =
            Self { child, reports, errors, started, in_place: started, own_account: Duration::ZERO };
        let mut said = String::new();
        while let Ok(Arrived { at, line }) = profiler.errors.recv_timeout(PATIENCE) {
            let line = String::from_utf8_lossy(&line);
            if let Some(milliseconds) = in_place(&line) {
                profiler.in_place = at;
                profiler.own_account = Duration::from_millis(milliseconds);
                return Ok(profiler);
            }
            said.push_str(&line);
            said.push('\n');
        }
        bail!("`{shown}` did not say that its probes are in place, but: {said}");
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the next report.
    pub fn report(&self) -> anyhow::Result<Report> {
        let Arrived { at, line } =
            self.reports.recv_timeout(PATIENCE).context("failed to get a report from leakprobe")?;
        Ok(Report { at, json: serde_json::from_slice(&line).context("failed to read a report as JSON")? })
    }

    /// Stops it by SIGINT, as Ctrl-C does. All reports before the last one must have been taken.
    pub fn stop(mut self) -> anyhow::Result<Ended> {
        let pid = i32::try_from(self.child.id()).context("a process ID is out of range")?;
        let asked = Instant::now();
        // SAFETY: kill has no preconditions; the process is a child of ours that has not been waited for, so its ID
        // is still its own.
        if unsafe { libc::kill(pid, libc::SIGINT) } != 0 {
            return Err(std::io::Error::last_os_error()).context("failed to send SIGINT to leakprobe");
        }
        let status = self.child.wait().context("failed to wait for leakprobe")?;
        let until_exit = asked.elapsed();
        if !status.success() {
            let said: Vec<Vec<u8>> = self.errors.iter().map(|arrived| arrived.line).collect();
            bail!("leakprobe failed: {status}: {}", String::from_utf8_lossy(&said.join(&b'\n')));
        }
        let last = self.report()?;
        if last.json["is_final"] != true {
            bail!("failed to measure the last report: another one was still waiting to be read");
        }
        let until_report = last.at.saturating_duration_since(asked);
        Ok(Ended { until_report, until_exit, json: last.json })
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        // It has ended, unless a measurement was broken off.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads lines as they come, so that each one's time is its own and the writer never waits.
fn lines(stream: impl std::io::Read + Send + 'static) -> Receiver<Arrived> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::with_capacity(1 << 20, stream);
        loop {
            let mut line = Vec::new();
            let read = reader.by_ref().read_until(b'\n', &mut line);
            let at = Instant::now();
            if line.pop().is_none() || read.is_err() || sender.send(Arrived { at, line }).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The milliseconds in `leakprobe: probes in place (99 ms)`.
fn in_place(line: &str) -> Option<u64> {
    let rest = line.split_once("probes in place (")?.1;
    rest.split_once(" ms)")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_one_by_one_without_their_ends() {
        let lines: Vec<_> = lines(&b"one\ntwo\n"[..]).iter().map(|arrived| arrived.line).collect();
        assert_eq!(lines, [b"one", b"two"]);
    }

    #[test]
    fn the_time_until_the_probes_are_in_place_is_read() {
        assert_eq!(in_place("leakprobe: probes in place (99 ms)"), Some(99));
        assert_eq!(in_place("leakprobe: failed to attach"), None);
    }
}

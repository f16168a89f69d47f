//! leakprobe at work on a victim.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::report::{Report, State};
use crate::{compile, run, text};

/// What leakprobe says on its error output once every probe is in.
const IN_PLACE: &str = "leakprobe: probes in place";

/// A running leakprobe; killed when it goes out of scope.
#[derive(Debug)]
pub struct Probe {
    child: Child,
    output: PathBuf,
    errors: Receiver<String>,
    said: Vec<String>,
    pids: Vec<u32>,
}

/// A path for one more output file.
pub fn fresh_output() -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    compile::scratch().join(format!("report.{}.{number}.json", std::process::id()))
}

/// The arguments that every test gives, but for those that `extra` sets itself.
pub fn arguments(output: &Path, extra: &[&str]) -> Vec<String> {
    let output = output.display().to_string();
    let defaults = [
        ("--format", "json"),
        ("--output", output.as_str()),
        ("--interval", "1s"),
        ("--older", "0s"),
        ("--top", "1000"),
    ];
    let missing = defaults.iter().filter(|(option, _)| !extra.contains(option));
    let mut arguments: Vec<String> =
        missing.flat_map(|(option, value)| [option.to_string(), value.to_string()]).collect();
    arguments.extend(extra.iter().map(|word| word.to_string()));
    arguments
}

/// The reports in a file, each checked to balance; a last line that is still being written is left out.
///
/// # Panics
///
/// When the file can't be read, or a line isn't a report.
pub fn reports(output: &Path) -> Vec<Report> {
    let text =
        fs::read_to_string(output).unwrap_or_else(|e| panic!("failed to read {}: {e}", output.display()));
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let reports: Vec<Report> = whole
        .map(|line| {
            serde_json::from_str(line).unwrap_or_else(|e| panic!("failed to read a report: {e}: {line}"))
        })
        .collect();
    for (report, number) in reports.iter().zip(1..) {
        assert_eq!(report.sequence, number, "reports are numbered from 1 without gaps");
        report.check_books();
    }
    reports
}

/// The reports of a session that has ended: the last one, and only it, is final.
///
/// # Panics
///
/// When there is none, or another is final; and as [`reports`].
pub fn final_reports(output: &Path) -> Vec<Report> {
    let reports = reports(output);
    let finals: Vec<u64> =
        reports.iter().filter(|report| report.is_final).map(|report| report.sequence).collect();
    assert_eq!(finals, [reports.len() as u64], "the last report, and only it, is final");
    reports
}

impl Probe {
    /// Attaches to a process and waits until the probes are in place.
    ///
    /// # Panics
    ///
    /// When leakprobe refuses, or takes longer than [`run::patience`].
    pub fn attach(pid: u32, extra: &[&str]) -> Probe {
        Self::attach_all(&[pid], extra)
    }

    /// Attaches to several processes.
    ///
    /// # Panics
    ///
    /// As [`Probe::attach`].
    pub fn attach_all(pids: &[u32], extra: &[&str]) -> Probe {
        let mut probe = Self::launch(pids, extra);
        probe.wait_in_place();
        probe
    }

    /// How long it takes on this machine from leakprobe's start until its probes are in.
    ///
    /// # Panics
    ///
    /// As [`Probe::attach`] and [`Probe::finish`].
    pub fn time_to_attach(pid: u32) -> Duration {
        let start = Instant::now();
        let probe = Self::attach(pid, &[]);
        let time = start.elapsed();
        probe.finish();
        time
    }

    /// Starts leakprobe and waits for nothing.
    ///
    /// # Panics
    ///
    /// When it can't be started.
    pub fn launch(pids: &[u32], extra: &[&str]) -> Probe {
        let what = pids.iter().flat_map(|pid| ["--pid".to_owned(), pid.to_string()]).collect();
        Self::launch_on(what, pids, extra)
    }

    /// Starts leakprobe on the kernel and waits for nothing.
    ///
    /// # Panics
    ///
    /// When it can't be started.
    pub fn launch_on_kernel(extra: &[&str]) -> Probe {
        Self::launch_on(vec!["--kernel".to_owned()], &[], extra)
    }

    /// Starts leakprobe on the kernel and waits until the probes are in place.
    ///
    /// # Panics
    ///
    /// As [`Probe::attach`].
    pub fn attach_to_kernel(extra: &[&str]) -> Probe {
        let mut probe = Self::launch_on_kernel(extra);
        probe.wait_in_place();
        probe
    }

    /// Starts leakprobe on what these arguments name (`--cgroup PATH`), and waits for nothing. Those of `pids` that still
    /// run at the end are checked to have no probe left in them.
    ///
    /// # Panics
    ///
    /// When it can't be started.
    pub fn launch_to(what: &[&str], pids: &[u32], extra: &[&str]) -> Probe {
        Self::launch_on(what.iter().map(|word| word.to_string()).collect(), pids, extra)
    }

    /// As [`Probe::launch_to`], and waits until the probes are in place.
    ///
    /// # Panics
    ///
    /// As [`Probe::attach`].
    pub fn attach_to(what: &[&str], pids: &[u32], extra: &[&str]) -> Probe {
        let mut probe = Self::launch_to(what, pids, extra);
        probe.wait_in_place();
        probe
    }

    fn launch_on(what: Vec<String>, pids: &[u32], extra: &[&str]) -> Probe {
        let output = fresh_output();
        let mut command = run::command(what);
        command.args(arguments(&output, extra));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("failed to start {command:?}: {e}"));
        let lines = BufReader::new(child.stderr.take().expect("a piped error output"));
        let (sender, errors) = mpsc::channel();
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Probe { child, output, errors, said: Vec::new(), pids: pids.to_vec() }
    }

    /// Waits until the probes are in place.
    ///
    /// # Panics
    ///
    /// As [`Probe::attach`].
    pub fn wait_in_place(&mut self) {
        self.wait_said(IN_PLACE);
    }

    /// Waits until leakprobe has said a line that begins like this, and returns it.
    ///
    /// # Panics
    ///
    /// When it doesn't within [`run::patience`].
    pub fn wait_said(&mut self, begin: &str) -> String {
        let deadline = Instant::now() + run::patience();
        loop {
            match self.errors.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.said.push(line.clone());
                    if line.starts_with(begin) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.fail(&format!("did not say {begin:?} in time")),
                Err(RecvTimeoutError::Disconnected) => self.fail(&format!("ended before it said {begin:?}")),
            }
        }
    }

    /// leakprobe's own process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A report of which every part was read after this call.
    ///
    /// # Panics
    ///
    /// When none comes within [`run::patience`].
    pub fn next_report(&mut self) -> Report {
        // The next report may be half done already; the one after it is not begun.
        let wanted = self.reports_so_far() + 2;
        let deadline = Instant::now() + run::patience();
        while self.reports_so_far() < wanted {
            if Instant::now() >= deadline || !matches!(self.child.try_wait(), Ok(None)) {
                self.fail("wrote no more reports");
            }
            thread::sleep(Duration::from_millis(10));
        }
        reports(&self.output).swap_remove(wanted - 1)
    }

    /// The first report of which `is_wanted` holds, and which was begun after this call.
    ///
    /// # Panics
    ///
    /// When none comes within [`run::patience`].
    pub fn report_with(&mut self, what: &str, is_wanted: impl Fn(&Report) -> bool) -> Report {
        let deadline = Instant::now() + run::patience();
        loop {
            let report = self.next_report();
            if is_wanted(&report) {
                return report;
            }
            if Instant::now() >= deadline {
                self.fail(&format!("reported nothing with {what}, but at last {}", report.digest()));
            }
        }
    }

    /// Waits until a process is profiled, and returns a report after that. One that was started a moment ago has its probes
    /// by then.
    ///
    /// # Panics
    ///
    /// When it is not within [`run::patience`].
    pub fn wait_running(&mut self, pid: u32) -> Report {
        let running = |report: &Report| {
            report.processes.iter().any(|process| process.pid == pid && process.state == State::Running)
        };
        self.report_with(&format!("process {pid} running"), running);
        self.pids.push(pid);
        self.next_report()
    }

    fn reports_so_far(&self) -> usize {
        fs::read(&self.output).map_or(0, |bytes| bytes.iter().filter(|&&byte| byte == b'\n').count())
    }

    /// Interrupts leakprobe as Ctrl-C does, and returns all reports of the session.
    ///
    /// # Panics
    ///
    /// When leakprobe does not end with status 0, when its books don't balance, or when a probe is left
    /// in a process that still runs.
    pub fn finish(mut self) -> Vec<Report> {
        self.signal(libc::SIGINT);
        self.end()
    }

    /// As [`Probe::finish`], while another leakprobe keeps its probes in the same process.
    ///
    /// # Panics
    ///
    /// As there, but for probes that are left.
    pub fn finish_beside_others(mut self) -> Vec<Report> {
        self.pids.clear();
        self.signal(libc::SIGINT);
        self.end()
    }

    /// Waits until leakprobe ends by itself, as when its targets exit; else as [`Probe::finish`].
    ///
    /// # Panics
    ///
    /// As [`Probe::finish`].
    pub fn end(&mut self) -> Vec<Report> {
        match run::wait(&mut self.child, run::patience()) {
            Some(status) if status.code() == Some(0) => {}
            Some(status) => self.fail(&format!("ended with {status}")),
            None => self.fail("did not end"),
        }
        for &pid in &self.pids {
            if is_running(pid) {
                text::check_whole(pid);
            }
        }
        let reports = final_reports(&self.output);
        let _ = fs::remove_file(&self.output);
        reports
    }

    /// Kills leakprobe as nothing can be prepared for, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.output);
    }

    /// Waits for the end, whatever it is: the exit status and what was said on the error output.
    ///
    /// # Panics
    ///
    /// When it doesn't end.
    pub fn outcome(&mut self) -> (Option<i32>, String) {
        let Some(status) = run::wait(&mut self.child, run::patience()) else { self.fail("did not end") };
        self.said.extend(self.errors.iter());
        let _ = fs::remove_file(&self.output);
        (status.code(), self.said.join("\n"))
    }

    /// Sends a signal to leakprobe.
    ///
    /// # Panics
    ///
    /// When it has ended and was waited for.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("a process number");
        // SAFETY: kill takes two integers; the child was not waited for yet, so the number is still its own.
        let result = unsafe { libc::kill(pid, signal) };
        assert_eq!(result, 0, "failed to send signal {signal} to leakprobe");
    }

    fn fail(&mut self, what: &str) -> ! {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.said.extend(self.errors.iter());
        panic!("leakprobe on {:?} {what}; it said:\n{}", self.pids, self.said.join("\n"));
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether a process is there and not a zombie.
fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .is_some_and(|state| state != "Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_a_test_stand_in_for_the_defaults() {
        let given = arguments(Path::new("/x"), &["--interval", "100ms", "--mmap"]);
        let wanted = "--format json --output /x --older 0s --top 1000 --interval 100ms --mmap";
        assert_eq!(given.join(" "), wanted);
    }

    #[test]
    fn processes_run_until_they_are_zombies() {
        assert!(is_running(std::process::id()));
        assert!(!is_running(0));
    }
}

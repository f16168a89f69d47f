//! leakprobe as a command that runs to its end.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use crate::{compile, pace};

/// How long leakprobe may take to end before the test gives up.
pub fn patience() -> Duration {
    pace::patience(Duration::from_secs(60))
}

/// What a run left.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Live tests attach to other processes: that needs root.
///
/// # Panics
///
/// When this isn't root. It isn't a reason to skip: a live test that does nothing must not pass.
pub fn require_root() {
    let owner = fs::metadata("/proc/self").expect("failed to look at /proc/self").uid();
    assert_eq!(
        owner, 0,
        "live tests attach probes to other processes: run them as root (sudo cargo xtask test)"
    );
}

/// The program under test: `LEAKPROBE_BIN`, or the workspace's release build.
///
/// # Panics
///
/// When this isn't root, or it isn't there.
pub fn leakprobe() -> PathBuf {
    require_root();
    let path = match env::var_os("LEAKPROBE_BIN") {
        Some(path) => PathBuf::from(path),
        None => compile::target().join("release/leakprobe"),
    };
    path.canonicalize().unwrap_or_else(|e| {
        panic!("failed to find leakprobe at {}: {e}; run `cargo build --release` first", path.display())
    })
}

/// leakprobe with these arguments; nothing is started yet.
///
/// # Panics
///
/// As [`leakprobe`].
pub fn command<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(leakprobe());
    command.args(arguments);
    command
}

/// Runs a command to its end, with empty input.
///
/// # Panics
///
/// When it can't be started, or does not end within [`patience`]; it is killed then.
pub fn to_end(command: &mut Command) -> Ended {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("failed to start {command:?}: {e}"));
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let patience = patience();
    let Some(status) = wait(&mut child, patience) else {
        let _ = child.kill();
        let _ = child.wait();
        let said = stderr.join().unwrap_or_default();
        panic!("{command:?} did not end within {patience:?}; it said: {said}");
    };
    let text = |thread: thread::JoinHandle<String>| thread.join().expect("a reader that does not panic");
    Ended { status, stdout: text(stdout), stderr: text(stderr) }
}

/// Waits for a child; `None` when it still runs after `patience`.
pub fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Reads a pipe to its end beside the test, so that nobody waits for room in it.
fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Ended {
    /// An error as a user must see it: this exit status, one line, which names each of `names` (in either case).
    ///
    /// # Panics
    ///
    /// When it is anything else.
    pub fn check_error(&self, status: i32, names: &[&str]) {
        assert_eq!(self.status.code(), Some(status), "the exit status: {self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "one line of explanation: {self:?}");
        let said = self.stderr.to_lowercase();
        for name in names {
            assert!(said.contains(&name.to_lowercase()), "the error names {name}: {self:?}");
        }
        assert_eq!(self.stdout, "", "nothing on the standard output");
    }
}

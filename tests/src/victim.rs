//! A running victim: a child that tells its truth after every phase.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use crate::container::{self, Container};
use crate::truth::Truth;
use crate::{compile, pace, run};

/// How long a victim may take for a phase before the test gives up.
fn patience() -> Duration {
    pace::patience(Duration::from_secs(120))
}

/// A victim; killed when it goes out of scope.
#[derive(Debug)]
pub struct Victim {
    child: Child,
    /// As the host sees it.
    pid: u32,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    name: String,
}

impl Victim {
    /// Builds a C or C++ victim, starts it, and waits until it is ready.
    ///
    /// # Panics
    ///
    /// When the victim can't be built or started.
    pub fn start(name: &str, arguments: &[&str]) -> Victim {
        Self::start_at(&compile::victim(name), arguments)
    }

    /// Starts a program that speaks the victims' protocol, and waits until it is ready.
    ///
    /// # Panics
    ///
    /// When the program can't be started.
    pub fn start_at(program: &Path, arguments: &[&str]) -> Victim {
        Self::spawn(program, |command| command.args(arguments))
    }

    /// As [`Victim::start`], with a library that is loaded before all others.
    ///
    /// # Panics
    ///
    /// As there.
    pub fn start_preloaded(name: &str, arguments: &[&str], library: &Path) -> Victim {
        Self::spawn(&compile::victim(name), |command| command.args(arguments).env("LD_PRELOAD", library))
    }

    /// As [`Victim::start_at`], as another user, who must be allowed to run the program.
    ///
    /// # Panics
    ///
    /// As there, and when this isn't root.
    pub fn start_as(user: u32, program: &Path) -> Victim {
        Self::spawn(program, |command| command.uid(user).gid(user))
    }

    /// Starts a program in a root, mount namespace, PID namespace and user namespace of its own, where it is process 1, and
    /// waits until it is ready.
    ///
    /// # Errors
    ///
    /// What the kernel said, where it makes no such namespaces.
    ///
    /// # Panics
    ///
    /// When the program does not speak the victims' protocol.
    pub fn start_contained(container: &Container, program: &Path) -> io::Result<Victim> {
        let mut command = Command::new(program);
        container.enter(&mut command);
        let mut victim = Self::spawn_as(&mut command, program)?;
        let line = victim.line();
        assert_eq!(line, "ready 1", "the first line of {}", victim.name);
        victim.pid = container::child_of(victim.child.id());
        Ok(victim)
    }

    fn spawn(program: &Path, adjust: impl FnOnce(&mut Command) -> &mut Command) -> Victim {
        let mut command = Command::new(program);
        let started = Self::spawn_as(adjust(&mut command), program);
        let mut victim =
            started.unwrap_or_else(|e| panic!("failed to start victim {}: {e}", program.display()));
        victim.wait_ready();
        victim
    }

    fn spawn_as(command: &mut Command, program: &Path) -> io::Result<Victim> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().expect("a piped output"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let (input, pid) = (child.stdin.take(), child.id());
        Ok(Victim { child, pid, input, lines, name: program.display().to_string() })
    }

    /// Waits for the line that says that the victim is ready; a victim that execs itself says it again.
    ///
    /// # Panics
    ///
    /// When it doesn't come, or names another process.
    pub fn wait_ready(&mut self) {
        let line = self.line();
        assert_eq!(line, format!("ready {}", self.pid()), "the first line of {}", self.name);
    }

    /// The victim's process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets the victim go through a phase, and returns what it says about it.
    ///
    /// # Panics
    ///
    /// When the victim fails, or takes too long.
    pub fn run(&mut self, phase: &str) -> Truth {
        self.send(phase);
        self.wait_done()
    }

    /// Waits for the end of a phase that was sent, and returns what the victim says about it.
    ///
    /// # Panics
    ///
    /// As [`Victim::run`].
    pub fn wait_done(&mut self) -> Truth {
        let mut truth = Truth::default();
        loop {
            let line = self.line();
            if line == "done" {
                return truth;
            }
            truth.read(&line).unwrap_or_else(|e| panic!("victim {}: {e}", self.name));
        }
    }

    /// Sends a phase and doesn't wait for its end.
    ///
    /// # Panics
    ///
    /// When the victim has gone.
    pub fn send(&mut self, phase: &str) {
        let input = self.input.as_mut().expect("a victim that was not told to quit");
        writeln!(input, "{phase}")
            .unwrap_or_else(|e| panic!("failed to send {phase:?} to victim {}: {e}", self.name));
    }

    /// Waits for the victim to end by itself.
    ///
    /// # Panics
    ///
    /// When it doesn't.
    pub fn wait(&mut self) -> ExitStatus {
        self.input = None;
        run::wait(&mut self.child, patience()).unwrap_or_else(|| panic!("victim {} did not end", self.name))
    }

    /// Tells the victim to quit, and checks that it was well to the end.
    ///
    /// # Panics
    ///
    /// When it ends in any other way than with status 0.
    pub fn quit(mut self) {
        self.send("quit");
        let status = self.wait();
        assert!(status.success(), "victim {} ended with {status}", self.name);
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn line(&self) -> String {
        self.lines
            .recv_timeout(patience())
            .unwrap_or_else(|e| panic!("no word from victim {}: {e}", self.name))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.kill();
    }
}

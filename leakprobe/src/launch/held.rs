//! A program that stands between `execve` and its entry point.

use anyhow::Context as _;
use libc::{c_int, pid_t, ptrace_syscall_info};
use nix::{errno::Errno, sys::ptrace, unistd::Pid};

use super::{
    breakpoint::{Breakpoint, entry_point},
    started::Started,
    stop::Stop,
    tracee::Tracee,
};

/// A child that has been loaded and has not run an instruction. Dropping it kills it.
#[derive(Debug)]
pub struct Held {
    tracee: Tracee,
    breakpoint: Option<Breakpoint>,
    /// The system call at whose entry the child stood last will map code.
    maps_code: bool,
}

/// How the child goes on from a stop.
enum Next {
    /// To its next system call, with this signal (0: none).
    Run(c_int),
    /// It stays in its job-control stop.
    Listen,
    /// It is at the entry point.
    Arrived,
}

/// Why a stop could not be dealt with.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The caller's own failure: passed on as it is.
    #[error(transparent)]
    Caller(anyhow::Error),
    /// A request to the child failed.
    #[error("failed to hold process {pid} before its entry point: failed to {action}: {} ({cause:?})", cause.desc())]
    Ptrace { pid: pid_t, action: &'static str, cause: Errno },
    /// The kernel does not say where the program begins.
    #[error("failed to find the entry point of process {pid}")]
    EntryPoint { pid: pid_t, source: std::io::Error },
}

impl Held {
    pub(super) fn new(tracee: Tracee) -> Self {
        Self { tracee, breakpoint: None, maps_code: false }
    }

    /// The process. Its mappings, so far, are those of the executable and of the dynamic loader.
    pub fn pid(&self) -> u32 {
        self.tracee.pid().cast_unsigned()
    }

    /// Lets the child run to its entry point and on from there, untraced.
    ///
    /// `on_mapped` is called while the child stands still: once before its first instruction, then each time
    /// that it has mapped code from a file, before that code can run. Returns as soon as the child runs
    /// on its own, or has ended: the end is then in [`Started`]. Blocks; see the module's head.
    ///
    /// # Errors
    /// `on_mapped` failed (its error is passed on), or ptrace did. The child has then been killed.
    pub fn run_to_entry(
        mut self,
        mut on_mapped: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Started> {
        let pid = self.tracee.pid();
        let mut stop = Stop::Exec;
        loop {
            if let Stop::Ended(status) = stop {
                return Ok(Started::new(pid, Some(status)));
            }
            let gone_on = self.react(stop, &mut on_mapped).and_then(|next| self.go_on(next));
            match gone_on {
                Ok(true) => return Ok(Started::new(pid, None)),
                Ok(false) => {}
                // Killed while it stood still: the next wait reports it.
                Err(Failure::Ptrace { cause: Errno::ESRCH, .. }) => {}
                // What the caller could not do to a process that was killed under its hands is no failure.
                Err(failure) => match self.tracee.ended() {
                    Some(status) => return Ok(Started::new(pid, Some(status))),
                    None => return Err(failure.into_error()),
                },
            }
            stop = self.tracee.wait().with_context(|| format!("failed to wait for process {pid}"))?;
        }
    }

    /// Does what a stop asks for.
    fn react(
        &mut self,
        stop: Stop,
        on_mapped: &mut impl FnMut() -> anyhow::Result<()>,
    ) -> Result<Next, Failure> {
        match stop {
            Stop::Exec => {
                (self.breakpoint, self.maps_code) = (None, false);
                on_mapped().map_err(Failure::Caller)?;
                self.aim()
            }
            Stop::SystemCall => {
                if self.has_mapped_code()? {
                    on_mapped().map_err(Failure::Caller)?;
                }
                Ok(Next::Run(0))
            }
            Stop::Fork => {
                // The new process has a copy of the breakpoint, and it may return from the constructor.
                let breakpoint = self.breakpoint;
                self.tracee
                    .release_fork(|pid| breakpoint.map_or(Ok(()), |breakpoint| breakpoint.remove(pid)))
                    .map_err(self.failed_to("let a forked process go"))?;
                Ok(Next::Run(0))
            }
            Stop::Signal(signal) if self.is_at_entry(signal)? => Ok(Next::Arrived),
            Stop::Signal(signal) => Ok(Next::Run(signal)),
            Stop::Group => Ok(Next::Listen),
            Stop::Notice | Stop::Ended(_) => Ok(Next::Run(0)),
        }
    }

    /// Lets the child go on; true when it has been let go.
    fn go_on(&mut self, next: Next) -> Result<bool, Failure> {
        match next {
            Next::Run(signal) => self.tracee.run_to_system_call(signal),
            Next::Listen => self.tracee.listen(),
            Next::Arrived => self.tracee.detach(),
        }
        .map_err(self.failed_to("let it go on"))?;
        Ok(matches!(next, Next::Arrived))
    }

    /// At the first instruction of an image: already the entry point (a static program), or on the way there.
    fn aim(&mut self) -> Result<Next, Failure> {
        let pid = self.tracee.pid();
        let entry = entry_point(pid).map_err(|source| Failure::EntryPoint { pid, source })?;
        if self.info()?.instruction_pointer == entry {
            return Ok(Next::Arrived);
        }
        let breakpoint = Breakpoint::plant(pid, entry).map_err(self.failed_to(
            "set a breakpoint at its entry point (EBUSY: another tool has a probe there; remove it)",
        ))?;
        self.breakpoint = Some(breakpoint);
        Ok(Next::Run(0))
    }

    /// Whether the child has run into the breakpoint; if so it has been removed.
    fn is_at_entry(&self, signal: c_int) -> Result<bool, Failure> {
        let (Some(breakpoint), pid) = (self.breakpoint, self.tracee.pid()) else { return Ok(false) };
        if !breakpoint.is_hit(pid, signal).map_err(self.failed_to("read its registers"))? {
            return Ok(false);
        }
        breakpoint
            .remove(pid)
            .and_then(|()| breakpoint.rewind(pid))
            .map_err(self.failed_to("remove the breakpoint at its entry point"))?;
        Ok(true)
    }

    /// At a system call's entry: remembers whether it will map code. At its exit: whether it has.
    fn has_mapped_code(&mut self) -> Result<bool, Failure> {
        let info = self.info()?;
        match info.op {
            libc::PTRACE_SYSCALL_INFO_ENTRY => {
                // SAFETY: the kernel has filled the variant that `op` names.
                let entry = unsafe { info.u.entry };
                self.maps_code = maps_code(entry.nr, &entry.args);
                Ok(false)
            }
            libc::PTRACE_SYSCALL_INFO_EXIT => {
                // SAFETY: as above.
                let succeeded = unsafe { info.u.exit }.is_error == 0;
                Ok(std::mem::take(&mut self.maps_code) && succeeded)
            }
            _ => Ok(false),
        }
    }

    fn info(&self) -> Result<ptrace_syscall_info, Failure> {
        ptrace::syscall_info(Pid::from_raw(self.tracee.pid())).map_err(self.failed_to("read its system call"))
    }

    fn failed_to(&self, action: &'static str) -> impl FnOnce(Errno) -> Failure + use<> {
        let pid = self.tracee.pid();
        move |cause| Failure::Ptrace { pid, action, cause }
    }
}

impl Failure {
    fn into_error(self) -> anyhow::Error {
        match self {
            Self::Caller(error) => error,
            other => other.into(),
        }
    }
}

/// Whether a system call, if it succeeds, maps code of a file, or makes what is mapped executable (loaders
/// do that after relocating code in place).
fn maps_code(number: u64, arguments: &[u64; 6]) -> bool {
    let [_, _, protection, flags, fd, _] = *arguments;
    let executable = protection & libc::PROT_EXEC as u64 != 0;
    let anonymous = flags & libc::MAP_ANONYMOUS as u64 != 0 || (fd as i32) < 0;
    match i64::try_from(number) {
        Ok(libc::SYS_mmap) => executable && !anonymous,
        Ok(libc::SYS_mprotect | libc::SYS_pkey_mprotect) => executable,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_counts_as_mapped() {
        const RX: u64 = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        const PRIVATE: u64 = libc::MAP_PRIVATE as u64;
        let mmap = libc::SYS_mmap as u64;
        assert!(maps_code(mmap, &[0, 4096, RX, PRIVATE, 3, 0]));
        assert!(!maps_code(mmap, &[0, 4096, libc::PROT_READ as u64, PRIVATE, 3, 0]));
        assert!(!maps_code(mmap, &[0, 4096, RX, PRIVATE | libc::MAP_ANONYMOUS as u64, 3, 0]));
        assert!(!maps_code(mmap, &[0, 4096, RX, PRIVATE, u64::from(u32::MAX), 0]), "fd is -1, as an int");
        assert!(maps_code(libc::SYS_mprotect as u64, &[0, 4096, RX, 0, 0, 0]));
        assert!(!maps_code(libc::SYS_mprotect as u64, &[0, 4096, libc::PROT_READ as u64, 0, 0, 0]));
        assert!(!maps_code(libc::SYS_read as u64, &[0, 4096, RX, PRIVATE, 3, 0]));
        assert!(!maps_code(u64::MAX, &[0, 4096, RX, PRIVATE, 3, 0]));
    }
}

//! A child process that this thread traces.

use std::{io, marker::PhantomData, process::ExitStatus, ptr};

use libc::{c_int, pid_t};
use nix::{
    errno::Errno,
    sys::ptrace::{self, Options},
    unistd::Pid,
};

use super::stop::Stop;

/// A child process that this thread traces; killed and reaped when dropped, unless it was let go.
#[derive(Debug)]
pub(super) struct Tracee {
    pid: pid_t,
    /// Whether the child is no longer ours to kill: it has been reaped, or let go.
    released: bool,
    /// The kernel accepts ptrace requests from the attaching thread only: neither `Send` nor `Sync`.
    _thread: PhantomData<*const ()>,
}

impl Tracee {
    /// Takes charge of a child that has been forked and not been waited for.
    pub(super) fn new(pid: pid_t) -> Self {
        Self { pid, released: false, _thread: PhantomData }
    }

    pub(super) fn pid(&self) -> pid_t {
        self.pid
    }

    /// Attaches, in one step with the options, so that there is no moment at which the child is traced and
    /// would survive this thread.
    pub(super) fn seize(&self) -> nix::Result<()> {
        ptrace::seize(
            Pid::from_raw(self.pid),
            Options::PTRACE_O_EXITKILL
                | Options::PTRACE_O_TRACESYSGOOD
                | Options::PTRACE_O_TRACEEXEC
                | Options::PTRACE_O_TRACEFORK,
        )
    }

    /// Waits for the next stop.
    pub(super) fn wait(&mut self) -> io::Result<Stop> {
        let status = wait_status(self.pid, libc::__WALL)?;
        let stop = Stop::decode(status.ok_or_else(|| io::Error::other("waitpid reported nothing"))?);
        self.released |= matches!(stop, Stop::Ended(_));
        Ok(stop)
    }

    /// The child's end, if it has ended. Only while it is stopped: takes no other report away.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        let status = wait_status(self.pid, libc::__WALL | libc::WNOHANG).ok().flatten()?;
        let Stop::Ended(status) = Stop::decode(status) else { return None };
        self.released = true;
        Some(status)
    }

    /// Lets the child run to its next system call, with this signal delivered (0: none).
    pub(super) fn run_to_system_call(&self, signal: c_int) -> nix::Result<()> {
        resume(libc::PTRACE_SYSCALL, self.pid, signal)
    }

    /// Lets the child run to its next event or signal, with this signal delivered (0: none).
    pub(super) fn run_to_event(&self, signal: c_int) -> nix::Result<()> {
        resume(libc::PTRACE_CONT, self.pid, signal)
    }

    /// Leaves the child in its job-control stop, and lets `SIGCONT` end it.
    pub(super) fn listen(&self) -> nix::Result<()> {
        resume(libc::PTRACE_LISTEN, self.pid, 0)
    }

    /// Stops tracing; the child goes on.
    pub(super) fn detach(&mut self) -> nix::Result<()> {
        resume(libc::PTRACE_DETACH, self.pid, 0)?;
        self.released = true;
        Ok(())
    }

    /// At a fork: waits until the new process stands still, lets the caller look at it, and stops tracing it.
    pub(super) fn release_fork(&self, prepare: impl FnOnce(pid_t) -> nix::Result<()>) -> nix::Result<()> {
        let pid = pid_t::try_from(ptrace::getevent(Pid::from_raw(self.pid))?).map_err(|_| Errno::EINVAL)?;
        let released = match wait_status(pid, libc::__WALL) {
            Ok(Some(status)) if libc::WIFSTOPPED(status) => {
                prepare(pid).and_then(|()| resume(libc::PTRACE_DETACH, pid, 0))
            }
            _ => Ok(()),
        };
        // Killed meanwhile: its parent's affair, not ours.
        if released == Err(Errno::ESRCH) { Ok(()) } else { released }
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        // SAFETY: kill has no memory arguments. The child has not been reaped, so the pid is still its own.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        while let Ok(Some(status)) = wait_status(self.pid, libc::__WALL) {
            if !libc::WIFSTOPPED(status) {
                break;
            }
        }
    }
}

/// `waitpid`, again when a signal interrupts it; `None` when `WNOHANG` finds nothing to report.
pub(super) fn wait_status(pid: pid_t, flags: c_int) -> io::Result<Option<c_int>> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is valid for writing one int.
        match unsafe { libc::waitpid(pid, &mut status, flags) } {
            0 => return Ok(None),
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            _ => return Ok(Some(status)),
        }
    }
}

/// A request that lets the child go on. nix's own take a `Signal`, which has no real-time signals.
fn resume(request: libc::c_uint, pid: pid_t, signal: c_int) -> nix::Result<()> {
    // SAFETY: these requests read and write no memory of ours; the fourth argument is a number.
    let result =
        unsafe { libc::ptrace(request, pid, ptr::null_mut::<libc::c_void>(), signal as libc::c_long) };
    Errno::result(result).map(drop)
}

//! A program that runs on its own.

use std::{io, os::unix::process::ExitStatusExt, process::ExitStatus};

use libc::pid_t;

use super::tracee::wait_status;

/// A child that has reached its entry point (or has ended before). Dropping it leaves the program running.
#[derive(Debug)]
pub struct Started {
    pid: pid_t,
    status: Option<ExitStatus>,
}

impl Started {
    pub(super) fn new(pid: pid_t, status: Option<ExitStatus>) -> Self {
        Self { pid, status }
    }

    /// The process. Valid until [`Started::wait`] or [`Started::try_wait`] has returned its end.
    pub fn pid(&self) -> u32 {
        self.pid.cast_unsigned()
    }

    /// Waits for the end of the program and reaps it; afterwards returns the same again.
    ///
    /// # Errors
    /// Somebody else has reaped it (`ECHILD`).
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        match self.collect(0)? {
            Some(status) => Ok(status),
            None => Err(io::Error::other("waitpid reported nothing")),
        }
    }

    /// The end of the program, if it has ended; reaps it. For use when a pidfd has become readable.
    ///
    /// # Errors
    /// As for [`Started::wait`].
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.collect(libc::WNOHANG)
    }

    fn collect(&mut self, flags: libc::c_int) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = wait_status(self.pid, flags)?.map(ExitStatus::from_raw);
        }
        Ok(self.status)
    }
}

/// The exit code that passes this end on as a shell does: the program's own, or 128 + the signal's number.
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

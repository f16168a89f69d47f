//! What `waitpid` says of a traced child.
//!
//! nix's decoder knows no real-time signals and fails on them, after the kernel has already handed the
//! status out; glibc sends those itself (`setuid` in a program with threads), so the raw word is decoded here.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

use libc::c_int;

/// Why the child stands still, or that it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The child is gone and has been reaped.
    Ended(ExitStatus),
    /// At the entry to a system call, or at its exit.
    SystemCall,
    /// `execve` has succeeded; no instruction of the new program has run.
    Exec,
    /// `fork` has made a process that is traced as well.
    Fork,
    /// Stopped by job control, like any process that got this signal; only `SIGCONT` may end it.
    Group,
    /// A notification of ptrace's own, of no interest.
    Notice,
    /// About to receive this signal; it is lost unless handed back.
    Signal(c_int),
}

impl Stop {
    /// Decodes a status word of `waitpid` for a child attached with `PTRACE_SEIZE` and `PTRACE_O_TRACESYSGOOD`.
    pub(super) fn decode(status: c_int) -> Self {
        if !libc::WIFSTOPPED(status) {
            return Self::Ended(ExitStatus::from_raw(status));
        }
        let signal = libc::WSTOPSIG(status);
        match status >> 16 {
            0 if signal == libc::SIGTRAP | 0x80 => Self::SystemCall,
            0 => Self::Signal(signal),
            libc::PTRACE_EVENT_EXEC => Self::Exec,
            libc::PTRACE_EVENT_FORK => Self::Fork,
            libc::PTRACE_EVENT_STOP if signal != libc::SIGTRAP => Self::Group,
            _ => Self::Notice,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(signal: c_int, event: c_int) -> c_int {
        event << 16 | signal << 8 | 0x7f
    }

    #[test]
    fn every_kind_of_stop_is_told_apart() {
        assert_eq!(Stop::decode(stopped(libc::SIGTRAP | 0x80, 0)), Stop::SystemCall);
        assert_eq!(Stop::decode(stopped(libc::SIGTRAP, 0)), Stop::Signal(libc::SIGTRAP));
        assert_eq!(Stop::decode(stopped(libc::SIGSTOP, 0)), Stop::Signal(libc::SIGSTOP));
        assert_eq!(Stop::decode(stopped(33, 0)), Stop::Signal(33), "real-time signals pass");
        assert_eq!(Stop::decode(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_EXEC)), Stop::Exec);
        assert_eq!(Stop::decode(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_FORK)), Stop::Fork);
        assert_eq!(Stop::decode(stopped(libc::SIGTSTP, libc::PTRACE_EVENT_STOP)), Stop::Group);
        assert_eq!(Stop::decode(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_STOP)), Stop::Notice);
    }

    #[test]
    fn an_end_keeps_its_cause() {
        let Stop::Ended(exited) = Stop::decode(3 << 8) else { panic!("not an end") };
        assert_eq!((exited.code(), exited.signal()), (Some(3), None));
        let Stop::Ended(killed) = Stop::decode(libc::SIGKILL) else { panic!("not an end") };
        assert_eq!((killed.code(), killed.signal()), (None, Some(libc::SIGKILL)));
    }
}

//! Why a program could not be started.

use std::path::PathBuf;

use nix::errno::Errno;

/// Why a program could not be started. Nothing of it has run, and nothing is left of the child.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No command was given.
    #[error("failed to start a program: no command was given; write it behind `--`")]
    NoCommand,
    /// A word of the command holds a NUL byte, which no program can be given.
    #[error("failed to start `{command}`: the command holds a NUL byte")]
    Nul {
        /// The command as typed.
        command: String,
    },
    /// No directory of `PATH` has it.
    #[error(
        "failed to start `{command}`: no such file or directory (searched PATH); sudo may have \
         replaced PATH, so give the program's full path"
    )]
    NotInPath {
        /// The command as typed.
        command: String,
    },
    /// The path leads nowhere.
    #[error("failed to start `{command}`: no such file or directory")]
    NoSuchFile {
        /// The command as typed.
        command: String,
    },
    /// The file is there; what must run it is not.
    #[error(
        "failed to start `{command}`: the interpreter or dynamic loader that {} asks for does not exist; \
         install it, or correct the file's #! line",
        path.display()
    )]
    NoInterpreter {
        /// The command as typed.
        command: String,
        /// The file found for it.
        path: PathBuf,
    },
    /// The file is there and the kernel refuses to run it.
    #[error("failed to start `{command}`: {} ({cause:?}); is it an executable file?", cause.desc())]
    NotExecutable {
        /// The command as typed.
        command: String,
        /// `execve`'s error.
        cause: Errno,
    },
    /// A signal ended the child before it became the program.
    #[error("failed to start `{command}`: the child was killed by signal {signal} before it began")]
    Killed {
        /// The command as typed.
        command: String,
        /// Number of the signal.
        signal: i32,
    },
    /// The child could not be made, or not be held.
    #[error(
        "failed to {action} for `{command}`: {} ({cause:?}); a tracer above leakprobe (strace, a debugger) \
         or a container's seccomp filter on ptrace prevents it: start the program alone and use --pid",
        cause.desc()
    )]
    Hold {
        /// The command as typed.
        command: String,
        /// What was attempted.
        action: &'static str,
        /// The system call's error.
        cause: Errno,
    },
}

impl LaunchError {
    /// The exit code with which a shell, `env` or `nice` would report this: 127 when the program was not
    /// found, 126 when it cannot be run, 128 + signal when one ended it, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotInPath { .. } | Self::NoSuchFile { .. } | Self::NoInterpreter { .. } => 127,
            Self::NotExecutable { .. } => 126,
            Self::Killed { signal, .. } => u8::try_from(128 + signal).unwrap_or(u8::MAX),
            Self::NoCommand | Self::Nul { .. } | Self::Hold { .. } => 1,
        }
    }
}

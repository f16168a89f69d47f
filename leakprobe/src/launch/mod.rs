//! Starting a program and holding it until the probes are in: `leakprobe -- COMMAND ARGS`.
//!
//! A program's first allocations happen before its entry point: the constructors of shared libraries
//! (C++ streams, locale tables, interposed allocators) run while the dynamic loader is still in charge.
//! So the child is held from its `execve` on, by ptrace, and stepped from system call to system call while
//! the loader maps libraries; each time that code was mapped the caller looks at the mappings again and
//! attaches, before the child runs another instruction. At the entry point the tracer detaches, and the
//! program runs as it would alone.
//!
//! Contract:
//! * The child is what a shell would have started: `execvp`'s search of `PATH`, the same environment, standard
//!   streams, signal mask and ignored signals (`SIGPIPE` at its default, which Rust's runtime had changed).
//! * Signals, job-control stops, `fork` and `execve` before the entry point work as without a tracer.
//! * The child does not outlive a tracer that dies while holding it (`PTRACE_O_EXITKILL`): a plain detach
//!   would leave the breakpoint at the entry point in its memory, and it would die there by `SIGTRAP`, half
//!   started. After the entry point the child depends on nobody.
//!
//! ptrace requests are bound to the thread that attached, so [`Held`] cannot be sent to another thread,
//! and its calls block: for some milliseconds plus the caller's own attaching, unless a constructor itself
//! waits for something. A caller that must be able to give up kills [`Held::pid`] from another thread;
//! [`Held::run_to_entry`] then returns with that death as the child's end.
//!
//! What maps its code elsewhere than in the main thread before the entry point (a thread that a constructor
//! starts, a loader that is itself the command: `ld.so ./program`) is not held for; the next look
//! at the mappings finds it.

mod breakpoint;
mod error;
mod held;
mod spawn;
mod started;
mod stop;
mod tracee;

#[cfg(test)]
mod tests;

pub use error::LaunchError;
pub use held::Held;
pub use spawn::start;
pub use started::{Started, exit_code};

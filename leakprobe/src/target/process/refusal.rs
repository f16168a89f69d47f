//! Why a process cannot be profiled, in words for the person who asked.

use std::{fs, io};

use procfs::process::Stat;

use super::{KERNEL_THREAD, vitals::Status};
use crate::target::{elf::machine_name, text::printable};

/// Why a process cannot be profiled. Each text is one line that names the process and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Nothing has that number.
    #[error("no process {pid}: it has ended or never existed; `ps -e` lists those that run")]
    NoSuchProcess {
        /// The number asked for.
        pid: u32,
    },
    /// The number is a thread's.
    #[error("no process {tid}: that is a thread of process {pid} ({}); use --pid {pid}", show(.name))]
    Thread {
        /// The number asked for.
        tid: u32,
        /// The process it belongs to.
        pid: u32,
        /// The thread's name, untrusted.
        name: String,
    },
    /// It has no user space.
    #[error("process {pid} ({}) is a kernel thread and has no heap; name a process that runs a program", show(.name))]
    KernelThread {
        /// The number asked for.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// It has ended.
    #[error(
        "process {pid} ({}) has ended and has no memory left (a zombie); it stays until its parent, process {parent} ({}), \
         collects it",
        show(.name), show(.parent_name)
    )]
    Zombie {
        /// The number asked for.
        pid: u32,
        /// Its name, untrusted.
        name: String,
        /// Its parent.
        parent: i32,
        /// Its parent's name, untrusted.
        parent_name: String,
    },
    /// The main thread has ended, and with it `/proc/PID/maps`; other threads run on.
    #[error(
        "the main thread of process {pid} ({}) has ended, and the kernel no longer shows the memory map of its \
         other threads; such a process cannot be profiled",
        show(.name)
    )]
    MainThreadEnded {
        /// The number asked for.
        pid: u32,
        /// Its name, untrusted.
        name: String,
    },
    /// A 32-bit program.
    #[error("process {pid} ({}) is a 32-bit program; leakprobe profiles 64-bit ones: run its 64-bit build", show(.name))]
    ThirtyTwoBit {
        /// The number asked for.
        pid: u32,
        /// Its name, untrusted.
        name: String,
    },
    /// A program of another architecture (run by an emulator).
    #[error(
        "process {pid} ({}) is a program for {}; leakprobe profiles programs for this machine's own {}",
        show(.name), machine_name(*.machine), std::env::consts::ARCH
    )]
    OtherMachine {
        /// The number asked for.
        pid: u32,
        /// Its name, untrusted.
        name: String,
        /// `e_machine` of its program.
        machine: u16,
    },
    /// Probing leakprobe's allocator from leakprobe would never end.
    #[error("process {pid} is this leakprobe itself, which it cannot profile; name another process")]
    Myself {
        /// Our own number.
        pid: u32,
    },
    /// The kernel refuses.
    #[error("failed to {action} process {pid}: {cause}; {}", advice())]
    Permission {
        /// The number asked for.
        pid: u32,
        /// What was attempted.
        action: &'static str,
        /// The kernel's answer. In the text, and so not a source of its own.
        cause: io::Error,
    },
    /// Something else went wrong.
    #[error("failed to {action} process {pid}: {cause}")]
    Io {
        /// The number asked for.
        pid: u32,
        /// What was attempted.
        action: &'static str,
        /// As above.
        cause: io::Error,
    },
}

/// What to do where the kernel refuses.
fn advice() -> &'static str {
    if nix::unistd::geteuid().is_root() {
        "leakprobe runs as root, but something forbids this (a container's limits, a security module such as SELinux or \
         AppArmor, or the process lives in another user namespace): run leakprobe on the host itself"
    } else {
        "run leakprobe as root, or with the capabilities CAP_SYS_PTRACE and CAP_SYS_ADMIN"
    }
}

fn show(name: &str) -> String {
    printable(name.as_bytes(), 64)
}

impl TargetError {
    /// What an I/O error means for the process that it came from.
    pub(super) fn from_io(pid: u32, action: &'static str, cause: io::Error) -> Self {
        match (cause.kind(), cause.raw_os_error()) {
            (io::ErrorKind::PermissionDenied, _) => Self::Permission { pid, action, cause },
            (io::ErrorKind::NotFound, _) | (_, Some(libc::ESRCH)) => Self::NoSuchProcess { pid },
            _ => Self::Io { pid, action, cause },
        }
    }
}

/// Refuses what `/proc/PID` shows to be no live process with a heap.
pub(super) fn check_state(pid: u32, stat: &Stat, status: &Status) -> Result<(), TargetError> {
    let name = stat.comm.clone();
    if let Some(owner) = status.thread_group.filter(|&group| group != pid) {
        return Err(TargetError::Thread { tid: pid, pid: owner, name });
    }
    if stat.flags & KERNEL_THREAD != 0 {
        return Err(TargetError::KernelThread { pid, name });
    }
    if matches!(stat.state, 'Z' | 'X' | 'x') {
        if stat.num_threads > 1 {
            return Err(TargetError::MainThreadEnded { pid, name });
        }
        let parent_name = fs::read(format!("/proc/{}/comm", stat.ppid)).unwrap_or_default();
        let parent_name = String::from_utf8_lossy(parent_name.trim_ascii_end()).into_owned();
        return Err(TargetError::Zombie { pid, name, parent: stat.ppid, parent_name });
    }
    Ok(())
}

//! A process that was looked at, found fit to be profiled, and is held: its identity cannot slip.
//!
//! Everything is read through one open handle of `/proc/PID`, which the kernel ties to the process itself
//! and not to its number: once the process is gone, reads fail, even when the number is in use again.

mod container;
mod refusal;
#[cfg(test)]
mod tests;
mod vitals;

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, readlinkat},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::Mode,
};
use procfs::{FromRead, process::Stat};

use super::{
    elf::{ElfKind, FileHead},
    space::FileId,
};
pub use refusal::TargetError;
pub use vitals::Vitals;

/// `PF_KTHREAD` of include/linux/sched.h.
const KERNEL_THREAD: u32 = 0x0020_0000;
/// No file of `/proc/PID` that is read whole is longer, but for `cmdline`, which is cut.
const MAX_TEXT: u64 = 128 * 1024;

/// How often a process is looked at whose main thread has ended: another one may be executing a program, and takes that one's
/// place as soon as it is gone.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(3);

/// A live process of the same architecture as this one.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    /// Clock ticks since boot.
    start_time: u64,
    /// Process number of its parent when it was opened.
    parent: u32,
    /// `/proc/PID`.
    directory: OwnedFd,
    pidfd: OwnedFd,
}

impl Process {
    /// Takes hold of process `pid` (as this PID namespace numbers it).
    ///
    /// # Errors
    /// When there is no such process, or when it cannot be profiled: [`TargetError`] says why, in one line.
    pub fn open(pid: u32) -> Result<Self, TargetError> {
        let process = Self::hold(pid)?;
        process.check_program()?;
        Ok(process)
    }

    /// The same whatever program it runs: it may execute another one.
    ///
    /// # Errors
    /// As for [`Process::open`].
    pub fn hold(pid: u32) -> Result<Self, TargetError> {
        for _ in 0..LOOKS {
            match Self::hold_now(pid) {
                Err(TargetError::MainThreadEnded { .. }) => thread::sleep(BETWEEN_LOOKS),
                outcome => return outcome,
            }
        }
        Self::hold_now(pid)
    }

    fn hold_now(pid: u32) -> Result<Self, TargetError> {
        let missing = TargetError::NoSuchProcess { pid };
        let Some(raw_pid) = i32::try_from(pid).ok().filter(|&p| p > 0) else { return Err(missing) };
        if pid == std::process::id() {
            return Err(TargetError::Myself { pid });
        }
        let path = PathBuf::from(format!("/proc/{pid}"));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = match nix::fcntl::open(&path, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::ENOENT | Errno::ESRCH) if Path::new("/proc/self/stat").exists() => {
                return Err(missing);
            }
            Err(errno) => return Err(TargetError::from_io(pid, "open /proc of", errno.into())),
        };
        let stat = read_stat(&directory).map_err(|e| TargetError::from_io(pid, "read the state of", e))?;
        let status =
            vitals::read_status(&directory).map_err(|e| TargetError::from_io(pid, "read the state of", e))?;
        refusal::check_state(pid, &stat, &status)?;

        let pidfd = pidfd_open(raw_pid).map_err(|e| TargetError::from_io(pid, "take hold of", e))?;
        let parent = u32::try_from(stat.ppid).unwrap_or_default();
        let process = Self { pid, start_time: stat.starttime, parent, directory, pidfd };
        // The number cannot have changed hands while its first owner still answers.
        process.same_process().map_err(|e| TargetError::from_io(pid, "take hold of", e))?;
        Ok(process)
    }

    /// Process number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started, clock ticks since boot: with the PID, its identity.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Process number of the one that was its parent when it was opened; 0 where that is in another PID namespace.
    pub fn parent(&self) -> u32 {
        self.parent
    }

    /// Becomes readable when the process ends.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether all of its threads have ended (it may still wait to be collected by its parent).
    ///
    /// # Errors
    /// When poll(2) fails.
    pub fn has_ended(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, PollTimeout::ZERO) {
                // It gives way to signals, which are only noted.
                Err(Errno::EINTR) => {}
                outcome => return Ok(outcome? > 0),
            }
        }
    }

    /// Whether it has not ended, and is not about to: it has memory.
    pub fn is_there(&self) -> bool {
        !self.has_ended().unwrap_or(true) && self.vitals().is_ok()
    }

    /// Whether it has ended, and another process has its number.
    pub fn number_is_anothers(&self) -> bool {
        let other = || Self::hold(self.pid).is_ok_and(|other| other.start_time != self.start_time);
        self.has_ended().unwrap_or(false) && other()
    }

    /// A handle of its root directory, for paths as it sees them.
    ///
    /// # Errors
    /// When the process has ended, or may not be looked into.
    pub fn root(&self) -> io::Result<File> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(File::from(self.open_at("root", flags)?))
    }

    /// Where its root directory lies as this process sees it: `/` unless it lives in a chroot.
    ///
    /// # Errors
    /// As for [`Process::root`].
    pub fn root_path(&self) -> io::Result<PathBuf> {
        Ok(readlinkat(&self.directory, "root")?.into())
    }

    /// The file of the program that it runs; `None` when that cannot be found out.
    pub fn program(&self) -> Option<FileId> {
        let file = File::from(self.open_at("exe", OFlag::O_PATH).ok()?);
        let metadata = file.metadata().ok()?;
        Some(FileId { device: metadata.dev(), inode: metadata.ino() })
    }

    /// Opens a file of its `/proc` directory.
    pub(super) fn open_at(&self, name: &str, flags: OFlag) -> io::Result<OwnedFd> {
        Ok(openat(&self.directory, name, flags | OFlag::O_CLOEXEC, Mode::empty())?)
    }

    /// Fails unless the process is still the one that was opened, alive or not yet collected.
    fn same_process(&self) -> io::Result<Stat> {
        let stat = read_stat(&self.directory)?;
        if stat.starttime == self.start_time { Ok(stat) } else { Err(ended(self.pid)) }
    }

    /// Refuses a process whose program is not for this processor and its 64-bit mode.
    ///
    /// # Errors
    /// When it is not, or cannot be read.
    pub fn check_program(&self) -> Result<(), TargetError> {
        let pid = self.pid;
        let stat = self.same_process().map_err(|e| TargetError::from_io(pid, "read the state of", e))?;
        let name = stat.comm;
        let program = self
            .open_at("exe", OFlag::O_RDONLY | OFlag::O_NONBLOCK)
            .map(File::from)
            .map_err(|e| TargetError::from_io(pid, "open the program of", e))?;
        match FileHead::read(&program).map(|head| head.kind()) {
            Ok(ElfKind::Native(_)) => Ok(()),
            Ok(ElfKind::ThirtyTwoBit) => Err(TargetError::ThirtyTwoBit { pid, name }),
            Ok(ElfKind::Foreign(machine)) => Err(TargetError::OtherMachine { pid, name, machine }),
            Err(e) => {
                let cause = io::Error::other(e);
                Err(TargetError::Io { pid, action: "read the program of", cause })
            }
        }
    }
}

/// The error of reads from a process that has ended.
fn ended(pid: u32) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("process {pid} has ended"))
}

fn read_stat(directory: &OwnedFd) -> io::Result<Stat> {
    // The name in it is the process's own choice. The crate looks for the last `)`, and nothing behind the
    // name can hold one.
    Stat::from_read(&read_file(directory, "stat")?[..]).map_err(io::Error::other)
}

/// Reads a file of `/proc/PID`, at most [`MAX_TEXT`] bytes.
fn read_file(directory: &OwnedFd, name: &str) -> io::Result<Vec<u8>> {
    let file = File::from(openat(directory, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?);
    let mut bytes = Vec::new();
    file.take(MAX_TEXT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just handed out this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl AsRawFd for Process {
    /// The pidfd.
    fn as_raw_fd(&self) -> i32 {
        self.pidfd.as_raw_fd()
    }
}

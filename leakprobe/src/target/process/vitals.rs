//! What a report's head says of a process.

use std::{
    fs::File,
    io::{self, BufReader},
    os::fd::OwnedFd,
};

use nix::{
    dir::Dir,
    fcntl::{AtFlags, OFlag},
    sys::stat::{Mode, fstatat},
};

use super::{Process, ended, read_file};
use crate::target::{maps, seccomp::SeccompMode};

/// Arguments and bytes of a command line that are kept.
const MAX_ARGUMENTS: usize = 4096;
/// Threads that are looked at.
const MAX_THREADS: usize = 65_536;

/// How much a process uses, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vitals {
    /// The kernel's short name. Untrusted, not escaped.
    pub name: String,
    /// VmSize: address space, bytes.
    pub vm_size_bytes: u64,
    /// VmRSS: resident memory, bytes.
    pub vm_rss_bytes: u64,
    /// VmData: private writable mappings, bytes.
    pub vm_data_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open file descriptors; `None` when the kernel doesn't let us look.
    pub open_files: Option<u64>,
    /// Its number in its own PID namespace, where that is another one.
    pub namespace_pid: Option<u32>,
    /// Of the main thread; [`Process::seccomp`] asks all of them.
    pub seccomp: SeccompMode,
}

impl Process {
    /// Reads how much the process uses now.
    ///
    /// # Errors
    /// `NotFound` or `ESRCH` when it has ended, also when that happens meanwhile.
    pub fn vitals(&self) -> io::Result<Vitals> {
        let status = read_status(&self.directory)?;
        let name = self.name()?;
        let open_files = match open_files(&self.directory) {
            Ok(count) => Some(count),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => None,
            Err(e) => return Err(e),
        };
        self.same_process()?;
        // A process that has ended and was not yet collected has no memory to tell of.
        let (Some(vm_size_bytes), Some(vm_rss_bytes), Some(vm_data_bytes)) =
            (status.vm_size, status.vm_rss, status.vm_data)
        else {
            return Err(ended(self.pid));
        };
        let threads = status.threads.unwrap_or(0);
        Ok(Vitals {
            name,
            vm_size_bytes,
            vm_rss_bytes,
            vm_data_bytes,
            threads,
            open_files,
            namespace_pid: status.namespace_pid,
            seccomp: status.seccomp,
        })
    }

    /// Its resident memory, bytes: less than reading all of its vitals.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        match resident_pages(&self.directory, "statm")? {
            0 => Err(ended(self.pid)),
            pages => Ok(pages * procfs::page_size()),
        }
    }

    /// Whether other threads of it have memory and its main thread, which has ended, has none: it lives, and nothing that
    /// `/proc/PID` shows of its memory is true.
    pub fn outlives_main_thread(&self) -> bool {
        let has_memory = |task: &str| resident_pages(&self.directory, task).is_ok_and(|pages| pages > 0);
        let threads = || self.threads().unwrap_or_default();
        !has_memory("statm") && threads().iter().any(|tid| has_memory(&format!("task/{tid}/statm")))
    }

    /// Where its heap (`[heap]` in its maps: what the program break has grown to) ends, to the page; `None`
    /// when it has none.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn program_break(&self) -> io::Result<Option<u64>> {
        let maps = File::from(self.open_at("maps", OFlag::O_RDONLY)?);
        maps::end_of(BufReader::new(maps), b"[heap]")
    }

    /// The kernel's short name. Untrusted, not escaped.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn name(&self) -> io::Result<String> {
        let mut name = read_file(&self.directory, "comm")?;
        if name.last() == Some(&b'\n') {
            name.pop();
        }
        Ok(String::from_utf8_lossy(&name).into_owned())
    }

    /// Its arguments, the program's name first; at most 4096 of them and 128 KiB. Untrusted, not escaped.
    /// Empty when the process has erased them.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn command_line(&self) -> io::Result<Vec<String>> {
        let bytes = read_file(&self.directory, "cmdline")?;
        self.same_process()?;
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        let arguments = bytes.split(|&b| b == 0).take(MAX_ARGUMENTS);
        Ok(arguments.map(|a| String::from_utf8_lossy(a).into_owned()).collect())
    }

    /// The strictest seccomp mode of its threads: each has its own, and one thread's death is the process's.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn seccomp(&self) -> io::Result<SeccompMode> {
        let mut strictest = SeccompMode::Off;
        for tid in self.threads()? {
            // A thread that ends meanwhile no longer matters.
            if let Ok(text) = read_file(&self.directory, &format!("task/{tid}/status")) {
                strictest = strictest.max(Status::parse(&text).seccomp);
            }
        }
        self.same_process()?;
        Ok(strictest)
    }

    /// Its threads, by number; not all of very many.
    fn threads(&self) -> io::Result<Vec<String>> {
        let mut tasks =
            Dir::openat(&self.directory, "task", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut threads = Vec::new();
        for entry in tasks.iter().take(MAX_THREADS) {
            let entry = entry?;
            threads.extend(
                entry.file_name().to_str().ok().filter(|tid| !tid.starts_with('.')).map(str::to_owned),
            );
        }
        Ok(threads)
    }
}

/// The lines of `/proc/PID/status` that matter. The crate's parser refuses names that aren't UTF-8, which a
/// process may choose for itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub thread_group: Option<u32>,
    pub threads: Option<u64>,
    /// Bytes.
    pub vm_size: Option<u64>,
    pub vm_rss: Option<u64>,
    pub vm_data: Option<u64>,
    /// In the innermost PID namespace, where there are several.
    pub namespace_pid: Option<u32>,
    pub seccomp: SeccompMode,
}

impl Status {
    /// The kernel escapes newlines in the name here, so that no name can pass for another line.
    pub(super) fn parse(text: &[u8]) -> Self {
        let mut status = Self::default();
        for line in text.split(|&b| b == b'\n') {
            let Some(colon) = line.iter().position(|&b| b == b':') else { continue };
            let number = || -> Option<u64> {
                let value = std::str::from_utf8(&line[colon + 1..]).ok()?;
                value.split_ascii_whitespace().next()?.parse().ok()
            };
            let bytes = || number().and_then(|kib| kib.checked_mul(1024));
            match &line[..colon] {
                b"Tgid" => status.thread_group = number().and_then(|n| n.try_into().ok()),
                b"Threads" => status.threads = number(),
                b"VmSize" => status.vm_size = bytes(),
                b"VmRSS" => status.vm_rss = bytes(),
                b"VmData" => status.vm_data = bytes(),
                b"NSpid" => {
                    let numbers = std::str::from_utf8(&line[colon + 1..]).unwrap_or_default();
                    let numbers = numbers.split_ascii_whitespace().skip(1);
                    status.namespace_pid = numbers.last().and_then(|last| last.parse().ok());
                }
                b"Seccomp" => {
                    let raw = number().and_then(|n| n.try_into().ok());
                    status.seccomp = raw.map(SeccompMode::from_raw).unwrap_or_default();
                }
                _ => {}
            }
        }
        status
    }
}

pub(super) fn read_status(directory: &OwnedFd) -> io::Result<Status> {
    Ok(Status::parse(&read_file(directory, "status")?))
}

/// statm counts pages, the second number those that are resident; all are 0 once the memory is gone.
fn resident_pages(directory: &OwnedFd, name: &str) -> io::Result<u64> {
    let text = read_file(directory, name)?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.split_ascii_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0))
}

fn open_files(directory: &OwnedFd) -> io::Result<u64> {
    // 6.2+: the size of the directory is the number of descriptors. Before, and without any, it is 0.
    let size = fstatat(directory, "fd", AtFlags::empty())?.st_size;
    if size > 0 {
        return Ok(size.unsigned_abs());
    }
    let mut entries = Dir::openat(directory, "fd", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut count = 0;
    for entry in entries.iter() {
        count += u64::from(!entry?.file_name().to_bytes().starts_with(b"."));
    }
    Ok(count)
}

//! The address space of a process at one moment: what is mapped where.

use std::{fs::File, path::PathBuf, sync::Arc};

/// Identity of a file: two paths, or two processes, that map the same file share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// `st_dev` of the open file.
    pub device: u64,
    /// `st_ino` of the open file.
    pub inode: u64,
}

/// A file that is mapped as code. It is kept open, so that symbols can be looked up after the target has
/// ended, and so that a path that was replaced meanwhile (a package upgrade) is not confused with it.
#[derive(Debug)]
pub struct Object {
    /// Identity of `file`.
    pub id: FileId,
    /// The path as the process sees it, without ` (deleted)`. Untrusted.
    pub path: PathBuf,
    /// The mapped file itself, opened through `/proc/PID/map_files` or the process's own root; `None` with
    /// the reason when it could not be opened.
    pub file: Result<File, String>,
    /// Whether the path no longer leads to this file.
    pub deleted: bool,
    /// The process's root directory (`/proc/PID/root`, kept open), under which debug files are looked for.
    pub root: Option<Arc<File>>,
}

/// What lies behind a mapping.
#[derive(Clone, Debug)]
pub enum Backing {
    /// A file.
    Object(Arc<Object>),
    /// A name that the kernel gives: `[vdso]`, `[stack]`, `[heap]`, `[uprobes]`, `[anon:...]`.
    Named(String),
    /// Nothing: code made at run time, if executable.
    Anonymous,
}

/// A range of the address space.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Offset in the file of `start`.
    pub file_offset: u64,
    /// Whether code may run there.
    pub executable: bool,
    /// What lies behind it.
    pub backing: Backing,
}

/// All executable mappings of a process (and the kernel's named ones), sorted by address, not overlapping.
#[derive(Clone, Debug, Default)]
pub struct AddressSpace {
    /// The mappings.
    pub mappings: Vec<Mapping>,
}

impl AddressSpace {
    /// The mapping that holds `address`.
    pub fn find(&self, address: u64) -> Option<&Mapping> {
        let after = self.mappings.partition_point(|m| m.start <= address);
        self.mappings[..after].last().filter(|m| address < m.end)
    }
}

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

impl Mapping {
    /// Whether another mapping is of the same, at the same place.
    fn is_same(&self, other: &Self) -> bool {
        let backing = match (&self.backing, &other.backing) {
            (Backing::Object(one), Backing::Object(other)) => one.id == other.id,
            (Backing::Named(one), Backing::Named(other)) => one == other,
            (Backing::Anonymous, Backing::Anonymous) => true,
            _ => false,
        };
        backing && (self.start, self.end, self.file_offset) == (other.start, other.end, other.file_offset)
    }

    /// Whether this is the page that the kernel's return probes come back to.
    pub fn is_trampoline(&self) -> bool {
        matches!(&self.backing, Backing::Named(name) if name == "[uprobes]")
    }
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

    /// What is mapped alike in a later look at the same program.
    pub fn common(&self, later: &Self) -> Self {
        let is_there =
            |mapping: &&Mapping| later.find(mapping.start).is_some_and(|other| mapping.is_same(other));
        Self { mappings: self.mappings.iter().filter(is_there).cloned().collect() }
    }

    /// Takes in a later look at the same program. What is mapped now takes the place of what was; what has
    /// been unmapped since and not replaced is kept, so that old stacks keep their names.
    pub fn merge(&mut self, later: AddressSpace) {
        let old = std::mem::replace(&mut self.mappings, later.mappings);
        let kept: Vec<Mapping> = old
            .into_iter()
            .filter(|old| {
                let after = self.mappings.partition_point(|new| new.end <= old.start);
                self.mappings.get(after).is_none_or(|new| new.start >= old.end)
            })
            .collect();
        self.mappings.extend(kept);
        self.mappings.sort_by_key(|mapping| mapping.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(ranges: &[(u64, u64, &str)]) -> AddressSpace {
        let mapping = |&(start, end, name): &(u64, u64, &str)| Mapping {
            start,
            end,
            file_offset: 0,
            executable: true,
            backing: Backing::Named(name.to_owned()),
        };
        AddressSpace { mappings: ranges.iter().map(mapping).collect() }
    }

    fn name(space: &AddressSpace, address: u64) -> Option<&str> {
        space.find(address).map(|mapping| match &mapping.backing {
            Backing::Named(name) => name.as_str(),
            Backing::Object(_) | Backing::Anonymous => "",
        })
    }

    #[test]
    fn an_address_is_found_in_the_mapping_that_holds_it() {
        let space = space(&[(10, 20, "a"), (20, 30, "b"), (40, 50, "c")]);
        let found = [9, 10, 19, 20, 29, 30, 40, 50].map(|address| name(&space, address));
        assert_eq!(found, [None, Some("a"), Some("a"), Some("b"), Some("b"), None, Some("c"), None]);
    }

    #[test]
    fn what_was_unmapped_keeps_its_name_until_something_else_is_mapped_there() {
        let mut all = space(&[(10, 20, "a"), (20, 30, "b"), (40, 50, "c")]);
        all.merge(space(&[(5, 8, "x"), (25, 35, "y")]));
        let found = [6, 15, 22, 27, 45].map(|address| name(&all, address));
        assert_eq!(found, [Some("x"), Some("a"), None, Some("y"), Some("c")]);
    }

    #[test]
    fn what_two_looks_have_in_common_is_what_stayed() {
        let before = space(&[(10, 20, "a"), (20, 30, "b"), (40, 50, "c")]);
        let after = space(&[(10, 20, "a"), (20, 30, "x"), (40, 55, "c"), (60, 70, "d")]);
        let common = before.common(&after);
        assert_eq!(common.mappings.len(), 1);
        assert_eq!([name(&common, 15), name(&common, 25), name(&common, 45)], [Some("a"), None, None]);
    }
}

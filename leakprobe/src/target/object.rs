//! The mapped files of a process, each opened once and kept open, and the address space that they make up.

mod open;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io::{self, BufReader},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::fcntl::OFlag;

use super::{
    maps::{self, Kind, Line},
    process::Process,
    space::{AddressSpace, Backing, FileId, Mapping, Object},
};

/// Mapped files kept open at once, of all processes together.
pub const MAX_OBJECTS: usize = 10_000;

/// Device and inode of a process's root directory.
type RootId = (u64, u64);

/// A file as a maps line names it, which is not enough to tell it from all others: on btrfs two subvolumes
/// share device and inode numbers, so the path belongs to it, and the root that the path starts from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    root: RootId,
    device: u64,
    inode: u64,
    path: Vec<u8>,
}

/// The open objects, shared by scans and by processes that have the same root directory.
///
/// It holds one descriptor for each object: whoever profiles many processes at once raises `RLIMIT_NOFILE`.
/// An open file also keeps its inode number from being given to another file, so a key cannot go stale.
#[derive(Debug, Default)]
pub struct ObjectCache {
    roots: HashMap<RootId, Arc<File>>,
    objects: HashMap<Key, Arc<Object>>,
}

impl ObjectCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many objects it holds.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Lets go of the objects that nobody else holds any more: those of processes that have ended, and of
    /// libraries unloaded since.
    pub fn prune(&mut self) {
        self.objects.retain(|_, object| Arc::strong_count(object) > 1);
        self.roots.retain(|_, root| Arc::strong_count(root) > 1);
    }
}

/// An address space, and what is missing from it.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// The executable mappings.
    pub space: AddressSpace,
    /// What was left out because of a limit, or could not be understood, in words, for a warning; `None`
    /// when nothing was.
    pub cut: Option<String>,
}

/// Reads what a process has mapped as code, and opens each mapped file that is not open yet.
///
/// # Errors
/// When the process has ended, or may not be looked into. A file that can't be opened is no error: its
/// object says why.
pub fn read_address_space(process: &Process, cache: &mut ObjectCache) -> io::Result<Scan> {
    let maps = BufReader::with_capacity(64 * 1024, File::from(process.open_at("maps", OFlag::O_RDONLY)?));
    let parsed = maps::parse(maps)?;
    if parsed.total == 0 {
        // The kernel shows the map of a process that has ended as empty.
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("process {} has ended", process.pid())));
    }
    let root = Root::of(process, cache)?;
    let mut scan = Scan::default();
    let (mut overlaps, mut over_limit) = (0, 0);
    for line in parsed.lines {
        // The text is read in pieces while the process may change its map: what overlaps came later.
        if scan.space.mappings.last().is_some_and(|last: &Mapping| line.start < last.end) {
            overlaps += 1;
            continue;
        }
        let backing = match line.kind() {
            Kind::Anonymous => Backing::Anonymous,
            Kind::Named(name) => Backing::Named(String::from_utf8_lossy(name).into_owned()),
            Kind::File { path, marked_deleted } => {
                match cache.object(process, &root, &line, path, marked_deleted) {
                    Some(object) => Backing::Object(object),
                    None => {
                        over_limit += 1;
                        Backing::Named(String::from_utf8_lossy(path).into_owned())
                    }
                }
            }
        };
        let Line { start, end, file_offset, .. } = line;
        scan.space.mappings.push(Mapping { start, end, file_offset, executable: true, backing });
    }
    let mut cut = Vec::new();
    if parsed.cut {
        cut.push(format!("mappings behind the first {} were not looked at", scan.space.mappings.len()));
    }
    if over_limit > 0 {
        cut.push(format!("{over_limit} mapped files were not opened: {MAX_OBJECTS} are open already"));
    }
    if parsed.malformed > 0 {
        cut.push(format!(
            "{} lines of /proc/{}/maps could not be understood",
            parsed.malformed,
            process.pid()
        ));
    }
    if overlaps > 0 {
        cut.push(format!("{overlaps} mappings changed while they were read"));
    }
    scan.cut = (!cut.is_empty()).then(|| cut.join("; "));
    Ok(scan)
}

/// The root directory of the process whose files are being opened.
pub(super) struct Root {
    pub(super) id: RootId,
    pub(super) handle: Arc<File>,
    /// Where it lies in its mount namespace; `/` but in a chroot.
    pub(super) path: PathBuf,
}

impl Root {
    fn of(process: &Process, cache: &mut ObjectCache) -> io::Result<Self> {
        let handle = process.root()?;
        let metadata = handle.metadata()?;
        let id = (metadata.dev(), metadata.ino());
        let handle = Arc::clone(cache.roots.entry(id).or_insert_with(|| Arc::new(handle)));
        Ok(Self { id, handle, path: process.root_path()? })
    }

    /// The kernel prints paths up to the root of the mount namespace; the process sees them from its own.
    fn path_as_seen(&self, path: &[u8]) -> PathBuf {
        let path = Path::new(OsStr::from_bytes(path));
        match path.strip_prefix(&self.path) {
            Ok(inside) => Path::new("/").join(inside),
            Err(_) => path.to_owned(),
        }
    }
}

impl ObjectCache {
    /// The object of a maps line; `None` when [`MAX_OBJECTS`] are open.
    fn object(
        &mut self,
        process: &Process,
        root: &Root,
        line: &Line,
        path: &[u8],
        marked_deleted: bool,
    ) -> Option<Arc<Object>> {
        let key = Key { root: root.id, device: line.device, inode: line.inode, path: line.name.clone() };
        let known = self.objects.get(&key);
        // Deleting or replacing a file puts a mark into its line, which makes it another key.
        if let Some(known) = known.filter(|o| o.file.is_ok()) {
            return Some(Arc::clone(known));
        }
        if known.is_none() && self.objects.len() >= MAX_OBJECTS {
            return None;
        }
        let opened = open::open_mapped(process, root, line, path, marked_deleted);
        let object = match opened {
            Ok(opened) => Arc::new(Object {
                id: opened.id,
                path: root.path_as_seen(&opened.path),
                file: Ok(opened.file),
                deleted: opened.deleted,
                root: Some(Arc::clone(&root.handle)),
            }),
            Err(reason) => {
                // The same failure again: the same object, so that nobody takes it for a new one.
                if let Some(known) = known.filter(|o| o.file.as_ref().err() == Some(&reason)) {
                    return Some(Arc::clone(known));
                }
                Arc::new(Object {
                    id: FileId { device: line.device, inode: line.inode },
                    path: root.path_as_seen(path),
                    file: Err(reason),
                    deleted: marked_deleted,
                    root: Some(Arc::clone(&root.handle)),
                })
            }
        };
        self.objects.insert(key, Arc::clone(&object));
        Some(object)
    }
}

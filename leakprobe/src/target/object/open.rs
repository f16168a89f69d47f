//! Opening the very file that is mapped, whatever has become of its path.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::statfs::{BTRFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, fstatfs},
};

use super::Root;
use crate::target::{maps::Line, process::Process, space::FileId};

/// A file that is mapped.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) id: FileId,
    /// The path in the maps line, without the kernel's mark.
    pub(super) path: Vec<u8>,
    /// Whether the path no longer leads to it.
    pub(super) deleted: bool,
}

/// Opens the file behind a maps line, or says in words why it could not.
///
/// First through `/proc/PID/map_files/START-END`, a link to the inode itself, which also leads to files that
/// were deleted or replaced; it wants CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE. Otherwise by path, from the
/// process's root, if what is found there is the inode of the maps line.
pub(super) fn open_mapped(
    process: &Process,
    root: &Root,
    line: &Line,
    path: &[u8],
    marked_deleted: bool,
) -> Result<Opened, String> {
    let by_path = PathLook { root, line, path, marked_deleted };
    let direct = process.open_at(&format!("map_files/{:x}-{:x}", line.start, line.end), OFlag::O_PATH);
    let refusal = match direct {
        Ok(handle) => match agrees(&handle, line) {
            Ok(true) => {
                let (file, id) = reopen(&handle)?;
                let (path, deleted) = by_path.leads_to(id);
                return Ok(Opened { file, id, path, deleted });
            }
            // The range was unmapped and taken by another file since the line was read.
            Ok(false) => "another file is mapped there by now".to_owned(),
            Err(e) => e.to_string(),
        },
        Err(e) => e.to_string(),
    };
    by_path.open().map_err(|reason| {
        format!("failed to open the mapped file itself ({refusal}), nor does its path lead to it ({reason})")
    })
}

/// Whether an open file is the one of the maps line. Inode numbers always agree, but for overlayfs, where a
/// kernel may print the inode of the layer below; device numbers do not where one filesystem shows several:
/// overlayfs again, and the subvolumes of btrfs.
fn agrees(handle: &OwnedFd, line: &Line) -> io::Result<bool> {
    let metadata = stat(handle)?;
    if metadata.ino() == line.inode && metadata.dev() == line.device {
        return Ok(true);
    }
    let filesystem = fstatfs(handle)?.filesystem_type();
    Ok(match filesystem {
        OVERLAYFS_SUPER_MAGIC => true,
        BTRFS_SUPER_MAGIC => metadata.ino() == line.inode,
        _ => false,
    })
}

/// Opens for reading what an `O_PATH` handle stands for, if it is a regular file: to open a device or a FIFO
/// could have effects of its own, or wait for ever.
fn reopen(handle: &OwnedFd) -> Result<(File, FileId), String> {
    let metadata = stat(handle).map_err(|e| e.to_string())?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        let what =
            if kind.is_char_device() || kind.is_block_device() { "a device" } else { "not a regular file" };
        return Err(format!("it is {what}, which is not opened"));
    }
    let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits())
        .open(format!("/proc/self/fd/{}", handle.as_raw_fd()))
        .map_err(|e| format!("failed to open it for reading: {e}"))?;
    Ok((file, FileId { device: metadata.dev(), inode: metadata.ino() }))
}

fn stat(handle: &OwnedFd) -> io::Result<fs::Metadata> {
    File::from(handle.as_fd().try_clone_to_owned()?).metadata()
}

/// Looking for a maps line's file by its path.
pub(super) struct PathLook<'a> {
    pub(super) root: &'a Root,
    pub(super) line: &'a Line,
    pub(super) path: &'a [u8],
    pub(super) marked_deleted: bool,
}

impl PathLook<'_> {
    /// The paths that the line may mean: the kernel's mark ` (deleted)` may be part of the name, and so may
    /// the four characters that it writes for a newline.
    fn candidates(&self) -> impl Iterator<Item = Vec<u8>> {
        let marked = self.marked_deleted.then(|| self.line.name.clone());
        let plain = Some(self.path.to_vec());
        let backslashed = self.path.contains(&b'\n').then(|| escape_newlines(self.path));
        [marked, plain, backslashed].into_iter().flatten()
    }

    /// The path that leads to the file `id`, and false; or, when none does, the plain path and true.
    fn leads_to(&self, id: FileId) -> (Vec<u8>, bool) {
        let found = self.candidates().find(|path| {
            let metadata = self.look_up(path).and_then(|handle| stat(&handle));
            metadata.is_ok_and(|m| (m.dev(), m.ino()) == (id.device, id.inode))
        });
        match found {
            Some(path) => (path, false),
            None => (self.path.to_vec(), true),
        }
    }

    pub(super) fn open(&self) -> Result<Opened, String> {
        let mut reason = String::from("no such file");
        for path in self.candidates() {
            match self.look_up(&path) {
                // On overlayfs there is no telling whether a file that took the path's place is the one that
                // is mapped, unless its numbers agree.
                Ok(handle) if stat(&handle).is_ok_and(|m| m.ino() == self.line.inode) => {
                    match agrees(&handle, self.line) {
                        Ok(true) => {
                            let (file, id) = reopen(&handle)?;
                            return Ok(Opened { file, id, path, deleted: false });
                        }
                        Ok(false) => reason = "another file is there".to_owned(),
                        Err(e) => reason = e.to_string(),
                    }
                }
                Ok(_) => reason = "another file is there".to_owned(),
                Err(e) => reason = e.to_string(),
            }
        }
        Err(reason)
    }

    /// Looks a path up from the process's root. No link leads out of that root (a container chooses its
    /// links itself), and nothing is opened yet.
    fn look_up(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let path = self.root.path_as_seen(path);
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        Ok(openat2(&*self.root.handle, path.as_os_str(), how)?)
    }
}

fn escape_newlines(path: &[u8]) -> Vec<u8> {
    path.iter()
        .flat_map(|b| if *b == b'\n' { b"\\012".as_slice() } else { std::slice::from_ref(b) })
        .copied()
        .collect()
}

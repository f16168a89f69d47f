//! The file that holds an object's debug information, when the object itself does not.
//!
//! blazesym would follow an object's links by itself, but relative to a path that it makes up from
//! `/proc/self/fd/N` and in *our* file system, and it opens whatever the object names: a FIFO, on which
//! it would hang, or a device, which opening may set off. So links are followed here, and blazesym is
//! handed a regular file.

use std::{
    ffi::OsStr,
    fs::File,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::Mode,
};

use super::elf::{DebugLink, Layout, SharedLink};

const DEBUG_DIRECTORY: &str = "usr/lib/debug";

/// Finds the debug file of an object whose path in the process is `path`: by build ID, then by
/// debug link, each under the roots in their order (the process's own, then the host's).
pub(super) fn find(path: &Path, layout: &Layout, roots: &[&File]) -> Option<(File, Layout)> {
    for root in roots {
        if let Some(id) = &layout.build_id {
            let found = usable(root, &build_id_path(id));
            if let Some(found) = found.filter(|(_, debug)| debug.build_id.as_ref() == Some(id)) {
                return Some(found);
            }
        }
        if let Some(link) = &layout.debug_link {
            let found = link_paths(path, link).into_iter().find_map(|candidate| {
                usable(root, &candidate).filter(|(file, debug)| belongs(layout, link, file, debug))
            });
            if found.is_some() {
                return found;
            }
        }
    }
    None
}

/// Where a build ID's file lies under a debug directory.
pub(super) fn build_id_name(id: &[u8]) -> PathBuf {
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let (directory, rest) = hex.split_at(2);
    Path::new(".build-id").join(directory).join(format!("{rest}.debug"))
}

fn build_id_path(id: &[u8]) -> PathBuf {
    Path::new(DEBUG_DIRECTORY).join(build_id_name(id))
}

/// Where a debug link is looked for, in gdb's order: beside the object, in `.debug` there, and under the
/// debug directory at the object's own path.
fn link_paths(path: &Path, link: &DebugLink) -> [PathBuf; 3] {
    let name = OsStr::from_bytes(&link.name);
    let directory = path.parent().unwrap_or(Path::new("/"));
    let directory = directory.strip_prefix("/").unwrap_or(directory);
    let global = Path::new(DEBUG_DIRECTORY).join(directory);
    [directory.join(name), directory.join(".debug").join(name), global.join(name)]
}

/// Whether the file behind a debug link is the one that was meant. Equal build IDs prove it as well as
/// the CRC does, without reading all of it.
fn belongs(object: &Layout, link: &DebugLink, file: &File, debug: &Layout) -> bool {
    match (&object.build_id, &debug.build_id) {
        (Some(ours), Some(theirs)) => ours == theirs,
        _ => crc32(file).is_some_and(|crc| crc == link.crc),
    }
}

fn crc32(file: &File) -> Option<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        let got = file.read_at(&mut buffer, offset).ok()?;
        if got == 0 {
            return Some(hasher.finalize());
        }
        hasher.update(&buffer[..got]);
        offset += got as u64;
    }
}

/// Finds the file that `link` means, by build ID or by path. A relative path is relative to the real place
/// of the debug file, which is not known here; what distributions install lies in `.dwz` in any case.
pub(super) fn find_shared(link: &SharedLink, roots: &[&File]) -> Option<File> {
    let path = Path::new(OsStr::from_bytes(&link.path));
    let in_dwz = path.file_name().map(|name| Path::new(DEBUG_DIRECTORY).join(".dwz").join(name));
    let absolute = path.is_absolute().then(|| path.to_owned());
    let places: Vec<PathBuf> =
        [Some(build_id_path(&link.build_id)), absolute, in_dwz].into_iter().flatten().collect();
    let mut files = roots.iter().flat_map(|root| places.iter().filter_map(|place| open_regular(root, place)));
    files.find(|file| {
        let layout = Layout::read_shared(file);
        layout.is_ok_and(|layout| layout.build_id.as_ref() == Some(&link.build_id))
    })
}

/// The file at `path` under `root`, if it is a sound ELF file with symbols.
fn usable(root: &File, path: &Path) -> Option<(File, Layout)> {
    let file = open_regular(root, path)?;
    let layout = match Layout::read(&file) {
        Ok(layout) => layout,
        Err(reason) => {
            log::debug!("debug file {} is not used: {reason}", path.display());
            return None;
        }
    };
    (layout.has_dwarf || layout.has_symbols).then_some((file, layout))
}

/// Opens a regular file under `root`, whose symbolic links cannot lead out of it.
///
/// The first open has no effect on what it opens (O_PATH); the second goes through the descriptor, so
/// that nothing can be put in the file's place in between. openat2: Linux 5.6.
fn open_regular(root: &File, path: &Path) -> Option<File> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .mode(Mode::empty())
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let place = File::from(openat2(root.as_fd(), path, how).ok()?);
    if !place.metadata().ok()?.is_file() {
        return None;
    }
    reopen(&place).ok()
}

/// Opens the file behind an open one once more, for reading.
pub(super) fn reopen(file: &File) -> std::io::Result<File> {
    File::open(descriptor_path(file))
}

/// A path that leads to an open file whatever became of its name.
pub(super) fn descriptor_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{DebugLink, build_id_path, link_paths};

    #[test]
    fn paths_are_relative_to_the_root() {
        let link = DebugLink { name: b"liba.so.debug".to_vec(), crc: 0 };
        let expected =
            ["opt/lib/liba.so.debug", "opt/lib/.debug/liba.so.debug", "usr/lib/debug/opt/lib/liba.so.debug"];
        assert_eq!(link_paths(Path::new("/opt/lib/liba.so"), &link), expected.map(PathBuf::from));
        assert_eq!(build_id_path(&[0xab, 0x01, 0xff]), Path::new("usr/lib/debug/.build-id/ab/01ff.debug"));
    }
}

use std::{fs, os::unix::fs::symlink, process::Command};

use super::{open::PathLook, *};
use crate::target::testing::{Folder, Running, is_root, until};

/// The object at the start of the program's own code.
fn program(process: &Process, cache: &mut ObjectCache) -> Arc<Object> {
    let scan = read_address_space(process, cache).unwrap();
    assert_eq!(scan.cut, None);
    let Some(Backing::Object(object)) = scan.space.mappings.first().map(|m| m.backing.clone()) else {
        panic!("{:?}", scan.space)
    };
    object
}

fn identity(path: &Path) -> FileId {
    let metadata = fs::metadata(path).unwrap();
    FileId { device: metadata.dev(), inode: metadata.ino() }
}

fn contents(object: &Object) -> Vec<u8> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut object.file.as_ref().unwrap(), &mut bytes).unwrap();
    io::Seek::rewind(&mut object.file.as_ref().unwrap()).unwrap();
    bytes
}

#[test]
fn an_address_space_is_sorted_and_shares_its_objects() {
    let child = Running::start_and_settle("sleep", &["1000"]);
    let other = Running::start_and_settle("sleep", &["1000"]);
    let (process, other) = (Process::open(child.pid()).unwrap(), Process::open(other.pid()).unwrap());
    let mut cache = ObjectCache::new();
    let libc = |scan: &Scan| {
        scan.space.mappings.iter().find_map(|m| match &m.backing {
            Backing::Object(object) if object.path.ends_with("libc.so.6") => {
                Some((m.start, Arc::clone(object)))
            }
            _ => None,
        })
    };
    let scans = [&process, &process, &other].map(|p| read_address_space(p, &mut cache).unwrap());
    let mappings = &scans[0].space.mappings;
    assert!(mappings.windows(2).all(|w| w[0].end <= w[1].start));
    assert!(mappings.iter().all(|m| m.executable && m.start < m.end));
    assert!(mappings.iter().any(|m| matches!(&m.backing, Backing::Named(name) if name == "[vdso]")));
    assert_eq!(cache.len(), 3); // sleep, libc, ld.so

    let [first, second, third] = scans.each_ref().map(|scan| libc(scan).unwrap());
    assert!(Arc::ptr_eq(&first.1, &second.1) && Arc::ptr_eq(&first.1, &third.1));
    assert_eq!(first.1.id, identity(&first.1.path));
    assert!(!first.1.deleted);
    let found = scans[0].space.find(first.0 + 1).unwrap();
    assert_eq!(found.start, first.0);

    cache.prune();
    assert_eq!(cache.len(), 3);
    drop((first, second, third, scans));
    cache.prune();
    assert_eq!((cache.len(), cache.roots.len()), (0, 0));
}

#[test]
fn a_file_is_found_whatever_becomes_of_its_path() {
    let folder = Folder::new();
    let original = fs::read("/bin/sleep").unwrap();
    for what in ["deleted", "replaced", "renamed"] {
        let path = folder.sleep(what);
        let id = identity(&path);
        let child = Running::start_and_settle(&path, &["1000"]);
        let process = Process::open(child.pid()).unwrap();
        let mut cache = ObjectCache::new();
        let before = program(&process, &mut cache);
        assert_eq!((before.id, &before.path, before.deleted), (id, &path, false), "{what}");
        let (mut path_after, mut deleted) = (path.clone(), true);
        match what {
            "deleted" => fs::remove_file(&path).unwrap(),
            "replaced" => {
                fs::write(folder.join("new"), "another file").unwrap();
                fs::rename(folder.join("new"), &path).unwrap();
            }
            _ => {
                (path_after, deleted) = (folder.join("renamed away"), false);
                fs::rename(&path, &path_after).unwrap();
            }
        }
        // Found by a scan that knew it before, and by one that never saw it.
        for cache in [&mut cache, &mut ObjectCache::new()] {
            if !is_root() && deleted {
                eprintln!("skipped: without root, /proc/PID/map_files is closed");
                break;
            }
            let after = program(&process, cache);
            assert_eq!((after.id, &after.path, after.deleted), (id, &path_after, deleted), "{what}");
            assert!(contents(&after) == original, "{what}");
        }
        assert!(contents(&before) == original, "{what}");
    }
}

#[test]
fn odd_names_are_not_taken_for_marks() {
    let folder = Folder::new();
    for name in ["plain (deleted)", "new\nline", "new\\012line", "both\n (deleted)"] {
        let path = folder.sleep(name);
        let child = Running::start_and_settle(&path, &["1000"]);
        let process = Process::open(child.pid()).unwrap();
        let object = program(&process, &mut ObjectCache::new());
        assert_eq!((object.id, &object.path, object.deleted), (identity(&path), &path, false), "{name:?}");
    }
}

#[test]
fn by_path_only_the_mapped_inode_is_taken() {
    let folder = Folder::new();
    let path = folder.sleep("lib.so");
    let child = Running::start_and_settle(&path, &["1000"]);
    let process = Process::open(child.pid()).unwrap();
    let root = Root::of(&process, &mut ObjectCache::new()).unwrap();
    let id = identity(&path);
    let name = path.as_os_str().as_bytes().to_vec();
    let line =
        Line { start: 0, end: 1, file_offset: 0, device: id.device, inode: id.inode, name: name.clone() };
    let look = || PathLook { root: &root, line: &line, path: &name, marked_deleted: false }.open();
    let opened = look().unwrap();
    assert_eq!((opened.id, opened.deleted), (id, false));

    fs::rename(&path, folder.join("away")).unwrap();
    assert!(look().unwrap_err().contains("No such file"));
    fs::write(&path, "another").unwrap();
    assert_eq!(look().unwrap_err(), "another file is there");
    // A FIFO would make an open for reading wait for ever, were it opened.
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(look().unwrap_err(), "another file is there");
    let line = Line { inode: identity(&path).inode, ..line.clone() };
    let fifo = PathLook { root: &root, line: &line, path: &name, marked_deleted: false }.open();
    assert_eq!(fifo.unwrap_err(), "it is not a regular file, which is not opened");
}

#[test]
fn devices_are_not_opened() {
    let folder = Folder::new();
    let source = "#include <fcntl.h>\n#include <sys/mman.h>\n#include <unistd.h>\nint main(void) {\n\
        if (mmap((void *)0x10000000, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, open(\"/dev/zero\", 0), 0)\n\
          == MAP_FAILED) return 1;\n write(1, \"r\", 1); pause(); }\n";
    let child = Running::start_and_wait(&folder.compile("device", source, &[]), &[]);
    let process = Process::open(child.pid()).unwrap();
    let scan = read_address_space(&process, &mut ObjectCache::new()).unwrap();
    let Backing::Object(object) = &scan.space.find(0x1000_0000).unwrap().backing else { panic!() };
    assert_eq!(object.path, Path::new("/dev/zero"));
    let reason = object.file.as_ref().unwrap_err();
    assert!(reason.contains("it is a device, which is not opened"), "{reason}");
}

#[test]
fn a_mount_namespace_of_its_own_hides_nothing() {
    if !is_root() {
        return eprintln!("skipped: without root, no mount namespace can be made");
    }
    let folder = Folder::new();
    let hidden = folder.join("hidden");
    fs::create_dir(&hidden).unwrap();
    let script = "mount -t tmpfs tmpfs \"$1\" && cp /bin/sleep \"$1/asleep\" && exec \"$1/asleep\" 1000";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(&hidden);
    let child = Running::spawn(&mut command);
    let process = Process::open(child.pid()).unwrap();
    until("the hidden program runs", || process.name().unwrap() == "asleep");
    child.settle();
    let path = hidden.join("asleep");
    assert!(!path.exists());
    let object = program(&process, &mut ObjectCache::new());
    assert_eq!((&object.path, object.deleted), (&path, false));
    assert!(contents(&object) == fs::read("/bin/sleep").unwrap());

    // The same without the direct link: through the process's own root.
    let root = Root::of(&process, &mut ObjectCache::new()).unwrap();
    let name = path.as_os_str().as_bytes().to_vec();
    let FileId { device, inode } = object.id;
    let line = Line { start: 0, end: 1, file_offset: 0, device, inode, name: name.clone() };
    let opened = PathLook { root: &root, line: &line, path: &name, marked_deleted: false }.open().unwrap();
    assert_eq!(opened.id, object.id);
}

#[test]
fn in_a_chroot_paths_are_the_processs_own() {
    if !is_root() {
        return eprintln!("skipped: without root, no chroot can be entered");
    }
    let folder = Folder::new();
    let source = "#include <unistd.h>\nint main(void) { write(1, \"r\", 1); pause(); }\n";
    let program_path = folder.compile("quiet", source, &["-static"]);
    // A link that leads out of the chroot, were it followed from our own root.
    symlink("/bin/sleep", folder.join("link")).unwrap();
    let chroot = folder.0.to_str().unwrap();
    let child = Running::start_and_wait(Path::new("chroot"), &[chroot, "/quiet"]);
    let process = Process::open(child.pid()).unwrap();
    let object = program(&process, &mut ObjectCache::new());
    assert_eq!(
        (object.id, object.path.as_path(), object.deleted),
        (identity(&program_path), Path::new("/quiet"), false)
    );
    let root = Root::of(&process, &mut ObjectCache::new()).unwrap();
    let FileId { device, inode } = identity(Path::new("/bin/sleep"));
    let name = folder.join("link").as_os_str().as_bytes().to_vec();
    let line = Line { start: 0, end: 1, file_offset: 0, device, inode, name: name.clone() };
    let escape = PathLook { root: &root, line: &line, path: &name, marked_deleted: false }.open();
    assert!(escape.unwrap_err().contains("No such file"));
}

#[test]
fn files_of_an_overlay_are_opened_whatever_numbers_the_kernel_prints() {
    if !is_root() {
        return eprintln!("skipped: without root, no overlay can be mounted");
    }
    let folder = Folder::new();
    let script = "cd \"$1\" && mount -t tmpfs tmpfs . && cd \"$1\" && mkdir lower upper work merged && cp /bin/sleep lower/asleep \
        && mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged || exit 77; \
        exec \"$1/merged/asleep\" 1000";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(&folder.0);
    let mut child = Running::spawn(&mut command);
    let process = Process::open(child.pid()).unwrap();
    let mut ended = None;
    until("the program on the overlay runs", || {
        ended = child.0.try_wait().unwrap();
        ended.is_some() || process.name().is_ok_and(|name| name == "asleep")
    });
    if let Some(status) = ended {
        assert_eq!(status.code(), Some(77));
        return eprintln!("skipped: this kernel mounts no overlay here");
    }
    child.settle();
    let mut cache = ObjectCache::new();
    let object = program(&process, &mut cache);
    let path = folder.join("merged/asleep");
    assert_eq!((&object.path, object.deleted), (&path, false));
    assert!(contents(&object) == fs::read("/bin/sleep").unwrap());
    let seen = fs::metadata(format!("/proc/{}/root{}", child.pid(), path.display())).unwrap();
    assert_eq!(object.id, FileId { device: seen.dev(), inode: seen.ino() });

    // By path: older kernels print the device of the layer below.
    let root = Root::of(&process, &mut cache).unwrap();
    let name = path.as_os_str().as_bytes().to_vec();
    let line =
        Line { start: 0, end: 1, file_offset: 0, device: 1, inode: object.id.inode, name: name.clone() };
    let look = |line: &Line| PathLook { root: &root, line, path: &name, marked_deleted: false }.open();
    assert_eq!(look(&line).unwrap().id, object.id);
    let line = Line { inode: line.inode + 1, ..line };
    assert_eq!(look(&line).unwrap_err(), "another file is there");
}

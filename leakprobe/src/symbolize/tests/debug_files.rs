//! Debug information in a file of its own.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::victim::{Scratch, brief, compile, full, run, run_in, symbols_only, tool};
use crate::symbolize::{Symbolizer, Unknown};

/// A stripped victim and its debug file.
struct Split {
    scratch: Scratch,
    program: PathBuf,
    debug: PathBuf,
}

impl Split {
    fn new(options: &str) -> Self {
        let scratch = Scratch::new();
        let program = compile(&scratch, "opt/victim", options);
        let debug = scratch.file("built/victim.debug");
        tool("objcopy", "--only-keep-debug {} {}", &[&program, &debug]);
        tool("strip", "{}", &[&program]);
        Self { scratch, program, debug }
    }

    fn link(self) -> Self {
        tool("objcopy", "--add-gnu-debuglink={} {}", &[&self.debug, &self.program]);
        self
    }

    /// Puts the debug file where the test wants it to be found.
    fn put(&self, place: &str) -> PathBuf {
        let place = self.scratch.file(place);
        fs::copy(&self.debug, &place).unwrap();
        place
    }

    fn build_id(&self) -> String {
        let notes = tool("readelf", "-nW {}", &[&self.program]);
        notes.split("Build ID: ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
    }

    fn build_id_place(&self) -> String {
        let id = self.build_id();
        format!("usr/lib/debug/.build-id/{}/{}.debug", &id[..2], &id[2..])
    }

    /// The frames when the scratch directory is the process's root.
    fn in_root(&self) -> Vec<String> {
        let ran = run_in(&self.program, Path::new("/opt/victim"), Some(self.scratch.path()));
        brief(&ran.frames(&mut Symbolizer::new()))
    }
}

fn nothing() -> Vec<String> {
    vec![Unknown::Stripped.to_string(); 3]
}

#[test]
fn debug_links_are_followed_beside_the_object_in_the_hosts_root() {
    for place in ["opt/victim.debug", "opt/.debug/victim.debug"] {
        let split = Split::new("-g").link();
        assert_eq!(brief(&run(&split.program).frames(&mut Symbolizer::new())), nothing());
        split.put(place);
        assert_eq!(brief(&run(&split.program).frames(&mut Symbolizer::new())), full(), "{place}");
    }
}

#[test]
fn debug_links_are_followed_in_the_processs_root() {
    for options in ["-g", "-g -Wl,--build-id=none"] {
        for place in ["opt/victim.debug", "opt/.debug/victim.debug", "usr/lib/debug/opt/victim.debug"] {
            let split = Split::new(options).link();
            assert_eq!(split.in_root(), nothing(), "{options}");
            split.put(place);
            assert_eq!(split.in_root(), full(), "{options} {place}");
        }
    }
}

#[test]
fn build_ids_lead_to_debug_files() {
    let split = Split::new("-g");
    split.put(&split.build_id_place());
    assert_eq!(split.in_root(), full());
}

#[test]
fn a_debug_file_without_lines_still_names() {
    let split = Split::new("");
    split.put(&split.build_id_place());
    assert_eq!(split.in_root(), symbols_only());
}

#[test]
fn compressed_debug_files_are_read() {
    let split = Split::new("-g");
    tool("objcopy", "--compress-debug-sections=zlib {}", &[&split.debug]);
    split.put(&split.build_id_place());
    assert_eq!(split.in_root(), full());
}

#[test]
fn debug_files_of_another_build_are_not_used() {
    // By build ID, in the place of this program's.
    let split = Split::new("-g");
    let other = Split::new("-g -DOUTER=other");
    fs::copy(&other.debug, split.scratch.file(&split.build_id_place())).unwrap();
    assert_eq!(split.in_root(), nothing());

    // By link, with and without build IDs; without them the CRC tells.
    for options in ["-g", "-g -Wl,--build-id=none"] {
        let split = Split::new(options).link();
        let other = Split::new(&format!("{options} -DOUTER=other"));
        fs::copy(&other.debug, split.scratch.file("opt/victim.debug")).unwrap();
        assert_eq!(split.in_root(), nothing(), "{options}");
    }
}

#[test]
fn links_do_not_lead_out_of_the_processs_root() {
    let split = Split::new("-g").link();
    let outside = Scratch::new();
    let debug = outside.file("victim.debug");
    fs::copy(&split.debug, &debug).unwrap();
    symlink(&debug, split.scratch.file("opt/victim.debug")).unwrap();
    assert_eq!(split.in_root(), nothing(), "the link's target is outside");

    // The same link, absolute inside the root, is followed.
    split.put(debug.strip_prefix("/").unwrap().to_str().unwrap());
    assert_eq!(split.in_root(), full());
}

#[test]
fn only_regular_files_are_opened() {
    // Opening a FIFO without a writer would never return.
    let split = Split::new("-g").link();
    let fifo = split.scratch.file("opt/victim.debug");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(split.in_root(), nothing());

    // What stands behind it in the order of search is still found.
    split.put("opt/.debug/victim.debug");
    assert_eq!(split.in_root(), full());
}

#[test]
fn an_unstripped_object_with_a_dangling_link_keeps_its_symbols() {
    let split = Split::new("-g");
    let whole = compile(&split.scratch, "opt/whole", "-g");
    tool("objcopy", "--add-gnu-debuglink={} {}", &[&split.debug, &whole]);
    assert_eq!(brief(&run(&whole).frames(&mut Symbolizer::new())), symbols_only());
}

/// Two unstripped programs whose debug information dwz has moved to a file that they share, as
/// distributions do; returns the first program and that file, or `None` where dwz is not installed.
fn shared(scratch: &Scratch) -> Option<(PathBuf, PathBuf)> {
    if let Err(error) = std::process::Command::new("dwz").arg("--version").output() {
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        eprintln!("skipped: dwz is not installed (package dwz)");
        return None;
    }
    let program = compile(scratch, "opt/victim", "-g");
    let twin = compile(scratch, "opt/twin", "-g -DOUTER=twin");
    let multi = scratch.file("built/multi.debug");
    tool("dwz", "-m {} -M /usr/lib/debug/.dwz/of/multi.debug {} {}", &[&multi, &program, &twin]);
    Some((program, multi))
}

#[test]
fn shared_debug_information_is_found() {
    let scratch = Scratch::new();
    let Some((program, multi)) = shared(&scratch) else { return };
    let names = || {
        let ran = run_in(&program, Path::new("/opt/victim"), Some(scratch.path()));
        brief(&ran.frames(&mut Symbolizer::new()))
    };
    assert_eq!(names(), symbols_only(), "without it, lines would be wrong or missing");
    let id = tool("readelf", "-nW {}", &[&multi]);
    let id = id.split("Build ID: ").nth(1).unwrap().split_whitespace().next().unwrap();
    let by_id = format!("usr/lib/debug/.build-id/{}/{}.debug", &id[..2], &id[2..]);
    for place in [by_id.as_str(), "usr/lib/debug/.dwz/of/multi.debug", "usr/lib/debug/.dwz/multi.debug"] {
        let place = scratch.file(place);
        fs::copy(&multi, &place).unwrap();
        assert_eq!(names(), full(), "{}", place.display());
        fs::remove_file(place).unwrap();
    }
    // Of another build: the last byte of its build ID differs.
    let place = scratch.file("usr/lib/debug/.dwz/of/multi.debug");
    let mut bytes = fs::read(&multi).unwrap();
    let last = u8::from_str_radix(&id[38..], 16).unwrap();
    let raw: Vec<u8> = (0..20).map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).unwrap()).collect();
    let at = bytes.windows(20).position(|window| window == raw).unwrap();
    bytes[at + 19] = !last;
    fs::write(&place, bytes).unwrap();
    assert_eq!(names(), symbols_only());
}

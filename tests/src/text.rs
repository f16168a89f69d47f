//! Whether a process's code is what its files say: a probe is a breakpoint written over an instruction.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::{Duration, Instant};

use crate::pace;

/// How long the kernel may take to put instructions back after leakprobe is gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the code of a process differs from the files that it was mapped from: (object, file offset).
///
/// This sees what a list of the kernel's probes doesn't tell, and the other way round.
///
/// # Panics
///
/// When the process or one of its files can't be read.
pub fn patched(pid: u32) -> Vec<(String, u64)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
        .unwrap_or_else(|e| panic!("failed to read the mappings of process {pid}: {e}"));
    let memory = File::open(format!("/proc/{pid}/mem"))
        .unwrap_or_else(|e| panic!("failed to open the memory of process {pid}: {e}"));
    let mut differences = Vec::new();
    for range in maps.lines().filter_map(code_range) {
        // Not by its path, where another file may be by now.
        let mapped_file =
            format!("/proc/{pid}/map_files/{:x}-{:x}", range.address, range.address + range.length as u64);
        let file = File::open(mapped_file).unwrap_or_else(|e| panic!("failed to open {}: {e}", range.path));
        let (mut mapped, mut stored) = (vec![0; range.length], vec![0; range.length]);
        memory
            .read_exact_at(&mut mapped, range.address)
            .unwrap_or_else(|e| panic!("failed to read {} in process {pid}: {e}", range.path));
        // The last page reaches past the end of a short file: those bytes are zero in both.
        let mut filled = 0;
        while let Ok(more @ 1..) = file.read_at(&mut stored[filled..], range.offset + filled as u64) {
            filled += more;
        }
        let pairs = mapped.iter().zip(&stored[..filled]).enumerate();
        let changed = pairs.filter(|(_, (mapped, stored))| mapped != stored);
        differences.extend(changed.map(|(at, _)| (range.path.clone(), range.offset + at as u64)));
    }
    differences
}

/// Waits until the code is whole again.
///
/// # Panics
///
/// When something is left, with where.
pub fn check_whole(pid: u32) {
    let deadline = Instant::now() + pace::patience(PATIENCE);
    loop {
        let left = patched(pid);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "probes are left behind in process {pid}: {left:x?}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[derive(Debug, PartialEq, Eq)]
struct CodeRange {
    address: u64,
    length: usize,
    offset: u64,
    path: String,
}

/// An executable mapping of a file, from a line of /proc/PID/maps.
fn code_range(line: &str) -> Option<CodeRange> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let permissions = words.next()?;
    let offset = u64::from_str_radix(words.next()?, 16).ok()?;
    let path = words.nth(2)?;
    if !permissions.contains('x') || !path.starts_with('/') {
        return None;
    }
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let length = usize::try_from(end.checked_sub(start)?).ok()?;
    Some(CodeRange { address: start, length, offset, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn only_code_of_files_counts() {
        let line = "7f00a000-7f00c000 r-xp 00026000 fd:00 131 /usr/lib/libc.so.6";
        let range = CodeRange {
            address: 0x7f00_a000,
            length: 0x2000,
            offset: 0x26000,
            path: "/usr/lib/libc.so.6".into(),
        };
        assert_eq!(code_range(line), Some(range));
        assert_eq!(code_range("7f00a000-7f00c000 rw-p 00026000 fd:00 131 /usr/lib/libc.so.6"), None);
        assert_eq!(code_range("7ffd1000-7ffd3000 r-xp 00000000 00:00 0 [vdso]"), None);
        assert_eq!(code_range("7ffd1000-7ffd3000 r-xp 00000000 00:00 0"), None);
        assert_eq!(code_range(""), None);
    }

    #[test]
    fn one_byte_written_over_the_code_is_found() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("failed to start cat");
        let pid = child.id();
        // It has been loaded whole when it answers.
        let mut echo = [0];
        child.stdin.as_mut().expect("its input").write_all(b"x").expect("failed to write to cat");
        child.stdout.as_mut().expect("its output").read_exact(&mut echo).expect("failed to read from cat");
        assert_eq!(patched(pid), []);
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("its mappings");
        let range = maps.lines().find_map(code_range).expect("code of a file");
        let memory = File::options().write(true).open(format!("/proc/{pid}/mem")).expect("its memory");
        memory.write_all_at(&[0xcc], range.address + 100).expect("failed to write over its code");
        let found = patched(pid);
        child.kill().expect("failed to kill cat");
        child.wait().expect("failed to wait for cat");
        assert_eq!(found, [(range.path, range.offset + 100)]);
    }
}

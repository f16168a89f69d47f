//! Programs of 32 bits, written out by hand: Debian's compiler makes none without further packages.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{compile, skip};

/// Where a program is loaded.
const BASE: u32 = 0x0804_8000;

/// Bytes of its headers.
const HEADERS: u32 = 52 + 32;

/// Writes an x86 program that calls pause() for ever; `None` where this kernel runs none, which is a reason to skip.
///
/// # Panics
///
/// When it can't be written.
pub fn pausing(name: &str) -> Option<PathBuf> {
    let path = compile::scratch().join(format!("{name}.{}", std::process::id()));
    // mov eax, 29 (pause); int 0x80; jmp back to the start
    write(&path, &[0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7]);
    match Command::new(&path).stdin(Stdio::null()).spawn() {
        Ok(mut child) => {
            let _ = child.kill();
            let _ = child.wait();
            Some(path)
        }
        Err(e) => {
            let _ = fs::remove_file(&path);
            // ENOEXEC: the kernel was built without CONFIG_IA32_EMULATION, or isn't for x86.
            assert_eq!(e.raw_os_error(), Some(8), "failed to start a 32-bit program: {e}");
            skip::because("this kernel runs no 32-bit x86 programs", e);
            None
        }
    }
}

/// Writes an x86 program, as `path`, that has a child execute a command, waits for it, and ends when somebody has opened the
/// FIFO `until` for writing, or with the process that has started it.
///
/// # Panics
///
/// When it can't be written.
pub fn starting(path: &Path, command: &[&str], until: &str) {
    let mut code = vec![
        0xb8, 172, 0, 0, 0, 0xbb, 1, 0, 0, 0, 0xb9, 9, 0, 0, 0, 0xcd,
        0x80, // prctl(PR_SET_PDEATHSIG, SIGKILL)
        0xb8, 2, 0, 0, 0, 0xcd, 0x80, // fork()
        0x85, 0xc0, 0x74, 39, // in the child: go on after the parent's part
        0xb8, 7, 0, 0, 0, 0xbb, 0xff, 0xff, 0xff, 0xff, 0x31, 0xc9, 0x31, 0xd2, 0xcd,
        0x80, // waitpid(-1, 0, 0)
        0xb8, 5, 0, 0, 0, 0xbb, 0, 0, 0, 0, 0x31, 0xc9, 0xcd, 0x80, // open(until, O_RDONLY)
        0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80, // exit(0)
    ];
    let opened = 17 + 11 + 16 + 6;
    // execve(words[0], words, 0), and exit if that fails.
    let words = BASE + HEADERS + code.len() as u32 + 26;
    let strings = words + 4 * (command.len() as u32 + 1);
    code.push(0xb8);
    code.extend(11_u32.to_le_bytes());
    code.push(0xbb);
    code.extend(strings.to_le_bytes());
    code.push(0xb9);
    code.extend(words.to_le_bytes());
    code.extend([0x31, 0xd2, 0xcd, 0x80, 0xb8, 1, 0, 0, 0, 0xcd, 0x80]);
    let mut end = strings;
    for word in command {
        code.extend(end.to_le_bytes());
        end += word.len() as u32 + 1;
    }
    code[opened..opened + 4].copy_from_slice(&end.to_le_bytes());
    code.extend(0_u32.to_le_bytes());
    for word in command.iter().chain([&until]) {
        code.extend(word.as_bytes());
        code.push(0);
    }
    write(path, &code);
}

fn write(path: &Path, code: &[u8]) {
    let size = HEADERS + u32::try_from(code.len()).expect("a small program");
    let mut elf = b"\x7fELF\x01\x01\x01".to_vec();
    elf.resize(16, 0);
    let half = |elf: &mut Vec<u8>, value: u16| elf.extend(value.to_le_bytes());
    let word = |elf: &mut Vec<u8>, value: u32| elf.extend(value.to_le_bytes());
    // An executable for the 386.
    half(&mut elf, 2);
    half(&mut elf, 3);
    // Version, entry, program headers, section headers, flags.
    for value in [1, BASE + HEADERS, 52, 0, 0] {
        word(&mut elf, value);
    }
    // Sizes and numbers of headers: itself, 1 program header, no sections.
    for value in [52, 32, 1, 40, 0, 0] {
        half(&mut elf, value);
    }
    // One segment, loaded readable and executable: offset, address, address, sizes, flags, alignment.
    for value in [1, 0, BASE, BASE, size, size, 5, 4096] {
        word(&mut elf, value);
    }
    elf.extend(code);
    fs::write(path, elf).expect("failed to write a 32-bit program");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("failed to make it executable");
}

//! Whether a multi-uprobe link for one process runs in all of its threads.
//!
//! Up to 6.10 its filter compared the thread, and a program on malloc would have missed all threads but the
//! first; stable kernels have the correction under older numbers. So it is tried: a probe on a function of
//! our own, called by another thread.

use std::{
    ffi::CString,
    fs, hint, io,
    os::fd::{AsFd as _, AsRawFd as _},
    thread,
};

use aya_obj::generated::{BPF_PSEUDO_MAP_VALUE, bpf_map_type, bpf_prog_type};

use super::probes::instruction;
use crate::{
    sys::bpf::{
        self, LinkKind, Point,
        program::{self, Program, UPROBE_MULTI},
    },
    target::maps::{self, Kind},
};

/// What is probed. Its body is of no importance, only that it is called where it stands.
#[inline(never)]
extern "C" fn touched(value: u64) -> u64 {
    hint::black_box(value.rotate_left(7) ^ 0x6c65_616b)
}

/// Tries it.
///
/// # Errors
/// When the experiment could not be made.
pub fn compares_processes() -> io::Result<bool> {
    let map = bpf::create_map(bpf_map_type::BPF_MAP_TYPE_ARRAY, 4, 8, 1)?;
    // r1 = address of the map's value; r2 = 1; *(u64 *)r1 += r2, atomically; return 0.
    let instructions = [
        instruction(0x18, 1, BPF_PSEUDO_MAP_VALUE as u8, map.as_raw_fd()),
        instruction(0, 0, 0, 0),
        instruction(0xb7, 2, 0, 1),
        instruction(0xdb, 1, 2, 0),
        instruction(0xb7, 0, 0, 0),
        instruction(0x95, 0, 0, 0),
    ];
    let program = program::load(&Program {
        name: "leakprobe_try",
        kind: bpf_prog_type::BPF_PROG_TYPE_KPROBE,
        attach_type: UPROBE_MULTI,
        kernel_type: 0,
        instructions: &instructions,
        license: c"Dual MIT/GPL",
        types: None,
    })?;
    let (path, file_offset) = place(touched as extern "C" fn(u64) -> u64 as usize as u64)?;
    let point = Point { file_offset, cookie: 0 };
    let link = bpf::link_uprobes(program.as_fd(), LinkKind::Enter, &path, &[point], std::process::id())?;
    let call = || hint::black_box(touched as extern "C" fn(u64) -> u64)(1);
    let called = thread::Builder::new().spawn(call).map(|thread| thread.join().is_ok())?;
    let mut count = [0; 8];
    let read = bpf::lookup(map.as_fd(), &0u32.to_ne_bytes(), &mut count)?;
    // Closing it waits for a grace period, some 30 ms, which nobody need wait for.
    if let Err(error) = thread::Builder::new().spawn(move || drop(link)) {
        log::debug!("failed to start a thread that closes a link: {error}");
    }
    Ok(called && read && u64::from_ne_bytes(count) > 0)
}

/// The file that this address of our own is mapped from, and where in it.
fn place(address: u64) -> io::Result<(CString, u64)> {
    let parsed = maps::parse(io::BufReader::new(fs::File::open("/proc/self/maps")?))?;
    let line = parsed.lines.iter().find(|line| (line.start..line.end).contains(&address));
    match line.map(|line| (line, line.kind())) {
        Some((line, Kind::File { .. })) => {
            let path = format!("/proc/self/map_files/{:x}-{:x}", line.start, line.end);
            Ok((CString::new(path)?, address - line.start + line.file_offset))
        }
        _ => Err(io::Error::other("leakprobe's own code is mapped from no file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_code_is_found_in_our_own_file() {
        let address = touched as extern "C" fn(u64) -> u64 as usize as u64;
        let (path, offset) = place(address).expect("a place");
        let here = fs::read_link(path.to_str().expect("text")).expect("a mapping of ours");
        assert_eq!(here, std::env::current_exe().expect("a file"));
        let file = fs::read(&here).expect("readable");
        let start = usize::try_from(offset).expect("small");
        // SAFETY: these are the first bytes of a function, which is longer.
        let code = unsafe { std::slice::from_raw_parts(address as *const u8, 8) };
        // Where the first ones are, a breakpoint can be: other tests probe this function.
        assert_eq!(&file[start + 4..start + 8], &code[4..]);
    }
}

//! Loading programs by bpf(2): what aya has no attach type for, what is only tried out, and what is measured.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_func_info, bpf_insn, bpf_prog_type};

use super::{command, owned, zeroed};

/// `BPF_TRACE_UPROBE_SESSION` (Linux 6.13), which aya's bindings do not have yet.
pub const UPROBE_SESSION: u32 = 57;
/// `BPF_TRACE_UPROBE_MULTI` (Linux 6.6).
pub const UPROBE_MULTI: u32 = bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32;

/// Bytes for the verifier's words about a program that it refuses: of one path through it.
const LOG_BYTES: usize = 4 << 20;
/// Lines of them that an error quotes: the refused instruction and what leads to it.
const LAST_LINES: usize = 8;

/// A program to be loaded, its map references already resolved.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// Shown by `bpftool prog`; cut at 15 bytes.
    pub name: &'a str,
    /// Its type.
    pub kind: bpf_prog_type,
    /// What it is to be attached to, where the kernel wants to know that when it loads; else 0.
    pub attach_type: u32,
    /// The kernel's own type or function that it is to be attached to, as its BTF numbers it; else 0.
    pub kernel_type: u32,
    /// The code.
    pub instructions: &'a [bpf_insn],
    /// The licence that the program declares.
    pub license: &'a CStr,
    /// Types of its functions, which the kernel wants of programs that hand one to a helper.
    pub types: Option<FunctionTypes<'a>>,
}

/// Types of a program's functions.
#[derive(Clone, Copy, Debug)]
pub struct FunctionTypes<'a> {
    /// The types, loaded by [`load_types`].
    pub btf: BorrowedFd<'a>,
    /// `bpf_func_info` records: where each function begins, and its type.
    pub functions: &'a [u8],
}

/// Bytes of a `bpf_func_info`.
pub const FUNCTION_INFO_BYTES: usize = size_of::<bpf_func_info>();

/// Loads types (BTF).
///
/// # Errors
/// What the kernel said.
pub fn load_types(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: this variant of the zeroed union is the one that BPF_BTF_LOAD reads.
    let load = unsafe { &mut attributes.__bindgen_anon_7 };
    load.btf = bytes.as_ptr() as u64;
    load.btf_size = bytes.len() as u32;
    command(bpf_cmd::BPF_BTF_LOAD, &mut attributes).map(owned)
}

/// What loading a program took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Instructions that the verifier went through; `None` when it does not say.
    pub instructions: Option<u64>,
    /// Time of the system call.
    pub time: Duration,
}

/// Loads a program.
///
/// # Errors
/// What the kernel said, with the verifier's last words where it had any.
pub fn load(program: &Program<'_>) -> io::Result<OwnedFd> {
    attempt(program, 0, &mut []).or_else(|error| explain(program, error))
}

/// As [`load`], and says what it took.
///
/// # Errors
/// As [`load`].
pub fn load_measured(program: &Program<'_>) -> io::Result<(OwnedFd, Cost)> {
    const STATISTICS: u32 = 4; // BPF_LOG_STATS, 5.2
    let mut log = vec![0; 4096];
    let begun = Instant::now();
    let loaded = attempt(program, STATISTICS, &mut log);
    let time = begun.elapsed();
    match loaded {
        Ok(fd) => Ok((fd, Cost { instructions: processed(&text(&log)), time })),
        Err(error) => explain(program, error).map(|fd| (fd, Cost { instructions: None, time })),
    }
}

/// Loads a program that has been refused once more, for the verifier's words: writing them is slow.
fn explain(program: &Program<'_>, first: io::Error) -> io::Result<OwnedFd> {
    let mut log = vec![0; LOG_BYTES];
    if let Ok(fd) = attempt(program, 1, &mut log) {
        return Ok(fd);
    }
    match last_words(&text(&log)) {
        Some(words) => Err(io::Error::new(first.kind(), format!("{first}; the verifier said:\n{words}"))),
        None => Err(first),
    }
}

fn attempt(program: &Program<'_>, log_level: u32, log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: this variant of the zeroed union is the one that BPF_PROG_LOAD reads.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    load.prog_type = program.kind as u32;
    load.expected_attach_type = program.attach_type;
    load.attach_btf_id = program.kernel_type;
    load.insns = program.instructions.as_ptr() as u64;
    load.insn_cnt = program.instructions.len() as u32;
    load.license = program.license.as_ptr() as u64;
    if let Some(types) = &program.types {
        load.prog_btf_fd = types.btf.as_raw_fd() as u32;
        load.func_info = types.functions.as_ptr() as u64;
        load.func_info_rec_size = FUNCTION_INFO_BYTES as u32;
        load.func_info_cnt = (types.functions.len() / FUNCTION_INFO_BYTES) as u32;
    }
    for (to, from) in load.prog_name.iter_mut().take(15).zip(program.name.bytes()) {
        *to = from as libc::c_char;
    }
    if !log.is_empty() {
        load.log_level = log_level;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = log.len() as u32;
    }
    command(bpf_cmd::BPF_PROG_LOAD, &mut attributes).map(owned)
}

/// Attaches a tracing program (fentry, fexit, a BTF tracepoint) to what it was loaded for. Dropping the link
/// takes it off.
///
/// # Errors
/// What the kernel said: `EBUSY`, `EINVAL` or `ENOTSUPP` (524) where it cannot patch its functions.
pub fn attach_tracing(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    attributes.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    command(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attributes).map(owned)
}

/// Attaches a raw tracepoint program to a tracepoint by name. Dropping the link takes it off.
///
/// # Errors
/// What the kernel said: `ENOENT` where there is no such tracepoint.
pub fn attach_raw_tracepoint(program: BorrowedFd<'_>, tracepoint: &CStr) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    attributes.raw_tracepoint.name = tracepoint.as_ptr() as u64;
    attributes.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    command(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attributes).map(owned)
}

fn text(log: &[u8]) -> String {
    CStr::from_bytes_until_nul(log).unwrap_or_default().to_string_lossy().into_owned()
}

/// The end of the verifier's log, where it says why; `None` when it is empty.
fn last_words(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().filter(|line| !is_statistic(line)).collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    (!last.is_empty()).then(|| last.join("\n"))
}

fn is_statistic(line: &str) -> bool {
    ["", "processed ", "verification time", "stack depth"]
        .iter()
        .any(|start| line.trim().is_empty() || (!start.is_empty() && line.starts_with(start)))
}

/// `processed 1234 insns (limit 1000000) max_states_per_insn 4 ...`
fn processed(log: &str) -> Option<u64> {
    log.lines().find_map(|line| line.strip_prefix("processed ")?.split(' ').next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "0: R1=ctx(off=0,imm=0) R10=fp0\n0: (85) call unknown#174\n\
        invalid func unknown#174\nprocessed 1 insns (limit 1000000) max_states_per_insn 0\n\n";

    #[test]
    fn the_verifiers_last_words_are_those_before_its_statistics() {
        assert_eq!(
            last_words(LOG).as_deref(),
            Some("0: R1=ctx(off=0,imm=0) R10=fp0\n0: (85) call unknown#174\ninvalid func unknown#174")
        );
        let long: String = (0..100).map(|number| format!("{number}: (bf) r1 = r2\n")).collect();
        let words = last_words(&long).expect("words");
        assert_eq!((words.lines().next(), words.lines().count()), (Some("92: (bf) r1 = r2"), 8));
        assert_eq!(last_words("\nverification time 3 usec\n"), None);
    }

    #[test]
    fn the_instructions_are_read_from_the_statistics() {
        let log = "verification time 97 usec\nstack depth 16\nprocessed 4711 insns (limit 1000000)\n";
        assert_eq!(processed(log), Some(4711));
        assert_eq!(processed("0: (95) exit\n"), None);
    }
}

//! What this kernel offers, found by trying it where that is possible.

use std::{fs, io, os::fd::AsFd as _};

use aya_obj::generated::bpf_insn;

use crate::sys::bpf::{self, Point, UprobeProgram};

/// How probes are put into a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// One link for many probes of an object: attaches and detaches at once (Linux 6.6; used from 6.11 on, see
    /// [`mechanism`]).
    Multi,
    /// One perf event a probe.
    PerfEvent,
}

/// The kernel's release, such as `6.18.44`.
pub fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Major and minor number of a release; `(0, 0)` for one that has none.
pub fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Chooses the mechanism.
///
/// Whether multi-uprobe links exist is found by asking for one on a directory: only a kernel that knows
/// them says `EBADF`. Whether their process filter works cannot be asked without probing something: up to
/// 6.10 it compared threads instead of processes, and would have missed all threads but one.
pub fn mechanism() -> Mechanism {
    let works = version(&release()) >= (6, 11) && multi_links_exist().unwrap_or(false);
    if works { Mechanism::Multi } else { Mechanism::PerfEvent }
}

fn multi_links_exist() -> io::Result<bool> {
    const EXIT: u8 = 0x95;
    const MOVE_IMMEDIATE: u8 = 0xb7;
    let instruction =
        |code| bpf_insn { code, _bitfield_align_1: [], _bitfield_1: Default::default(), off: 0, imm: 0 };
    let program = bpf::load_uprobe_multi(&UprobeProgram {
        name: "leakprobe_try",
        instructions: &[instruction(MOVE_IMMEDIATE), instruction(EXIT)],
        license: c"Dual MIT/GPL",
    })?;
    let point = Point { file_offset: 1, cookie: 0 };
    match bpf::link_uprobes(program.as_fd(), c"/", &[point], 0, false) {
        Ok(_) => Ok(true),
        Err(error) => Ok(error.raw_os_error() == Some(libc::EBADF)),
    }
}

/// Why leakprobe cannot work on this machine at all; `None` when it can. `capabilities` is the effective
/// set as in /proc/self/status.
pub fn refusal(release: &str, has_uprobes: bool, capabilities: u64) -> Option<String> {
    const SYS_PTRACE: u32 = 19;
    const SYS_ADMIN: u32 = 21;
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;
    let has = |capability: u32| capabilities >> capability & 1 == 1;
    let mut missing = Vec::new();
    if !has(SYS_ADMIN) {
        missing.extend((!has(BPF)).then_some("CAP_BPF"));
        missing.extend((!has(PERFMON)).then_some("CAP_PERFMON"));
        missing.push("CAP_SYS_ADMIN");
    }
    missing.extend((!has(SYS_PTRACE)).then_some("CAP_SYS_PTRACE"));
    if !missing.is_empty() {
        return Some(format!(
            "failed to start: leakprobe needs root, or the capabilities CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN and \
             CAP_SYS_PTRACE (missing here: {}); run it with sudo",
            missing.join(", ")
        ));
    }
    if version(release) < (5, 15) {
        return Some(format!(
            "failed to start: kernel {release} is too old: leakprobe needs Linux 5.15 or later, whose probes \
             carry a cookie"
        ));
    }
    if !has_uprobes {
        return Some(format!(
            "failed to start: kernel {release} has no uprobes (/sys/bus/event_source/devices/uprobe is \
             missing); it must be built with CONFIG_UPROBE_EVENTS and CONFIG_BPF_EVENTS"
        ));
    }
    None
}

/// [`refusal`] for this machine and this process.
pub fn refusal_here() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let has_uprobes = fs::exists("/sys/bus/event_source/devices/uprobe").unwrap_or(false);
    refusal(&release(), has_uprobes, capabilities).or_else(namespace_refusal)
}

/// BPF programs see process IDs of the initial PID namespace; in another one `--pid` would mean another
/// process. That namespace's inode number is fixed (`PROC_PID_INIT_INO`).
fn namespace_refusal() -> Option<String> {
    let here = fs::read_link("/proc/self/ns/pid").ok()?;
    (here.as_os_str() != "pid:[4026531836]").then(|| {
        format!(
            "failed to start: leakprobe runs in a PID namespace of its own ({}), and the kernel numbers processes \
             otherwise; run it on the host, or in a container with the host's PID namespace (--pid=host)",
            here.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = u64::MAX;

    #[test]
    fn a_machine_that_has_everything_is_not_refused() {
        assert_eq!(refusal("6.1.0-56-cloud-amd64", true, ALL), None);
        assert_eq!(refusal("6.1.0", true, 1 << 21 | 1 << 19), None, "CAP_SYS_ADMIN stands for CAP_BPF");
    }

    #[test]
    fn each_refusal_names_what_is_missing() {
        let text = refusal("6.1.0", true, 0).expect("refused");
        assert!(text.contains("CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE"), "{text}");
        let text = refusal("6.1.0", true, 1 << 21).expect("refused");
        assert!(text.contains("(missing here: CAP_SYS_PTRACE)"), "{text}");
        let text = refusal("4.19.0-27-amd64", true, ALL).expect("refused");
        assert!(text.contains("kernel 4.19.0-27-amd64 is too old"), "{text}");
        let text = refusal("6.1.0", false, ALL).expect("refused");
        assert!(text.contains("no uprobes"), "{text}");
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version("6.18.44-fc-v657"), (6, 18));
        assert_eq!(version("5.4.0"), (5, 4));
        assert_eq!(version(""), (0, 0));
    }
}

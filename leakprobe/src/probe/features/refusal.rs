//! Why leakprobe cannot work on this machine at all.

use std::fs;

use super::{probes, release};

/// Why a process with these effective capabilities (as in /proc/self/status) may not profile; `None` when it may.
pub fn capability_refusal(capabilities: u64) -> Option<String> {
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
    (!missing.is_empty()).then(|| {
        format!(
            "failed to start: leakprobe needs root, or the capabilities CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN and \
             CAP_SYS_PTRACE (missing here: {}); run it with sudo",
            missing.join(", ")
        )
    })
}

/// Why the kernel `release`, which has what is said, cannot be worked with; `None` when it can.
fn kernel_refusal(
    release: &str,
    has_uprobes: bool,
    has_ring_buffer: impl FnOnce() -> bool,
) -> Option<String> {
    if !has_uprobes {
        return Some(format!(
            "failed to start: kernel {release} has no uprobes (/sys/bus/event_source/devices/uprobe is \
             missing); it must be built with CONFIG_UPROBE_EVENTS and CONFIG_BPF_EVENTS"
        ));
    }
    // The youngest of what cannot be done without: who has it has the rest.
    (!has_ring_buffer()).then(|| {
        format!(
            "failed to start: kernel {release} makes no BPF ring buffer, which came with Linux 5.8 (leakprobe is \
             tested from 5.10 on): use a newer kernel; if this one is newer, it is locked down or built without \
             CONFIG_BPF_SYSCALL"
        )
    })
}

/// Why leakprobe cannot work here, as this process; `None` when it can.
pub fn refusal_here() -> Option<String> {
    capability_refusal(own_capabilities())
        .or_else(|| kernel_refusal(&release(), probes::uprobes(), probes::ring_buffer))
        .or_else(namespace_refusal)
}

/// What a refused program may be due to: nothing where the kernel is not locked down.
pub fn lockdown_hint() -> &'static str {
    hint(&fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default())
}

/// `modes` as the kernel lists them, the one in force in brackets: `none integrity [confidentiality]`.
fn hint(modes: &str) -> &'static str {
    if modes.contains("[confidentiality]") {
        " (this kernel is locked down in confidentiality mode, in which BPF programs may not read memory: boot it with \
         lockdown=integrity, or without)"
    } else {
        ""
    }
}

/// This process's effective capabilities.
pub fn own_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Why leakprobe cannot work in this PID namespace. BPF programs see process IDs of the initial one; in another one `--pid` would mean another
/// process. That namespace's inode number is fixed (`PROC_PID_INIT_INO`).
pub fn namespace_refusal() -> Option<String> {
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

    #[test]
    fn only_confidentiality_forbids_reading() {
        assert!(hint("none integrity [confidentiality]\n").contains("lockdown=integrity"));
        assert_eq!(hint("none [integrity] confidentiality\n"), "");
        assert_eq!(hint(""), "");
    }

    #[test]
    fn who_has_everything_is_not_refused() {
        assert_eq!(capability_refusal(u64::MAX), None);
        assert_eq!(capability_refusal(1 << 21 | 1 << 19), None, "CAP_SYS_ADMIN stands for CAP_BPF");
        assert_eq!(kernel_refusal("5.10.0-46-cloud-amd64", true, || true), None);
        assert_eq!(
            kernel_refusal("4.18.0-vendor", true, || true),
            None,
            "what it can counts, not its number"
        );
    }

    #[test]
    fn each_refusal_names_what_is_missing() {
        let text = capability_refusal(0).expect("refused");
        assert!(text.contains("CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE"), "{text}");
        let text = capability_refusal(1 << 21).expect("refused");
        assert!(text.contains("(missing here: CAP_SYS_PTRACE)"), "{text}");
        let text = kernel_refusal("4.19.0-27-amd64", true, || false).expect("refused");
        assert!(text.contains("kernel 4.19.0-27-amd64 makes no BPF ring buffer"), "{text}");
        assert!(text.contains("Linux 5.8"), "{text}");
        let text = kernel_refusal("6.1.0", false, || unreachable!("asked for first")).expect("refused");
        assert!(text.contains("no uprobes"), "{text}");
    }
}

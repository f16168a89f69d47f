//! Whether return probes could kill a target that has a system-call filter.
//!
//! Linux 6.11 made return probes on x86_64 quicker by leaving their trampoline through a system call of
//! its own, `uretprobe` (number 335; upstream commit ff474a78cef5). A seccomp filter that doesn't know that
//! number refuses it, and the target dies; the default filters of container engines are such filters.
//! Commit cf6cb56ef244, in 6.14-rc2 and in stable releases 6.12.14 and 6.13.3, lets it pass every filter;
//! 6.11 was no longer maintained by then. Other architectures never had that system call.
//!
//! The version decides here, on the safe side: a vendor's kernel that carries the fix under an older number
//! is refused too, and the option named in the refusal is for it. A proof by experiment (a child of our own
//! that installs a filter refusing 335 and runs into a return probe of ours) would replace
//! [`return_probe_hazard`]'s body; its callers would not notice.

use std::fmt;

use super::text::printable;
use crate::probe::plan::Arch;

/// The option that overrides the refusal.
pub const OVERRIDE: &str = "--allow-return-probes-under-seccomp";

/// What `Seccomp:` in `/proc/PID/status` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum SeccompMode {
    /// 0: no restriction (also of kernels built without seccomp).
    #[default]
    Off,
    /// 1: read, write, exit and sigreturn only.
    Strict,
    /// 2, or a number not known yet: filter programs.
    Filter,
}

impl SeccompMode {
    /// The mode for its number.
    pub fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::Off,
            1 => Self::Strict,
            _ => Self::Filter,
        }
    }
}

/// Why return probes must not be put into a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hazard {
    /// What the process has installed.
    pub mode: SeccompMode,
    /// The kernel, as `uname -r` names it.
    pub release: String,
}

/// The hazard of return probes in a process with `mode` (the strictest of its threads) under the kernel
/// that calls itself `release` (`uname -r`) on `arch`, or `None` when there is none.
pub fn return_probe_hazard(mode: SeccompMode, release: &str, arch: Arch) -> Option<Hazard> {
    if mode == SeccompMode::Off || arch != Arch::X86_64 {
        return None;
    }
    // A release that cannot be read is taken for a hazardous one: the target's survival comes first.
    let hazardous = Version::parse(release).is_none_or(Version::filters_return_probes);
    hazardous.then(|| Hazard { mode, release: release.to_owned() })
}

impl Hazard {
    /// The refusal, one line, for the process `pid` called `name` (untrusted; escaped here).
    pub fn refusal(&self, pid: u32, name: &str) -> String {
        format!(
            "refused to put return probes into process {pid} ({}): {self}",
            printable(name.as_bytes(), 64)
        )
    }
}

impl fmt::Display for Hazard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.mode {
            SeccompMode::Strict => "runs in strict seccomp mode",
            SeccompMode::Off | SeccompMode::Filter => "has a seccomp filter, as in most containers",
        };
        write!(
            f,
            "it {kind}, and kernel {} runs return probes through a system call (uretprobe, 335) that seccomp may \
             answer by killing the process; use kernel 6.12.14, 6.13.3, 6.14 or newer, or pass {OVERRIDE} if this \
             kernel carries that fix or the filter allows the call",
            printable(self.release.as_bytes(), 64)
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    major: u32,
    minor: u32,
    patch: u32,
    /// `u32::MAX` for anything but a release candidate.
    candidate: u32,
}

impl Version {
    /// `6.12.9-amd64`, `6.14.0-rc1+`, `7.0-rc2`.
    fn parse(release: &str) -> Option<Self> {
        let numbers_end = release.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(release.len());
        let (numbers, rest) = release.split_at(numbers_end);
        let mut parts = numbers.split('.').map(str::parse::<u32>);
        let (major, minor) = (parts.next()?.ok()?, parts.next()?.ok()?);
        let patch = parts.next().and_then(Result::ok).unwrap_or(0);
        let candidate = rest
            .strip_prefix("-rc")
            .and_then(|r| r[..r.find(|c: char| !c.is_ascii_digit()).unwrap_or(r.len())].parse().ok());
        Some(Self { major, minor, patch, candidate: candidate.unwrap_or(u32::MAX) })
    }

    fn filters_return_probes(self) -> bool {
        match (self.major, self.minor) {
            (6, 11) => true,
            (6, 12) => self.patch < 14,
            (6, 13) => self.patch < 3,
            (6, 14) => self.patch == 0 && self.candidate < 2,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hazardous(release: &str) -> bool {
        return_probe_hazard(SeccompMode::Filter, release, Arch::X86_64).is_some()
    }

    #[test]
    fn the_window_closes_at_the_releases_that_carry_the_fix() {
        for release in [
            "6.11.0",
            "6.11.0-29-generic",
            "6.11.11+bpo-amd64",
            "6.12.0-rc1",
            "6.12.0-55.9.1.el10_0.x86_64",
            "6.12.13",
            "6.13.0",
            "6.13.2-arch1-1",
            "6.14.0-rc1",
            "6.14-rc1",
            "strange",
            "",
            "6",
        ] {
            assert!(hazardous(release), "{release}");
        }
        for release in [
            "5.10.0-34-amd64",
            "6.1.0-37-cloud-amd64",
            "6.8.0-60-generic",
            "6.10.14",
            "6.12.14",
            "6.12.43+deb13-amd64",
            "6.13.3",
            "6.14.0-rc2",
            "6.14.0",
            "6.18.44-fc-v657",
            "7.0.0-rc1",
            "7.0.0",
        ] {
            assert!(!hazardous(release), "{release}");
        }
    }

    #[test]
    fn strict_mode_counts_and_no_filter_or_another_architecture_does_not() {
        assert_eq!(return_probe_hazard(SeccompMode::Off, "6.11.0", Arch::X86_64), None);
        assert_eq!(return_probe_hazard(SeccompMode::Filter, "6.11.0", Arch::Aarch64), None);
        assert_eq!(
            return_probe_hazard(SeccompMode::Strict, "6.11.0", Arch::X86_64),
            Some(Hazard { mode: SeccompMode::Strict, release: "6.11.0".into() })
        );
        assert_eq!([0, 1, 2, 3].map(SeccompMode::from_raw)[3], SeccompMode::Filter);
    }

    #[test]
    fn the_refusal_names_process_kernel_and_option_in_one_line() {
        let hazard = return_probe_hazard(SeccompMode::Filter, "6.12.9-amd64", Arch::X86_64).unwrap();
        let text = hazard.refusal(1298, "redis\n");
        for part in ["process 1298 (redis\\n)", "kernel 6.12.9-amd64", "--allow-return-probes-under-seccomp"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains('\n'));
    }
}

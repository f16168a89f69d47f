//! The clock that BPF programs stamp their records with.

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC`, nanoseconds: the clock of `bpf_ktime_get_ns`.
pub fn monotonic_ns() -> u64 {
    // CLOCK_MONOTONIC exists on every Linux; a failure here would be a broken C library.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
        .unwrap_or_default()
}

/// For how long the machine was suspended, nanoseconds: what the start times of processes have more than
/// [`monotonic_ns`].
pub fn suspended_ns() -> u64 {
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(|now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
        .unwrap_or_default();
    boot.saturating_sub(monotonic_ns())
}

/// The wall-clock time, RFC 3339, UTC, whole seconds.
pub fn utc_now() -> String {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()
}

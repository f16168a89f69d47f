//! Perf events that run a BPF program.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use super::tracepoint::descriptor;

/// `struct perf_event_attr`, second published version (2.6.33).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
}

/// Opens a perf event for a tracepoint, for all processes. A program attached to it runs on every CPU,
/// whichever one the event is opened for.
pub fn open_tracepoint(id: u64) -> io::Result<OwnedFd> {
    const PERF_TYPE_TRACEPOINT: u32 = 2;
    open(Attributes { kind: PERF_TYPE_TRACEPOINT, config: id, ..Attributes::default() })
}

/// Opens a perf event for the entry of a function of the kernel's, or with `returns` for its return. `source` is the
/// number of the kprobe event source ([`kprobe_source`]).
pub fn open_kprobe(source: u32, function: &CStr, returns: bool) -> io::Result<OwnedFd> {
    // Bit 0 by /sys/bus/event_source/devices/kprobe/format/retprobe.
    let config = u64::from(returns);
    open(Attributes { kind: source, config, config1: function.as_ptr() as u64, ..Attributes::default() })
}

/// The number of the kprobe event source; `None` where the kernel has no kprobes.
pub fn kprobe_source() -> Option<u32> {
    let text = std::fs::read_to_string("/sys/bus/event_source/devices/kprobe/type").ok()?;
    text.trim().parse().ok()
}

fn open(attributes: Attributes) -> io::Result<OwnedFd> {
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    let attributes =
        Attributes { size: size_of::<Attributes>() as u32, sample_period: 1, wakeup_events: 1, ..attributes };
    descriptor(|| {
        // SAFETY: the structure is as long as its `size` says, and outlives the call, as does the string that
        // `config1` may point to.
        unsafe {
            libc::syscall(libc::SYS_perf_event_open, &raw const attributes, -1, 0, -1, PERF_FLAG_FD_CLOEXEC)
        }
    })
}

/// Attaches a program to a perf event, which has it until it is closed: the way of kernels before 5.15.
pub fn set_program(event: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    const PERF_EVENT_IOC_SET_BPF: libc::Ioctl = 0x4004_2408;
    // SAFETY: this request takes a descriptor by value.
    let result = unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

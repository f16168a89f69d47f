//! Perf events that run a BPF program.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    sync::OnceLock,
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

const PERF_TYPE_TRACEPOINT: u32 = 2;
/// Bits of [`Attributes::flags`].
const DISABLED: u64 = 1;
const INHERIT: u64 = 2;

/// Opens a perf event for a tracepoint, for all processes. A program attached to it runs on every CPU,
/// whichever one the event is opened for.
pub fn open_tracepoint(id: u64) -> io::Result<OwnedFd> {
    open(Attributes { kind: PERF_TYPE_TRACEPOINT, config: id, ..Attributes::default() }, -1)
}

/// Opens a perf event for an event on functions of a program, in the process of this thread. `inherits`: also in all
/// processes that the thread makes from then on, and what those make.
///
/// It is not enabled: it counts nothing, which would cost at each hit and each switch of threads. The program of the event
/// runs all the same, wherever there is such a perf event.
pub fn open_in_thread(id: u64, tid: u32, inherits: bool) -> io::Result<OwnedFd> {
    let flags = if inherits { DISABLED | INHERIT } else { DISABLED };
    let tid = i32::try_from(tid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    open(Attributes { kind: PERF_TYPE_TRACEPOINT, config: id, flags, ..Attributes::default() }, tid)
}

/// Opens a perf event that counts nothing and keeps a thread's other events its own.
///
/// Two threads whose events are all inherited from the same ones are *clones* to the kernel: when it switches from one to
/// the other, it may exchange their events, instead of taking the ones out and putting the others in. What was for one
/// process is then the other's, and gone when that one ends, while the kernel goes on asking for whom it was made. It does
/// not where an inherited event would be sampled with its value, which this one never is: that holds for all that the
/// thread will make, and for what those make ([`guards_descendants`]). Before Linux 6.13 there is no such event, and one
/// serves that only threads inherit: a process of which not all events were inherited is no clone.
pub fn open_guard(tid: u32) -> io::Result<OwnedFd> {
    const INHERIT_THREAD: u64 = 1 << 35;
    let thread = i32::try_from(tid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    if guards_descendants() {
        return open_lasting_guard(thread);
    }
    let guard = |flags| open(Attributes { flags, ..dummy() }, thread);
    match guard(DISABLED | INHERIT | INHERIT_THREAD) {
        // Before 5.13 there is none that only threads inherit: those that come have none.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::E2BIG)) => guard(DISABLED),
        opened => opened,
    }
}

/// Whether a guard holds for what its thread makes, and for what those make.
pub fn guards_descendants() -> bool {
    static DOES: OnceLock<bool> = OnceLock::new();
    // In this thread.
    *DOES.get_or_init(|| open_lasting_guard(0).is_ok())
}

fn open_lasting_guard(thread: i32) -> io::Result<OwnedFd> {
    /// `PERF_SAMPLE_TID | PERF_SAMPLE_READ`: the one does not go without the other.
    const VALUES: u64 = 1 << 1 | 1 << 4;
    open(Attributes { flags: DISABLED | INHERIT, sample_type: VALUES, ..dummy() }, thread)
}

fn dummy() -> Attributes {
    const PERF_TYPE_SOFTWARE: u32 = 1;
    const PERF_COUNT_SW_DUMMY: u64 = 9;
    Attributes { kind: PERF_TYPE_SOFTWARE, config: PERF_COUNT_SW_DUMMY, ..Attributes::default() }
}

/// Opens a perf event for the entry of a function of the kernel's, or with `returns` for its return. `source` is the
/// number of the kprobe event source ([`kprobe_source`]).
pub fn open_kprobe(source: u32, function: &CStr, returns: bool) -> io::Result<OwnedFd> {
    // Bit 0 by /sys/bus/event_source/devices/kprobe/format/retprobe.
    let config = u64::from(returns);
    open(Attributes { kind: source, config, config1: function.as_ptr() as u64, ..Attributes::default() }, -1)
}

/// The number of the kprobe event source; `None` where the kernel has no kprobes.
pub fn kprobe_source() -> Option<u32> {
    let text = std::fs::read_to_string("/sys/bus/event_source/devices/kprobe/type").ok()?;
    text.trim().parse().ok()
}

/// `thread`: -1 for all, on the first CPU.
fn open(attributes: Attributes, thread: i32) -> io::Result<OwnedFd> {
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    let attributes =
        Attributes { size: size_of::<Attributes>() as u32, sample_period: 1, wakeup_events: 1, ..attributes };
    let opened = || {
        // SAFETY: the structure is as long as its `size` says, and outlives the call, as does the string that
        // `config1` may point to.
        unsafe {
            let cpu = if thread < 0 { 0 } else { -1 };
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                thread,
                cpu,
                -1,
                PERF_FLAG_FD_CLOEXEC,
            )
        }
    };
    loop {
        match descriptor(opened) {
            // Its locks give way to signals, which are only noted.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Attaches a program to a perf event, which has it until it is closed: the way of kernels before 5.15.
pub fn set_program(event: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    const PERF_EVENT_IOC_SET_BPF: libc::Ioctl = 0x4004_2408;
    // SAFETY: this request takes a descriptor by value.
    let result = unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

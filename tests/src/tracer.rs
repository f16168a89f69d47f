//! Another tracer: a return probe of the kernel's own, on a function of a victim.

use std::ffi::CString;
use std::fs;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::path::Path;

use object::{Object as _, ObjectSymbol as _};

/// A return probe on `function` of the program `path` in process `pid`, until it is dropped. While a call of
/// the function lasts, its return address on the stack is that of the kernel's trampoline.
///
/// # Panics
///
/// When the function is not found, or the kernel refuses.
pub fn probe_returns(pid: u32, path: &Path, function: &str) -> OwnedFd {
    let number = |file: &str| -> u64 {
        let text = fs::read_to_string(format!("/sys/bus/event_source/devices/uprobe/{file}"))
            .unwrap_or_else(|e| panic!("failed to read the uprobe PMU's {file}: {e}"));
        text.trim().trim_start_matches("config:").parse().expect("a number")
    };
    let config2 = offset(path, function);
    let path = CString::new(path.to_str().expect("UTF-8")).expect("no NUL");
    /// `struct perf_event_attr` as far as `config2`: its second published version.
    #[repr(C)]
    struct Attributes {
        kind: u32,
        size: u32,
        config: u64,
        sample: [u64; 3],
        flags: u64,
        wakeup_and_breakpoint: [u32; 2],
        config1: u64,
        config2: u64,
    }
    let attributes = Attributes {
        kind: number("type") as u32,
        size: size_of::<Attributes>() as u32,
        config: 1 << number("format/retprobe"),
        sample: [0; 3],
        flags: 0,
        wakeup_and_breakpoint: [0; 2],
        config1: path.as_ptr() as u64,
        config2,
    };
    // SAFETY: the structure is as long as its `size` says; it and the path outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attributes, pid, -1, -1, 8) };
    assert!(fd >= 0, "failed to probe returns of {function}: {}", std::io::Error::last_os_error());
    // SAFETY: the call has just returned this descriptor, which nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// A function's offset in its file, which for the code of the victims is its address.
fn offset(path: &Path, function: &str) -> u64 {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("failed to read {}: {e}", path.display()));
    let file = object::File::parse(&*bytes)
        .unwrap_or_else(|e| panic!("failed to read {} as an object: {e}", path.display()));
    let symbol = file.symbol_by_name(function);
    symbol.unwrap_or_else(|| panic!("no function {function} in {}", path.display())).address()
}

//! What the processor makes of a page's protection.

use std::{io, ptr};

/// Whether a page that may only be executed cannot be read: tried on a page of our own, which the kernel is asked to
/// copy from.
///
/// # Errors
/// When there is no memory or no descriptor for the trial.
pub fn execute_only() -> io::Result<bool> {
    let length = usize::try_from(procfs::page_size()).map_err(io::Error::other)?;
    let (_reader, writer) = io::pipe()?;
    // SAFETY: a new mapping at an address of the kernel's choice takes nothing away.
    let page = unsafe {
        libc::mmap(ptr::null_mut(), length, libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel reads one byte of the mapping, or says that it cannot.
    let written = unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&writer), page, 1) };
    let error = io::Error::last_os_error();
    // SAFETY: the mapping is the one made above, and nothing refers to it.
    unsafe { libc::munmap(page, length) };
    match written {
        1 => Ok(false),
        _ if error.raw_os_error() == Some(libc::EFAULT) => Ok(true),
        _ => Err(error),
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    /// Here the kernel makes such pages with protection keys, where the processor has them.
    #[test]
    fn the_trial_finds_what_the_processor_can() {
        let processors = std::fs::read_to_string("/proc/cpuinfo").expect("a list of processors");
        let has_keys = processors.split_whitespace().any(|flag| flag == "ospke");
        assert_eq!(super::execute_only().expect("a trial"), has_keys);
    }
}

//! Tracepoints by name, found without a mounted tracefs.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

/// A mount of tracefs that no path leads to: it exists as long as this descriptor, and changes nothing
/// that another program could see. Many servers have no tracefs mounted.
pub struct TraceFs(OwnedFd);

impl TraceFs {
    /// Mounts it (fsopen, fsmount: Linux 5.2).
    pub fn open() -> Result<Self> {
        let context = descriptor(|| {
            // SAFETY: the string is NUL-terminated; no other pointers.
            unsafe { libc::syscall(libc::SYS_fsopen, c"tracefs".as_ptr(), 1) }
        })
        .context("failed to open tracefs: this kernel has no tracing")?;
        const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
        // SAFETY: this command takes no pointers.
        let created = unsafe {
            libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, 0usize, 0usize, 0)
        };
        if created < 0 {
            return Err(io::Error::last_os_error()).context("failed to set up tracefs");
        }
        let mount = descriptor(|| {
            // SAFETY: no pointers.
            unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0) }
        })
        .context("failed to mount tracefs privately")?;
        Ok(Self(mount))
    }

    /// The kernel's number of the tracepoint `category:name`.
    pub fn id(&self, category: &str, name: &str) -> Result<u64> {
        let text = self.read(category, name, "id")?;
        text.trim().parse().with_context(|| format!("the id of {category}:{name} is {text:?}"))
    }

    /// What its record looks like.
    pub fn format(&self, category: &str, name: &str) -> Result<String> {
        self.read(category, name, "format")
    }

    /// All events on functions of programs that are defined, by anyone: a line for each function.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn uprobe_events(&self) -> io::Result<String> {
        let mut text = String::new();
        self.open_at("uprobe_events", libc::O_RDONLY)?.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Changes them: defines an event, puts a function to one, or takes one away, by a line as the kernel's
    /// `Documentation/trace/uprobetracer.rst` has it.
    ///
    /// # Errors
    /// What the kernel said: `EBUSY` for one that is used.
    pub fn change_uprobe_events(&self, line: &str) -> io::Result<()> {
        // Without `O_APPEND`, opening it takes all events away that nobody uses.
        let mut file = self.open_at("uprobe_events", libc::O_WRONLY | libc::O_APPEND)?;
        // The kernel takes a line as it is written: by one call.
        file.write_all(format!("{line}\n").as_bytes())
    }

    fn read(&self, category: &str, name: &str, what: &str) -> Result<String> {
        let mut text = String::new();
        self.open_at(&format!("events/{category}/{name}/{what}"), libc::O_RDONLY)
            .with_context(|| format!("this kernel has no tracepoint {category}:{name}"))?
            .read_to_string(&mut text)
            .with_context(|| format!("failed to read the {what} of {category}:{name}"))?;
        Ok(text)
    }

    fn open_at(&self, path: &str, flags: i32) -> io::Result<File> {
        let path = std::ffi::CString::new(path)?;
        let file = descriptor(|| {
            // SAFETY: the path is NUL-terminated.
            unsafe { libc::openat(self.0.as_raw_fd(), path.as_ptr(), flags | libc::O_CLOEXEC).into() }
        })?;
        Ok(File::from(file))
    }
}

pub(super) fn descriptor(call: impl FnOnce() -> libc::c_long) -> io::Result<OwnedFd> {
    let fd = call();
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call just returned this new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

//! Kernel modules, loaded and unloaded without any program's help, and the kernel's own count of a cache.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{io, thread};

use crate::truth::Truth;
use crate::{pace, skip};

/// A loaded module that tells its truth in /proc; unloaded when it goes out of scope.
#[derive(Debug)]
pub struct Module {
    name: &'static str,
    loaded: bool,
}

impl Module {
    /// Loads a module with its parameters, `name=value name=value`.
    ///
    /// # Panics
    ///
    /// When the kernel refuses it; with the kernel's last words.
    pub fn load(path: &Path, name: &'static str, parameters: &str) -> Module {
        Self::try_load(path, name, parameters).unwrap_or_else(|e| {
            panic!("failed to load {} with {parameters:?}: {e}; the kernel's log says why", path.display())
        })
    }

    /// As [`Module::load`].
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn try_load(path: &Path, name: &'static str, parameters: &str) -> io::Result<Module> {
        let file = File::open(path)?;
        let parameters = CString::new(parameters)?;
        // SAFETY: finit_module reads a descriptor and a string, which both outlive the call.
        let result =
            unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
        if result == 0 { Ok(Module { name, loaded: true }) } else { Err(io::Error::last_os_error()) }
    }

    /// What the module says in /proc, at one moment.
    ///
    /// # Panics
    ///
    /// When it says nothing, or no truth.
    pub fn truth(&self) -> Truth {
        let path = format!("/proc/{}", self.name);
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("failed to read {path}: {e}"));
        let mut truth = Truth::default();
        for line in text.lines() {
            truth.read(line).unwrap_or_else(|e| panic!("{path}: {e}"));
        }
        truth
    }

    /// Writes one of its parameters.
    ///
    /// # Panics
    ///
    /// When the module refuses.
    pub fn set(&self, parameter: &str, value: &str) {
        let path = format!("/sys/module/{}/parameters/{parameter}", self.name);
        fs::write(&path, value).unwrap_or_else(|e| panic!("failed to write {value:?} to {path}: {e}"));
    }

    /// Unloads it.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn unload(mut self) {
        self.delete().unwrap_or_else(|e| panic!("failed to unload the module {}: {e}", self.name));
    }

    fn delete(&mut self) -> io::Result<()> {
        self.loaded = false;
        let name = CString::new(self.name)?;
        // SAFETY: delete_module reads a string, which outlives the call.
        let result = unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.loaded {
            let _ = self.delete();
        }
    }
}

/// The module of this guest; `None` after a skip.
pub fn leaky() -> Option<std::path::PathBuf> {
    let path = std::env::var_os("LEAKPROBE_MODULE").map(std::path::PathBuf::from);
    if path.is_none() {
        match fs::metadata("/proc/modules") {
            Err(e) => skip::because("this kernel has no modules", format_args!("/proc/modules: {e}")),
            Ok(_) => skip::because("no module was built for this kernel", "LEAKPROBE_MODULE is not set"),
        }
    }
    path
}

/// Waits until the module has ticked `more` times, and holds it.
///
/// # Panics
///
/// When it does not tick.
pub fn tick(module: &Module, more: u64) -> Truth {
    let wanted = module.truth().number("note", "ticks") + more;
    let deadline = Instant::now() + pace::patience(Duration::from_secs(20));
    module.set("held", "0");
    while module.truth().number("note", "ticks") < wanted {
        assert!(Instant::now() < deadline, "the module does not tick: {:?}", module.truth());
        thread::sleep(Duration::from_millis(5));
    }
    module.set("held", "1");
    module.truth()
}

/// A row of /proc/slabinfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Objects that are taken. Free ones that a CPU keeps for itself count as taken until the cache is shrunk.
    pub active: u64,
    /// Objects for which there is room.
    pub total: u64,
    /// Size of an object with what the allocator adds to it, bytes.
    pub bytes: u64,
}

/// The row of a cache; `None` where there is none of this name.
///
/// # Panics
///
/// When /proc/slabinfo can't be read.
pub fn cache(name: &str) -> Option<Cache> {
    let text =
        fs::read_to_string("/proc/slabinfo").unwrap_or_else(|e| panic!("failed to read slabinfo: {e}"));
    row(&text, name)
}

fn row(slabinfo: &str, name: &str) -> Option<Cache> {
    let mut words = slabinfo.lines().map(str::split_ascii_whitespace).find_map(|mut words| {
        let first = words.next();
        (first == Some(name)).then_some(words)
    })?;
    let mut number = || words.next()?.parse().ok();
    Some(Cache { active: number()?, total: number()?, bytes: number()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_found_by_its_whole_name() {
        let text = "slabinfo - version: 2.1\n\
                    # name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>\n\
                    leaky_object_2      9     9    8   36    1 : tunables    0    0    0\n\
                    leaky_object      420   432  112   36    1 : tunables    0    0    0\n";
        assert_eq!(row(text, "leaky_object"), Some(Cache { active: 420, total: 432, bytes: 112 }));
        assert_eq!(row(text, "leaky"), None);
        assert_eq!(row(text, "slabinfo"), None);
    }
}

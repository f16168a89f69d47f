//! Limits of this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Allows as many open files as the hard limit does: each mapped object of each target stays open. Called
/// after a program was started, which must not inherit it.
pub fn raise_open_files() {
    // Without it fewer processes can be profiled at once, and what cannot be opened is named.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Open files that are allowed.
pub fn open_files() -> usize {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// Another limit on locked memory, to which kernels before 5.11 charge maps and programs. Dropping it brings the
/// old one back: a program that is started must not inherit it.
#[derive(Debug)]
pub struct LockedMemory(Option<(u64, u64)>);

impl LockedMemory {
    /// Lifts the limit, where that is allowed (CAP_SYS_RESOURCE); later kernels do without.
    pub fn unlimited() -> Self {
        let before = getrlimit(Resource::RLIMIT_MEMLOCK).ok();
        let lifted = setrlimit(Resource::RLIMIT_MEMLOCK, libc::RLIM_INFINITY, libc::RLIM_INFINITY).is_ok();
        Self(before.filter(|_| lifted))
    }

    /// Allows none, to see what is charged.
    pub fn none() -> Self {
        let before = getrlimit(Resource::RLIMIT_MEMLOCK).ok();
        let lowered = before.is_some_and(|(_, hard)| setrlimit(Resource::RLIMIT_MEMLOCK, 0, hard).is_ok());
        Self(before.filter(|_| lowered))
    }
}

impl Drop for LockedMemory {
    fn drop(&mut self) {
        if let Some((soft, hard)) = self.0 {
            // Lowering always succeeds, and what was raised was raised by privilege.
            let _ = setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard);
        }
    }
}

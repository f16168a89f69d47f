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

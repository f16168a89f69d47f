//! What the kernel still holds of leakprobe.

use std::thread;
use std::time::{Duration, Instant};

use crate::pace;

/// How long the kernel may take to free programs after leakprobe is gone: they wait for a grace period.
const PATIENCE: Duration = Duration::from_secs(20);

/// leakprobe's BPF programs that are loaded, by name.
///
/// # Panics
///
/// When the kernel does not list its programs.
pub fn programs() -> Vec<String> {
    const OURS: [&str; 5] =
        ["allocate_enter", "allocate_return", "free_enter", "process_exec", "thread_exit"];
    aya::programs::loaded_programs()
        .filter_map(|program| program.ok())
        .filter_map(|program| program.name_as_str().map(str::to_owned))
        .filter(|name| OURS.contains(&name.as_str()))
        .collect()
}

/// Waits until no program of leakprobe's is loaded.
///
/// # Panics
///
/// When some are left, with their names.
pub fn check_gone() {
    let deadline = Instant::now() + pace::patience(PATIENCE);
    loop {
        let left = programs();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "BPF programs are left behind: {left:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

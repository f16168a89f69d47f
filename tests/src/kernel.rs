//! What the kernel still holds of leakprobe.

use std::ffi::CString;
use std::fs;
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
    // At most 15 bytes of a name are kept.
    const OURS: [&str; 18] = [
        "allocate_enter",
        "allocate_return",
        "allocate_looped",
        "allocate_leave",
        "leave_looped",
        "free_enter",
        "process_exec",
        "process_fork",
        "process_born",
        "thread_exit",
        "kmalloc",
        "cache_alloc",
        "cache_alloc_siz",
        "kfree",
        "kfree_again",
        "cache_free",
        "cache_free_agai",
        "bulk_free_fentr",
    ];
    aya::programs::loaded_programs()
        .filter_map(|program| program.ok())
        .filter_map(|program| program.name_as_str().map(str::to_owned))
        .filter(|name| OURS.contains(&name.as_str()))
        .collect()
}

/// leakprobe's events on functions of programs, each once, by name.
///
/// # Panics
///
/// When the kernel's list of them cannot be read.
pub fn events() -> Vec<String> {
    // Many machines have no tracefs mounted.
    let folder = crate::compile::scratch().join(format!("tracing.{}", std::process::id()));
    fs::create_dir_all(&folder).expect("failed to make a folder");
    let path = CString::new(folder.to_str().expect("a plain path")).expect("no NUL");
    let kind = c"tracefs".as_ptr();
    // SAFETY: the strings are NUL-terminated; there is no data.
    let mounted = unsafe { libc::mount(kind, path.as_ptr(), kind, 0, std::ptr::null()) };
    assert_eq!(mounted, 0, "failed to mount tracefs: {}", std::io::Error::last_os_error());
    let text = fs::read_to_string(folder.join("uprobe_events"));
    // SAFETY: as above.
    unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    let _ = fs::remove_dir(&folder);
    let text = text.expect("failed to read uprobe_events");
    let names = text.lines().filter_map(|line| Some(line.split_once(':')?.1.split(' ').next()?.to_owned()));
    let mut names: Vec<String> = names.filter(|name| name.starts_with("leakprobe_")).collect();
    names.dedup();
    names
}

/// The running kernel's version and patch level, for what can't be found out by trying.
///
/// # Panics
///
/// When the kernel does not tell.
pub fn release() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_else(|e| panic!("failed to read the kernel's release: {e}"));
    parse(&text).unwrap_or_else(|| panic!("failed to read the kernel's release from {text:?}"))
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
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

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_release_begins_with_two_numbers() {
        assert_eq!(parse("6.12.117+deb12-cloud-amd64\n"), Some((6, 12)));
        assert_eq!(parse("7.2-rc1"), Some((7, 2)));
        assert_eq!(parse("linux"), None);
    }
}

//! Running processes by their name.

use std::{fs, io};

use crate::target::{near::near, text::printable};

/// The kernel keeps so many bytes of a name (`TASK_COMM_LEN` less its end).
const KEPT: usize = 15;

/// Why no process can be watched by a name.
#[derive(Debug, thiserror::Error)]
#[error(
    "no process of the name {}: looked at the names of all {} that run{}; `ps -eo pid,comm` lists them",
    printable(.wanted.as_bytes(), 64), .searched,
    if .near.is_empty() { String::new() } else { format!("; there are: {}", .near.join(", ")) }
)]
pub struct NoSuchName {
    /// What was asked for.
    wanted: String,
    /// Processes that run.
    searched: usize,
    /// Names that may have been meant, escaped.
    near: Vec<String>,
}

/// Whether a process's name is the one that is wanted, which may be longer than what the kernel keeps.
fn is_named(name: &[u8], wanted: &str) -> bool {
    name == &wanted.as_bytes()[..wanted.len().min(KEPT)]
}

/// The processes of a name, by number.
///
/// # Errors
/// When /proc cannot be read.
pub fn named(wanted: &str) -> io::Result<Vec<u32>> {
    Ok(all()?.into_iter().filter(|(_, name)| is_named(name, wanted)).map(|(pid, _)| pid).collect())
}

/// What to say when there is none.
pub fn none_named(wanted: &str) -> NoSuchName {
    let all = all().unwrap_or_default();
    let names = all.iter().map(|(_, name)| printable(name, 64));
    NoSuchName { wanted: wanted.to_owned(), searched: all.len(), near: near(wanted, names) }
}

/// All processes with their names.
fn all() -> io::Result<Vec<(u32, Vec<u8>)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has ended meanwhile has no name any more.
        if let Ok(mut name) = fs::read(entry.path().join("comm")) {
            if name.last() == Some(&b'\n') {
                name.pop();
            }
            all.push((pid, name));
        }
    }
    all.sort_unstable();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_longer_than_the_kernel_keeps_is_found_by_its_beginning() {
        assert!(is_named(b"gunicorn", "gunicorn"));
        assert!(!is_named(b"gunicorn", "gunicor"));
        assert!(is_named(b"systemd-journal", "systemd-journald"));
        assert!(!is_named(b"systemd-journal", "systemd-journ"));
    }

    #[test]
    fn a_running_process_is_found_by_its_name() {
        let own = fs::read("/proc/self/comm").expect("readable");
        let own = String::from_utf8(own.trim_ascii_end().to_vec()).expect("a plain name");
        assert!(named(&own).expect("readable").contains(&std::process::id()));
        let error = none_named("no-such-name-at-all").to_string();
        assert!(
            error.starts_with("no process of the name no-such-name-at-all: looked at the names of all "),
            "{error}"
        );
    }
}

//! Tests that can't run here: each says why, with what proves it.
//!
//! libtest knows no skipped tests: one that returns early counts as passed. So each skip is printed as
//! `skipped: REASON`, and appended as a line `TEST: REASON` to the file that `LEAKPROBE_SKIPS` names. That
//! variable also says that this machine is a guest, which has no packages to install: without it, a program
//! that is missing is a failure.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{env, thread};

/// The file of skips.
pub const SKIPS: &str = "LEAKPROBE_SKIPS";

/// Says that the calling test can't run here, and why; the test then returns. `proof` is what was seen on
/// this machine, now: an error of the kernel, a file that is missing.
///
/// # Panics
///
/// When the file of skips can't be written: a skip that nobody hears of must not pass.
pub fn because(reason: &str, proof: impl Display) {
    let thread = thread::current();
    let line = line(thread.name().unwrap_or("(a test in a thread without a name)"), reason, &proof);
    println!("skipped: {reason} ({proof})");
    if let Some(file) = file() {
        append(&file, &line).unwrap_or_else(|e| panic!("failed to write a skip to {}: {e}", file.display()));
    }
}

/// The path of a program that the calling test needs; `None` after a skip, for a guest doesn't have it.
///
/// # Panics
///
/// When the program is missing and this is no guest; with the Debian package that has it.
pub fn unless_installed(program: &str, package: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH").unwrap_or_default();
    let found = find(program, env::split_paths(&folders));
    if found.is_none() {
        assert!(file().is_some(), "failed to find {program} in PATH: install the package {package}");
        because(&format!("there is no {program} in this guest"), format_args!("PATH is {folders:?}"));
    }
    found
}

/// The path of a shared library that the calling test needs; `None` after a skip, for a guest doesn't have it.
///
/// # Panics
///
/// When the library is missing and this is no guest; with the Debian package that has it.
pub fn unless_library(name: &str, package: &str) -> Option<PathBuf> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"].map(PathBuf::from);
    let found = find(name, folders.iter().cloned());
    if found.is_none() {
        assert!(file().is_some(), "failed to find {name}: install the package {package}");
        because(&format!("there is no {name} in this guest"), format_args!("not in {folders:?}"));
    }
    found
}

fn find(program: &str, mut folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    folders.find_map(|folder| Some(folder.join(program)).filter(|path| path.is_file()))
}

fn file() -> Option<PathBuf> {
    env::var_os(SKIPS).map(PathBuf::from)
}

/// One line, whatever the reason has in it.
fn line(test: &str, reason: &str, proof: &impl Display) -> String {
    format!("{test}: {reason} ({proof})").replace('\n', " ") + "\n"
}

fn append(file: &Path, line: &str) -> std::io::Result<()> {
    OpenOptions::new().create(true).append(true).open(file)?.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_are_lines_one_after_the_other() {
        let file = env::temp_dir().join(format!("leakprobe-skips.{}", std::process::id()));
        let name = thread::current().name().expect("libtest names threads by tests").to_owned();
        assert_eq!(name, "skip::tests::skips_are_lines_one_after_the_other");
        append(&file, &line(&name, "no modules", &"no\n/proc/modules")).expect("failed to append");
        append(&file, &line("other", "no nm", &2)).expect("failed to append");
        let text = std::fs::read_to_string(&file).expect("failed to read it back");
        std::fs::remove_file(&file).expect("failed to remove it");
        assert_eq!(text, format!("{name}: no modules (no /proc/modules)\nother: no nm (2)\n"));
    }

    #[test]
    fn programs_are_files_in_one_of_the_folders() {
        let this = env::current_exe().expect("this program");
        let (folder, name) = (this.parent().expect("a folder"), this.file_name().expect("a name"));
        let folders = || [PathBuf::from("/no/such/folder"), folder.to_path_buf()].into_iter();
        assert_eq!(find(name.to_str().expect("UTF-8"), folders()), Some(this.clone()));
        assert_eq!(find("no-such-program", folders()), None);
        assert_eq!(find("..", folders()), None, "a folder is no program");
    }
}

//! `cargo xtask tidy`: the invariants that ARCHITECTURE.md states and that no compiler checks, most of them
//! about what is absent. Also a unit test of this package, so that no change lands without it.

mod entry;
mod rules;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::command::workspace;

/// Something that breaks an invariant.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    /// From the workspace's folder.
    file: PathBuf,
    /// Counted from 1; 0 when it is about the whole file.
    line: usize,
    what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// What a look at the workspace gave.
#[derive(Debug, Default)]
struct Findings {
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    /// Rust files read.
    files: usize,
    /// Rules about a folder whose folder exists.
    rules: usize,
}

/// Checks, prints what it finds, and says how much was looked at.
///
/// # Errors
/// When an invariant is broken, or nothing was there to be checked.
pub fn run() -> anyhow::Result<()> {
    let findings = look(&workspace())?;
    for warning in &findings.warnings {
        eprintln!("warning: {warning}");
    }
    for problem in &findings.problems {
        eprintln!("error: {problem}");
    }
    if !findings.problems.is_empty() {
        bail!("failed to find the workspace tidy: {} problems", findings.problems.len());
    }
    println!(
        "tidy: {} files, {} of {} rules about folders applied, {} warnings",
        findings.files,
        findings.rules,
        rules::RULES.len(),
        findings.warnings.len()
    );
    Ok(())
}

fn look(root: &Path) -> anyhow::Result<Findings> {
    let mut findings = Findings::default();
    let mut files = Vec::new();
    for package in ["leakprobe", "leakprobe-common", "leakprobe-ebpf", "tests", "xtask"] {
        rust_files(&root.join(package), &mut files)?;
    }
    files.sort();
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(file);
        rules::check(name, &text, &mut findings);
        if name == Path::new(entry::FILE) {
            entry::check(name, &text, &mut findings.problems);
        }
    }
    findings.files = files.len();
    findings.rules =
        rules::RULES.iter().filter(|rule| files.iter().any(|file| rule.is_about(file, root))).count();
    if findings.files == 0 || findings.rules == 0 {
        bail!("failed to find a folder of {} that any invariant is about", root.display());
    }
    let map = root.join("ARCHITECTURE.md");
    if map.exists() {
        let text = fs::read_to_string(&map).with_context(|| format!("failed to read {}", map.display()))?;
        rules::check_map(&text, &mut findings.problems);
    }
    Ok(findings)
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let failed = || format!("failed to list {}", folder.display());
    for entry in fs::read_dir(folder).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let path = entry.path();
        if entry.file_type().with_context(failed)?.is_dir() {
            if entry.file_name() != "target" {
                rust_files(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        let findings = look(&workspace()).unwrap();
        assert_eq!(findings.problems, []);
    }

    #[test]
    fn a_folder_with_nothing_to_check_is_an_error() {
        assert!(look(Path::new("/proc/self/fdinfo")).is_err());
    }
}

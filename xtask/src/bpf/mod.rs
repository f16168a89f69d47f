//! `cargo xtask build-ebpf`: the committed BPF objects, and the check that they are what the sources give.
//!
//! The contract: the same sources and the same toolchain give the same bytes, in whatever folder.

mod build;
mod identity;
mod object;
mod toolchain;
mod wrapper;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use crate::command::workspace;
pub use toolchain::LINKER_VERSION;
pub use wrapper::run_as_rustc_wrapper;

/// Options of `build-ebpf`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Rebuild from nothing and fail when the committed objects differ; writes nothing
    #[arg(long)]
    check: bool,
    /// The processor on which the objects are to run
    #[arg(long, value_enum, default_value_t = Selection::All)]
    arch: Selection,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Selection {
    X86_64,
    Aarch64,
    All,
}

/// The processors that leakprobe runs on: where the arguments of a probed call are differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Architecture {
    /// As in file names and in the sources' `cfg(bpf_target_arch)`.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// A committed object, from the workspace's folder.
    pub fn committed(self, object: &str) -> PathBuf {
        Path::new("leakprobe/ebpf").join(format!("{object}.{}.bpf.o", self.name()))
    }
}

/// The objects, by the names of their programs in leakprobe-ebpf: for processes, and for the kernel's own memory.
pub const OBJECTS: [&str; 2] = ["leakprobe", "kernel"];

/// The record of the toolchain, from the workspace's folder.
const RECORD: &str = "leakprobe/ebpf/TOOLCHAIN";

/// Builds, or checks, the committed objects.
///
/// # Errors
/// When no toolchain is complete, the build fails, or (with `--check`) an object is not what the sources give.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let architectures: &[Architecture] = match arguments.arch {
        Selection::X86_64 => &[Architecture::X86_64],
        Selection::Aarch64 => &[Architecture::Aarch64],
        Selection::All => &[Architecture::X86_64, Architecture::Aarch64],
    };
    let record = workspace().join(RECORD);
    let recorded = identity::Identity::read(&record)?;
    let toolchain = toolchain::find(recorded.as_ref())?;
    let same_toolchain = recorded.as_ref() == Some(&toolchain.identity);
    eprint!("{}", toolchain.identity);
    if arguments.check {
        let Some(recorded) = recorded else {
            bail!("failed to find {RECORD}; build and commit the objects: cargo xtask build-ebpf");
        };
        if !same_toolchain {
            bail!(
                "failed to check the committed objects: this machine's toolchain gives other bytes than theirs.\n\
                 theirs, by {RECORD}:\n{recorded}here:\n{}install theirs, or build with this one \
                 (cargo xtask build-ebpf), run the tests, and commit {RECORD} and the objects",
                toolchain.identity
            );
        }
        return check(&toolchain, architectures);
    }
    if !same_toolchain && recorded.is_some() && arguments.arch != Selection::All {
        bail!(
            "failed to build for one processor: the toolchain of the other's objects differs ({RECORD}); build both, with --arch all"
        );
    }
    for &architecture in architectures {
        for (object, bytes) in build::build(&toolchain, architecture, &build_folder("bpf"))? {
            let name = architecture.committed(object);
            write_if_changed(&workspace().join(&name), &bytes)?;
            eprintln!("{}: {} bytes", name.display(), bytes.len());
        }
    }
    toolchain.identity.write(&record)
}

/// Whether this machine has the toolchain that made the committed objects.
///
/// # Errors
/// When the record of it cannot be read.
pub fn has_recorded_toolchain() -> anyhow::Result<bool> {
    let recorded = identity::Identity::read(&workspace().join(RECORD))?;
    let found = toolchain::find(recorded.as_ref()).ok();
    Ok(recorded.is_some() && found.map(|toolchain| toolchain.identity) == recorded)
}

/// Prints which toolchain builds the BPF programs.
///
/// # Errors
/// When none is complete: with what is missing.
pub fn show_toolchain() -> anyhow::Result<()> {
    let recorded = identity::Identity::read(&workspace().join(RECORD))?;
    eprint!("{}", toolchain::find(recorded.as_ref())?.identity);
    Ok(())
}

fn check(toolchain: &toolchain::Toolchain, architectures: &[Architecture]) -> anyhow::Result<()> {
    // From nothing: what cargo thinks is fresh is not what is to be relied on here.
    let folder = build_folder("bpf-check");
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("failed to remove {}", folder.display()));
        }
        _ => {}
    }
    let mut differing = Vec::new();
    for &architecture in architectures {
        for (object, built) in build::build(toolchain, architecture, &folder)? {
            let name = architecture.committed(object);
            let committed = fs::read(workspace().join(&name)).with_context(|| {
                format!("failed to read {}; build it: cargo xtask build-ebpf", name.display())
            })?;
            match first_difference(&committed, &built) {
                None => eprintln!("{}: {} bytes, as built from the sources", name.display(), built.len()),
                Some(offset) => differing.push(format!(
                    "{} ({} bytes; {} as built now; first difference at {offset:#x})",
                    name.display(),
                    committed.len(),
                    built.len()
                )),
            }
        }
    }
    if !differing.is_empty() {
        bail!(
            "failed to get the committed objects from the sources, with the toolchain of {RECORD}: {}; build and \
             commit them: cargo xtask build-ebpf",
            differing.join(", ")
        );
    }
    Ok(())
}

fn build_folder(name: &str) -> PathBuf {
    workspace().join("target").join(name)
}

/// Leaves an equal file alone, so that cargo does not rebuild what embeds it.
fn write_if_changed(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if fs::read(file).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
    }
    fs::write(file, bytes).with_context(|| format!("failed to write {}", file.display()))
}

fn first_difference(left: &[u8], right: &[u8]) -> Option<usize> {
    let within = left.iter().zip(right).position(|(left, right)| left != right);
    within.or_else(|| (left.len() != right.len()).then(|| left.len().min(right.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(first_difference(b"abc", b"abc"), None);
        assert_eq!(first_difference(b"abc", b"abd"), Some(2));
        assert_eq!(first_difference(b"abc", b"abcd"), Some(3));
        assert_eq!(first_difference(b"", b"a"), Some(0));
    }
}

//! QEMU: a version that runs every kernel of the matrix.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use super::{guest, mirror::Mirror};
use crate::{
    bpf::Architecture,
    command,
    debian::{self, Evidence, Need},
};

/// The oldest that is used. With 7.2, of Debian 12 itself, kernel 6.12 panics in one boot of ten: cmpxchg16b leaves
/// wrong flags.
const OLDEST: u32 = 8;

/// What every guest needs beside QEMU.
const NEEDS: &[Need] = &[
    Need { evidence: Evidence::Program("cpio"), package: "cpio", purpose: "makes the guests' file systems" },
    Need {
        evidence: Evidence::Program("make"),
        package: "make",
        purpose: "builds the guests' kernel module",
    },
    Need { evidence: Evidence::Program("cc"), package: "gcc", purpose: "compiles what guests run" },
    Need { evidence: Evidence::Program("g++"), package: "g++", purpose: "compiles what guests run" },
];

/// Sees to it that there are QEMU for these architectures, and what makes images.
///
/// # Errors
/// When something is missing and cannot be installed: one line that says what.
pub fn ensure(cache: &Path, architectures: &[Architecture]) -> Result<()> {
    debian::ensure(NEEDS)?;
    let lacking: Vec<Architecture> =
        architectures.iter().copied().filter(|&architecture| version(architecture) < OLDEST).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = lacking.iter().map(|&architecture| package(architecture)).collect();
    let wanted = format!("QEMU {OLDEST} or later ({})", packages.join(", "));
    if !command::is_root() || command::find_program("apt-get").is_none() {
        bail!("failed to find {wanted}; install it: on Debian 12 from bookworm-backports");
    }
    eprintln!("missing on this machine:\n  {wanted}: runs the guests");
    install(cache, &packages).with_context(|| format!("failed to install {wanted}"))?;
    match lacking.iter().find(|&&architecture| version(architecture) < OLDEST) {
        Some(&architecture) => bail!("failed to find {wanted}: {} is too old", guest::program(architecture)),
        None => Ok(()),
    }
}

fn package(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "qemu-system-x86",
        Architecture::Aarch64 => "qemu-system-arm",
    }
}

/// Major version of the machine's QEMU; 0 when there is none.
fn version(architecture: Architecture) -> u32 {
    let text = command::read(Command::new(guest::program(architecture)).arg("--version")).unwrap_or_default();
    parse_version(&text).unwrap_or(0)
}

/// `QEMU emulator version 10.0.2 (Debian ...)`.
fn parse_version(text: &str) -> Option<u32> {
    text.split_once("version ")?.1.split('.').next()?.parse().ok()
}

/// Debian 12 has a newer QEMU among its backports, which most machines do not list: a private list of
/// sources, for this one installation. Elsewhere the machine's own is new enough.
fn install(cache: &Path, packages: &[&str]) -> Result<()> {
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !os.lines().any(|line| line == "VERSION_CODENAME=bookworm") {
        return debian::install_with(&[], packages);
    }
    let folder = cache.join("apt/backports");
    fs::create_dir_all(folder.join("lists/partial"))
        .with_context(|| format!("failed to make {}", folder.display()))?;
    let mirror = Mirror::find()?;
    let sources: String = ["bookworm", "bookworm-backports", "bookworm-security"]
        .iter()
        .map(|suite| format!("deb {} {suite} main\n", mirror.of(suite)))
        .collect();
    let list = folder.join("sources.list");
    fs::write(&list, sources).with_context(|| format!("failed to write {}", list.display()))?;
    let options = [
        format!("Dir::State::lists={}", folder.join("lists").display()),
        format!("Dir::Etc::sourcelist={}", list.display()),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        "Acquire::Languages=none".to_owned(),
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        "APT::Default-Release=bookworm-backports".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
    ];
    debian::install_with(&options, packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), Some(10));
        assert_eq!(parse_version("sh: not found"), None);
    }
}

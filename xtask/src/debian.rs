//! Debian packages: which of the things that a task needs are missing, and how to install them.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::command;

/// Something a task needs beyond Rust and a C compiler.
pub struct Need {
    /// What shows that it is there.
    pub evidence: Evidence,
    /// The Debian package that brings it.
    pub package: &'static str,
    /// What for.
    pub purpose: &'static str,
}

/// What shows that a need is met.
pub enum Evidence {
    /// A program in one of the folders of `PATH`.
    Program(&'static str),
    /// An installed package, where a file would not tell which package it is of.
    Package(&'static str),
    /// A shared library of this name in one of the folders where Debian puts them.
    Library(&'static str),
}

impl Evidence {
    /// Looks for it.
    pub fn is_there(&self) -> bool {
        match self {
            // Daemons live in folders that are not on everyone's PATH.
            Self::Program(name) => {
                command::find_program(name).is_some()
                    || ["/usr/sbin", "/sbin"].iter().any(|folder| Path::new(folder).join(name).is_file())
            }
            Self::Package(name) => {
                let mut query = Command::new("dpkg-query");
                query.args(["--show", "--showformat=${db:Status-Status}", name]);
                command::read(&mut query).is_ok_and(|status| status == "installed")
            }
            Self::Library(name) => ["x86_64-linux-gnu", "aarch64-linux-gnu"]
                .iter()
                .any(|triple| Path::new("/usr/lib").join(triple).join(name).exists()),
        }
    }
}

/// The needs that are not met.
pub fn missing(needs: &[Need]) -> Vec<&Need> {
    needs.iter().filter(|need| !need.evidence.is_there()).collect()
}

/// Installs the packages of all needs that are not met, and checks that they are met then.
///
/// # Errors
/// When something is missing and this is not Debian or not root: with the command that installs it. When
/// apt-get fails, or did not bring what the need looks for.
pub fn ensure(needs: &[Need]) -> anyhow::Result<()> {
    let lacking = missing(needs);
    if lacking.is_empty() {
        return Ok(());
    }
    let list: Vec<String> =
        lacking.iter().map(|need| format!("  {}: {}", need.package, need.purpose)).collect();
    let mut packages: Vec<&str> = lacking.iter().map(|need| need.package).collect();
    packages.dedup();
    eprintln!("missing on this machine:\n{}", list.join("\n"));
    if !command::is_root() || command::find_program("apt-get").is_none() {
        bail!("failed to find what is listed above; install it: apt-get install {}", packages.join(" "));
    }
    install(&packages)?;
    if let Some(still) = missing(needs).first() {
        bail!("failed to find what package {} should have brought ({})", still.package, still.purpose);
    }
    Ok(())
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    install_with(&[], packages)
}

/// Installs packages, without starting the services that some of them bring. `options` are apt's, such as a
/// list of sources of its own.
///
/// # Errors
/// When apt-get fails, also after a renewal of its lists.
pub fn install_with(options: &[String], packages: &[&str]) -> anyhow::Result<()> {
    let apt_get = || {
        let mut command = apt_get();
        options.iter().for_each(|option| {
            command.args(["-o", option]);
        });
        command
    };
    let policy = NoServices::begin()?;
    // A fresh machine or container has no package lists yet, and old lists name files that are gone from
    // the mirror: so after a failure once more, with new lists.
    if command::run(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(packages)).is_err() {
        command::run(apt_get().arg("update"))?;
        command::run(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(packages))?;
    }
    policy.end()
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command.args(["--quiet", "-o", "DPkg::Lock::Timeout=300"]);
    command
}

/// Debian's hook for "start no service now" (policy-rc.d(8)), in place while this lives. A file of another
/// author stays as it is: whoever wrote it has decided already.
struct NoServices {
    /// The file to take away again; none when it is not ours.
    ours: Option<PathBuf>,
}

/// Exit status 101 is "action forbidden by policy".
const POLICY: &str = "#!/bin/sh\n# Written by leakprobe's `cargo xtask` for one apt-get run.\nexit 101\n";

impl NoServices {
    fn begin() -> anyhow::Result<Self> {
        Self::begin_at(Path::new("/usr/sbin/policy-rc.d"))
    }

    fn begin_at(file: &Path) -> anyhow::Result<Self> {
        match fs::read(file) {
            // Ours, left by a run that was killed: take it over.
            Ok(text) if text == POLICY.as_bytes() => return Ok(Self { ours: Some(file.to_path_buf()) }),
            Ok(_) => return Ok(Self { ours: None }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("failed to read {}", file.display())),
        }
        fs::write(file, POLICY).with_context(|| format!("failed to write {}", file.display()))?;
        let policy = Self { ours: Some(file.to_path_buf()) };
        fs::set_permissions(file, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("failed to make {} executable", file.display()))?;
        Ok(policy)
    }

    fn end(mut self) -> anyhow::Result<()> {
        self.remove()
    }

    fn remove(&mut self) -> anyhow::Result<()> {
        let Some(file) = self.ours.take() else { return Ok(()) };
        fs::remove_file(&file)
            .with_context(|| format!("failed to remove {}; remove it, or no service starts", file.display()))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("warning: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_policy_is_put_in_and_taken_away() {
        let file = std::env::temp_dir().join(format!("leakprobe-policy-{}", std::process::id()));
        let policy = NoServices::begin_at(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), POLICY);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o755);
        policy.end().unwrap();
        assert!(!file.exists());
        // What a killed run left is taken over, and taken away; so is it when installing fails.
        fs::write(&file, POLICY).unwrap();
        drop(NoServices::begin_at(&file).unwrap());
        assert!(!file.exists());
    }

    #[test]
    fn a_policy_of_another_author_stays() {
        let file = std::env::temp_dir().join(format!("leakprobe-policy-other-{}", std::process::id()));
        fs::write(&file, "#!/bin/sh\nexit 0\n").unwrap();
        NoServices::begin_at(&file).unwrap().end().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "#!/bin/sh\nexit 0\n");
        fs::remove_file(&file).unwrap();
    }

    #[test]
    fn evidence_is_looked_for() {
        assert!(Evidence::Program("sh").is_there());
        assert!(!Evidence::Program("no-such-program-here").is_there());
        assert!(!Evidence::Package("no-such-package-here").is_there());
        assert!(!Evidence::Library("libno-such-library.so.1").is_there());
    }
}

//! What guests run, built: leakprobe, its live tests and their victims.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    archive::Archive,
    cross::{self, Cross},
    image::{self, Payload},
    mirror::Mirror,
};
use crate::{bpf::Architecture, command};

/// Builds what guests of an architecture run.
///
/// # Errors
/// When a build fails, or a package cannot be fetched.
pub fn build(cache: &Path, mirror: &Mirror, architecture: Architecture) -> Result<Payload> {
    let archive = Archive::open(cache, mirror, &["bookworm"], architecture)?;
    let busybox = archive.unpacked(&BTreeSet::from(["busybox-static".to_owned()]))?.join("bin/busybox");
    match architecture {
        Architecture::X86_64 => native(busybox),
        Architecture::Aarch64 => crossed(cache, mirror, busybox),
    }
}

fn native(busybox: PathBuf) -> Result<Payload> {
    command::run(command::cargo().args(["build", "--release", "--package", "leakprobe"]))?;
    let live_tests = live_tests(&[])?;
    let target = target();
    let victims = target.join("vm/victims-x86_64");
    fs::create_dir_all(&victims).with_context(|| format!("failed to make {}", victims.display()))?;
    command::run(
        command::cargo()
            .args(["run", "--quiet", "--package", "leakprobe-tests", "--bin", "victims", "--", "--to"])
            .arg(&victims),
    )?;
    let leakprobe = target.join("release/leakprobe");
    let mut executables = vec![leakprobe.clone(), live_tests.clone()];
    for entry in fs::read_dir(&victims).with_context(|| format!("failed to read {}", victims.display()))? {
        executables.push(entry.context("failed to read the folder of victims")?.path());
    }
    let libraries =
        image::libraries(&executables)?.into_iter().filter(|(file, _)| !file.starts_with(&victims)).collect();
    Ok(Payload { leakprobe, live_tests, victims, busybox, libraries })
}

/// For the other processor, by the compiler and the library that [`cross`] names.
fn crossed(cache: &Path, mirror: &Mirror, busybox: PathBuf) -> Result<Payload> {
    let packages: BTreeSet<String> = cross::packages().iter().map(|&name| name.to_owned()).collect();
    let toolchain = if packages.is_empty() {
        PathBuf::new()
    } else {
        let suites = ["bookworm", "bookworm-security"];
        Archive::open(cache, mirror, &suites, Architecture::Aarch64)?.unpacked(&packages)?
    };
    let Cross { leakprobe, live_tests, victims, libraries } =
        cross::build(&toolchain, &target().join("vm/aarch64"))?;
    Ok(Payload { leakprobe, live_tests, victims, busybox, libraries })
}

/// The workspace's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| command::workspace().join("target"), PathBuf::from)
}

/// Builds the live tests' executable and finds it in what cargo says. `options` go to cargo.
///
/// # Errors
/// When it does not build.
pub fn live_tests(options: &[&str]) -> Result<PathBuf> {
    let mut cargo = command::cargo();
    cargo.args(["test", "--no-run", "--package", "leakprobe-tests", "--test", "live"]).args(options);
    // Shown while it goes on; then asked again, which costs nothing, for the path.
    command::run(&mut cargo)?;
    let text = command::read(cargo.args(["--message-format", "json"]))?;
    let executable = text.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        // The package's programs are built as well.
        let is_test = message["target"]["name"] == "live";
        message["executable"].as_str().filter(|_| is_test).map(PathBuf::from)
    });
    executable.context("failed to find the live tests' executable in what cargo said")
}

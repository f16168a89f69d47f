//! One build of leakprobe-ebpf, with the flags that make it reproducible.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;

use super::{Architecture, OBJECTS, object, toolchain::Toolchain, wrapper};
use crate::command::{run, workspace};

/// Builds the objects for one processor in a target folder, and gives each with its name, as it is to be committed.
///
/// # Errors
/// When the sources do not compile, or the result is not acceptable (see [`object`]).
pub fn build(
    toolchain: &Toolchain,
    architecture: Architecture,
    target: &Path,
) -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
    let registry = cargo_home()?.join("registry/src");
    // The paths to remap are those of unpacked packages: so there must be some.
    run(cargo(toolchain).args(["fetch", "--quiet", "--locked"]))?;
    let mut cargo = cargo(toolchain);
    cargo.args([
        "build",
        "--release",
        "--locked",
        "-Z",
        "build-std=core",
        "--target",
        TARGET,
        "--target-dir",
    ]);
    cargo.arg(target);
    cargo.env(
        "CARGO_ENCODED_RUSTFLAGS",
        flags(toolchain, architecture, &registry).join(&OsString::from("\x1f")),
    );
    cargo.env("RUSTC_WRAPPER", env::current_exe().context("failed to find this program's own file")?);
    cargo.env(wrapper::SWITCH, &registry);
    run(&mut cargo)
        .with_context(|| format!("failed to build the BPF programs for {}", architecture.name()))?;

    OBJECTS
        .into_iter()
        .map(|name| Ok((name, finished(&target.join(TARGET).join("release").join(name))?)))
        .collect()
}

/// A linked object, as it is to be committed.
fn finished(linked: &Path) -> anyhow::Result<Vec<u8>> {
    let linked = fs::read(linked).with_context(|| format!("failed to read {}", linked.display()))?;
    let stripped = object::strip(&linked)?;
    object::refuse_new_atomics(&stripped)?;
    Ok(stripped)
}

/// The toolchain's cargo, in the folder of the BPF programs, without settings that change what it makes.
fn cargo(toolchain: &Toolchain) -> Command {
    let mut cargo = Command::new(&toolchain.cargo.program);
    cargo.args(toolchain.cargo.arguments);
    cargo.current_dir(workspace().join("leakprobe-ebpf")).stdin(Stdio::null());
    for name in env::vars_os().map(|(name, _)| name).filter(|name| changes_the_build(&name.to_string_lossy()))
    {
        cargo.env_remove(name);
    }
    cargo.envs(toolchain.cargo.environment.iter().map(|(name, value)| (name, value)));
    cargo
}

const TARGET: &str = "bpfel-unknown-none";

/// Paths are remapped to names that exist nowhere: BTF has them, and LLVM would copy the lines of a source
/// file that it finds under such a name into the object.
fn flags(toolchain: &Toolchain, architecture: Architecture, registry: &Path) -> Vec<OsString> {
    let mut flags: Vec<OsString> = vec![
        format!("--cfg=bpf_target_arch=\"{}\"", architecture.name()).into(),
        // 32-bit arithmetic and jumps, which v2 emulates by pairs of shifts, and which every supported kernel
        // has (5.1). Of v3, only atomics that return a value came later (5.12): `object` refuses them.
        "-Ctarget-cpu=v3".into(),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        joined("-Clinker=", &toolchain.linker, ""),
        // Not in messages: they should name the files that a contributor has.
        "--remap-path-scope=macro,debuginfo,object".into(),
        joined("--remap-path-prefix=", &workspace(), "=/leakprobe-source"),
    ];
    // Later flags win: so the folder inside a registry, named after its address, comes after the registry.
    for folder in registry_folders(registry) {
        flags.push(joined("--remap-path-prefix=", &folder, "=/leakprobe-registry"));
    }
    let library = toolchain.sysroot.join("lib/rustlib/src/rust");
    if let Ok(real) = library.canonicalize() {
        flags.push(joined("--remap-path-prefix=", &real, "=/leakprobe-rust"));
    }
    flags.push(joined("--remap-path-prefix=", &library, "=/leakprobe-rust"));
    flags
}

fn registry_folders(registry: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(registry).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

fn joined(before: &str, path: &Path, after: &str) -> OsString {
    let mut flag = OsString::from(before);
    flag.push(path);
    flag.push(after);
    flag
}

fn cargo_home() -> anyhow::Result<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
        .context("failed to find cargo's folder: neither CARGO_HOME nor HOME is set")
}

/// Settings of the user, of CI, or of the `cargo run` that started this task, that would reach the compiler.
/// `LD_LIBRARY_PATH` is the latter's: it names the libraries of another compiler.
fn changes_the_build(name: &str) -> bool {
    const PREFIXES: [&str; 4] = ["CARGO_PROFILE_", "CARGO_BUILD_", "CARGO_TARGET_", "CARGO_UNSTABLE_"];
    const NAMES: [&str; 9] = [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_BOOTSTRAP",
        "RUSTUP_TOOLCHAIN",
        "CARGO_INCREMENTAL",
        "LD_LIBRARY_PATH",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_reach_the_compiler_are_taken_out() {
        for name in ["RUSTFLAGS", "CARGO_PROFILE_RELEASE_LTO", "CARGO_BUILD_TARGET", "LD_LIBRARY_PATH"] {
            assert!(changes_the_build(name), "{name}");
        }
        for name in ["PATH", "CARGO_HOME", "CARGO_HTTP_PROXY", "RUSTUP_HOME"] {
            assert!(!changes_the_build(name), "{name}");
        }
    }
}

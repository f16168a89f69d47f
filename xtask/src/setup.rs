//! `cargo xtask setup`: everything that the other tasks need and that Debian has packages for. CI runs it; a
//! contributor may.

use std::process::Command;

use crate::{
    bpf, command,
    debian::{self, Evidence, Need},
    test,
};

/// The BPF toolchain. By package, not by file: bookworm also has a much older /usr/bin/rustc.
const BPF_NEEDS: &[Need] = &[
    Need {
        evidence: Evidence::Package("rustc-web"),
        package: "rustc-web",
        purpose: "compiles the BPF programs",
    },
    Need {
        evidence: Evidence::Package("cargo-web"),
        package: "cargo-web",
        purpose: "builds the BPF programs",
    },
    Need {
        evidence: Evidence::Package("rust-web-src"),
        package: "rust-web-src",
        purpose: "source of `core`, of which there is none compiled for BPF",
    },
    Need {
        evidence: Evidence::Package("llvm-22-dev"),
        package: "llvm-22-dev",
        purpose: "bpf-linker is built on it",
    },
];

/// Installs what is missing.
///
/// # Errors
/// When something is missing and this is not Debian or not root, or an installation fails.
pub fn run() -> anyhow::Result<()> {
    debian::ensure(test::NEEDS)?;
    if bpf::has_recorded_toolchain()? {
        return Ok(());
    }
    debian::ensure(BPF_NEEDS)?;
    let linker = command::find_program("bpf-linker").and_then(|program| {
        command::read(Command::new(program).arg("--version").env_remove("LD_LIBRARY_PATH")).ok()
    });
    if linker.as_deref() != Some(&format!("bpf-linker {}", bpf::LINKER_VERSION)) {
        // The command that the advice of `build-ebpf` shows.
        command::run(command::cargo().env("LLVM_PREFIX", "/usr/lib/llvm-22").args([
            "install",
            "--locked",
            &format!("bpf-linker@{}", bpf::LINKER_VERSION),
            "--no-default-features",
            "--features",
            "llvm-22",
        ]))?;
    }
    bpf::show_toolchain()
}

//! leakprobe, its live tests and their victims for 64-bit Arm, built on another machine.
//!
//! rustup's standard library for that target is taken where it is installed. Elsewhere it is Debian's: the
//! compiler of `rustc-web`, which builds the BPF programs too, and beside it the same package's library for
//! arm64, unpacked into a folder and not installed.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::{
    command,
    debian::{self, Evidence, Need},
};

/// What runs in an Arm guest.
#[derive(Debug)]
pub struct Cross {
    /// The tool, a release build.
    pub leakprobe: PathBuf,
    /// The live tests' executable.
    pub live_tests: PathBuf,
    /// The folder of all victims, for `LEAKPROBE_VICTIMS`.
    pub victims: PathBuf,
    /// Shared libraries, with the loader: the file here, and its absolute path in the guest.
    pub libraries: Vec<(PathBuf, String)>,
}

const TARGET: &str = "aarch64-unknown-linux-gnu";
const C_COMPILER: &str = "aarch64-linux-gnu-gcc";
const CPP_COMPILER: &str = "aarch64-linux-gnu-g++";

/// What is installed, of the machine's own distribution.
const NEEDS: &[Need] = &[
    Need {
        evidence: Evidence::Program(C_COMPILER),
        package: "gcc-aarch64-linux-gnu",
        purpose: "compiles and links for the Arm guest",
    },
    Need {
        evidence: Evidence::Program(CPP_COMPILER),
        package: "g++-aarch64-linux-gnu",
        purpose: "compiles the test programs in C++ for the Arm guest",
    },
    // A cross compiler without it exists: it is only recommended by that of C.
    Need {
        evidence: Evidence::Package("libc6-dev-arm64-cross"),
        package: "libc6-dev-arm64-cross",
        purpose: "the Arm guest's C library",
    },
];

/// As above, where rustup has not the target.
const COMPILER_NEEDS: &[Need] = &[Need {
    evidence: Evidence::Package("rustc-web"),
    package: "rustc-web",
    purpose: "compiles Rust for the Arm guest (or: rustup target add aarch64-unknown-linux-gnu)",
}];

/// Debian's compiler; another one of this name may stand before it in the `PATH`.
const DEBIAN_COMPILER: &str = "/usr/bin/rustc";

/// The libraries of which programs here are made; what they need in turn is among them.
const LIBRARIES: &[&str] = &[
    "libc.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "libstdc++.so.6",
    // Empty since glibc 2.34, but asked for by `-ldl` and `-pthread` with an older one.
    "libdl.so.2",
    "libpthread.so.0",
];
/// It is opened at the path that is written in every program.
const LOADER: (&str, &str) = ("ld-linux-aarch64.so.1", "/lib");
/// The first of the folders in which Debian's loader looks.
const LIBRARY_FOLDER: &str = "/lib/aarch64-linux-gnu";

/// The Debian packages of arm64 that [`build`] wants unpacked in one folder; none where
/// rustup has the target. They must be of the version of the installed `rustc-web`.
pub fn packages() -> &'static [&'static str] {
    if rustup_library().is_some() { &[] } else { &["libstd-rust-web-dev"] }
}

/// Builds everything. `toolchain` is the folder with the unpacked [`packages`], `target_dir` one that is kept
/// from run to run.
///
/// # Errors
/// When something is missing and cannot be installed, or a build fails.
pub fn build(toolchain: &Path, target_dir: &Path) -> anyhow::Result<Cross> {
    debian::ensure(NEEDS)?;
    let compiler = Compiler::find(toolchain, target_dir)?;
    compiler.run(&["build", "--release", "--package", "leakprobe"])?;
    let tests = compiler.run(&["test", "--no-run", "--package", "leakprobe-tests", "--test", "live"])?;
    let victims = target_dir.join("victims");
    build_victims(&compiler, &executable(&tests, "bin", "rust_victim")?, &victims)?;
    Ok(Cross {
        leakprobe: target_dir.join(TARGET).join("release/leakprobe"),
        live_tests: executable(&tests, "test", "live")?,
        victims,
        libraries: libraries()?,
    })
}

/// A Rust compiler that has the target's standard library.
struct Compiler<'a> {
    /// Another one than cargo takes by itself.
    program: Option<&'static str>,
    /// The folder with the host's and the target's libraries, where it is not the compiler's own.
    sysroot: Option<PathBuf>,
    target_dir: &'a Path,
}

impl<'a> Compiler<'a> {
    fn find(toolchain: &Path, target_dir: &'a Path) -> anyhow::Result<Self> {
        if rustup_library().is_some() {
            return Ok(Self { program: None, sysroot: None, target_dir });
        }
        debian::ensure(COMPILER_NEEDS)?;
        let own = command::read(rustc(DEBIAN_COMPILER).args(["--print", "sysroot"]))?;
        let sysroot = target_dir.join("sysroot");
        join_sysroots(Path::new(&own), &toolchain.join("usr"), &sysroot)?;
        Ok(Self { program: Some(DEBIAN_COMPILER), sysroot: Some(sysroot), target_dir })
    }

    /// How the victims' own compiler of Rust is told all that.
    fn for_victims(&self) -> Vec<String> {
        let mut arguments: Vec<String> =
            self.program.iter().flat_map(|program| ["--rustc".to_owned(), (*program).to_owned()]).collect();
        let mut flags = vec![format!("--target={TARGET}"), format!("-Clinker={C_COMPILER}")];
        flags.extend(self.sysroot.iter().map(|sysroot| format!("--sysroot={}", sysroot.display())));
        for flag in flags {
            arguments.extend(["--rustc-flag".to_owned(), flag]);
        }
        arguments
    }

    /// Runs cargo for the target, and returns its messages, one JSON object a line.
    fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut cargo = command::cargo();
        cargo.args(arguments).args(["--target", TARGET, "--message-format", "json-render-diagnostics"]);
        if let Some(sysroot) = &self.sysroot {
            // Joined to the flags of .cargo/config.toml; the environment's would take their place. Build
            // scripts and procedural macros, which are the host's, get neither.
            let sysroot = Value::from(sysroot.display().to_string());
            cargo.args(["--config", &format!("build.rustflags=[\"--sysroot\", {sysroot}]")]);
        }
        for name in
            ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "LD_LIBRARY_PATH", "LIBRARY_PATH"]
        {
            cargo.env_remove(name);
        }
        cargo.envs(self.program.map(|program| ("RUSTC", program)));
        cargo
            .env("CARGO_TARGET_DIR", self.target_dir)
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", C_COMPILER)
            .env("CC_aarch64_unknown_linux_gnu", C_COMPILER)
            .env("AR_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-ar")
            // liblzma from source: the host's is no use.
            .env("LZMA_API_STATIC", "1")
            // An initramfs holds the tests: lines suffice.
            .env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only");
        let shown = command::show(&cargo);
        eprintln!("+ {shown}");
        let child = cargo.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
        let output = child.and_then(|child| child.wait_with_output());
        let output = output.with_context(|| format!("failed to run `{shown}`"))?;
        if !output.status.success() {
            bail!("`{shown}` failed: {}", output.status);
        }
        String::from_utf8(output.stdout).with_context(|| format!("failed to read the output of `{shown}`"))
    }
}

/// Where rustup's library for the target lies, if it is installed.
fn rustup_library() -> Option<PathBuf> {
    let folder = command::read(rustc("rustc").args(["--print", "target-libdir", "--target", TARGET])).ok()?;
    // The path is printed whether or not anything is there.
    Some(PathBuf::from(folder)).filter(|folder| folder.is_dir())
}

fn rustc(program: &str) -> Command {
    let mut command = Command::new(program);
    // `cargo run` puts the libraries of its own compiler there.
    command.env_remove("LD_LIBRARY_PATH").current_dir(command::workspace());
    command
}

/// A folder that is a sysroot for both: the host's libraries of one, and the target's of another.
fn join_sysroots(host: &Path, target: &Path, joined: &Path) -> anyhow::Result<()> {
    let libraries = joined.join("lib/rustlib");
    let from = target.join("lib/rustlib").join(TARGET);
    if !from.join("lib").is_dir() {
        bail!(
            "failed to find Rust's standard library for {TARGET} in {}; unpack libstd-rust-web-dev of arm64 there",
            target.display()
        );
    }
    if libraries.exists() {
        fs::remove_dir_all(&libraries).with_context(|| format!("failed to empty {}", libraries.display()))?;
    }
    fs::create_dir_all(&libraries).with_context(|| format!("failed to create {}", libraries.display()))?;
    let hosts = host.join("lib/rustlib");
    let entries = fs::read_dir(&hosts).with_context(|| format!("failed to list {}", hosts.display()))?;
    let mut links = vec![(from, libraries.join(TARGET))];
    for entry in entries {
        let entry = entry.with_context(|| format!("failed to list {}", hosts.display()))?;
        if entry.file_name() != TARGET {
            links.push((entry.path(), libraries.join(entry.file_name())));
        }
    }
    for (to, link) in links {
        let to = fs::canonicalize(&to).with_context(|| format!("failed to find {}", to.display()))?;
        symlink(&to, &link).with_context(|| format!("failed to link {}", link.display()))?;
    }
    Ok(())
}

/// The executable of a target, from cargo's messages.
fn executable(messages: &str, kind: &str, name: &str) -> anyhow::Result<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_target = |message: &Value| {
        message["target"]["name"] == name
            && message["target"]["kind"].as_array().is_some_and(|all| all[0] == kind)
    };
    let found =
        messages.filter(of_target).find_map(|message| message["executable"].as_str().map(PathBuf::from));
    found.with_context(|| format!("failed to find the {kind} {name} among what cargo has built"))
}

/// Builds all victims anew: a few seconds, and nothing old is left among them.
fn build_victims(compiler: &Compiler<'_>, rust_victim: &Path, folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("failed to remove {}", folder.display()));
        }
        _ => {}
    }
    let mut victims = command::cargo();
    victims.args(["run", "--quiet", "--package", "leakprobe-tests", "--bin", "victims", "--", "--to"]);
    victims.arg(folder).args(["--cc", C_COMPILER, "--cxx", CPP_COMPILER, "--rust"]).arg(rust_victim);
    victims.args(compiler.for_victims());
    command::run(&mut victims)
}

/// The files of the loader and of [`LIBRARIES`], as the cross compiler finds them.
fn libraries() -> anyhow::Result<Vec<(PathBuf, String)>> {
    let names = LIBRARIES.iter().map(|name| (*name, LIBRARY_FOLDER));
    names.chain([LOADER]).map(|(name, folder)| Ok((library(name)?, format!("{folder}/{name}")))).collect()
}

fn library(name: &str) -> anyhow::Result<PathBuf> {
    let found = command::read(Command::new(C_COMPILER).arg(format!("-print-file-name={name}")))?;
    // A name that it does not find is printed as it is.
    fs::canonicalize(&found).with_context(|| {
        format!("failed to find {name} of the Arm cross compiler; install libc6-dev-arm64-cross, libstdc++6-arm64-cross")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executable_is_told_by_kind_and_name() {
        let line = |kind: &str, name: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"{name}"}},"executable":{executable}}}"#
            )
        };
        let messages = [
            line("lib", "live", "null"),
            "not JSON".to_owned(),
            line("test", "victims", "\"/a\""),
            line("bin", "live", "\"/b\""),
            line("test", "live", "\"/c\""),
        ];
        assert_eq!(executable(&messages.join("\n"), "test", "live").unwrap(), Path::new("/c"));
        let error = executable(&messages.join("\n"), "test", "other").unwrap_err().to_string();
        assert!(error.contains("test other"), "{error}");
    }

    #[test]
    fn a_joined_sysroot_has_both_libraries() {
        let folder = std::env::temp_dir().join(format!("leakprobe-sysroot-{}", std::process::id()));
        let (host, target, joined) = (folder.join("host"), folder.join("target"), folder.join("joined"));
        let error = join_sysroots(&host, &target, &joined).unwrap_err().to_string();
        assert!(error.contains("libstd-rust-web-dev"), "{error}");
        let place = |root: &Path, name: &str| root.join("lib/rustlib").join(name).join("lib");
        for (root, name) in [(&host, "host-triple"), (&host, TARGET), (&target, TARGET)] {
            fs::create_dir_all(place(root, name)).unwrap();
        }
        fs::write(place(&target, TARGET).join("mark"), "").unwrap();
        // Twice: it is made anew on each run.
        for _ in 0..2 {
            join_sysroots(&host, &target, &joined).unwrap();
            assert!(place(&joined, "host-triple").is_dir());
            assert!(place(&joined, TARGET).join("mark").is_file());
        }
        fs::remove_dir_all(folder).unwrap();
    }
}

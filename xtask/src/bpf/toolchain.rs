//! The compilers that can build the BPF programs, and which of them this machine has.
//!
//! BPF has no precompiled `core`, so each needs three things: a compiler that builds it from source
//! (nightly, or `RUSTC_BOOTSTRAP=1`), that source, and bpf-linker, built on an LLVM that is not older than
//! the compiler's. Debian has packages for all but the last; elsewhere rustup's nightly has them.

use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::bail;

use super::identity::Identity;
use crate::command::{find_program, read};

/// The version that setup installs; others work, but give other objects.
pub const LINKER_VERSION: &str = "0.13.0";

/// The Debian packages of the compiler, its library's source, and the LLVM that bpf-linker is built on.
pub const PACKAGES: &str = "rustc-web cargo-web rust-web-src llvm-22-dev";

/// How bpf-linker is built on Debian's LLVM.
pub const LINKER_COMMAND: &str = "LLVM_PREFIX=/usr/lib/llvm-22 cargo install --locked bpf-linker@0.13.0 \
                                  --no-default-features --features llvm-22";

/// Older compilers refuse the sources of this workspace (`rust-version` in Cargo.toml).
const OLDEST: (u32, u32) = (1, 95);

/// A complete toolchain.
#[derive(Debug)]
pub struct Toolchain {
    /// How its cargo is called.
    pub cargo: Cargo,
    /// The compiler's folder, in which the source of `core` lies.
    pub sysroot: PathBuf,
    /// bpf-linker.
    pub linker: PathBuf,
    /// What decides about the bytes of the result.
    pub identity: Identity,
}

/// How a toolchain's cargo is called.
#[derive(Debug)]
pub struct Cargo {
    /// The file to run.
    pub program: PathBuf,
    /// The arguments before cargo's own.
    pub arguments: &'static [&'static str],
    /// What it needs in the environment.
    pub environment: Vec<(&'static str, OsString)>,
}

/// One of the three things that a toolchain needs: there, or missing with the reason.
type Part = Result<String, String>;

/// What was looked for in one place.
struct Search {
    place: &'static str,
    parts: Vec<(&'static str, Part)>,
}

impl fmt::Display for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {}:", self.place)?;
        for (name, part) in &self.parts {
            match part {
                Ok(found) => writeln!(f, "    {name:<24} {found}")?,
                Err(reason) => writeln!(f, "    {name:<24} MISSING: {reason}")?,
            }
        }
        Ok(())
    }
}

/// Finds a complete toolchain: the one that made the committed objects if it is there, else any.
///
/// # Errors
/// When none is complete: with each part that is missing and the commands that install them.
pub fn find(recorded: Option<&Identity>) -> anyhow::Result<Toolchain> {
    let mut complete = Vec::new();
    let mut searches = Vec::new();
    for candidate in [debian(), rustup()] {
        match candidate {
            Ok(toolchain) => complete.push(toolchain),
            Err(search) => searches.push(search),
        }
    }
    let preferred = complete.iter().position(|one| Some(&one.identity) == recorded).unwrap_or(0);
    if complete.is_empty() {
        bail!("{}", advice(&searches));
    }
    Ok(complete.swap_remove(preferred))
}

fn advice(searches: &[Search]) -> String {
    let found: String = searches.iter().map(Search::to_string).collect();
    format!(
        "failed to find a toolchain for the BPF programs (users need none: the objects are committed); one of \
         these would do:\n{found}to install what is missing, either on Debian:\n  \
         cargo xtask setup                 (as root; it runs the next two)\n  \
         apt-get install {PACKAGES}\n  {LINKER_COMMAND}\n\
         or with rustup, NN being the LLVM version that `rustc +nightly -vV` prints:\n  \
         rustup toolchain install nightly --component rust-src\n  \
         cargo install --locked bpf-linker@{LINKER_VERSION} --no-default-features --features llvm-NN   \
         (needs that LLVM's development files)"
    )
}

/// The compiler of Debian's packages, in /usr/bin.
fn debian() -> Result<Toolchain, Search> {
    let (cargo, rustc) = (Path::new("/usr/bin/cargo"), Path::new("/usr/bin/rustc"));
    let compiler = if is_own_program(cargo) && is_own_program(rustc) {
        describe(Command::new(rustc).arg("-vV"))
    } else {
        Err("no /usr/bin/rustc and /usr/bin/cargo".into())
    };
    let sysroot = || read(Command::new(rustc).args(["--print", "sysroot"])).ok();
    let environment = vec![("RUSTC", rustc.into()), ("RUSTC_BOOTSTRAP", "1".into())];
    let cargo = Cargo { program: cargo.into(), arguments: &[], environment };
    assemble("Debian's compiler", compiler, sysroot, cargo)
}

/// rustup's nightly.
fn rustup() -> Result<Toolchain, Search> {
    let found = find_program("rustup");
    let rustup = found.clone().unwrap_or_default();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&rustup);
        command.args(["run", "nightly", "rustc"]).args(arguments);
        command
    };
    let compiler = match found {
        Some(_) => describe(&mut run(&["-vV"])),
        None => Err("no rustup in PATH".into()),
    };
    let sysroot = || read(&mut run(&["--print", "sysroot"])).ok();
    let cargo =
        Cargo { program: rustup.clone(), arguments: &["run", "nightly", "cargo"], environment: Vec::new() };
    assemble("rustup's nightly", compiler, sysroot, cargo)
}

/// Debian's rustup package puts its proxies into /usr/bin, under the compiler's names.
fn is_own_program(file: &Path) -> bool {
    file.canonicalize().is_ok_and(|real| real.file_name().is_some_and(|name| name != "rustup"))
}

/// `rustc -vV`, when it runs and is new enough.
fn describe(rustc: &mut Command) -> Result<Description, String> {
    let text = read(rustc).map_err(|error| format!("{error:#}"))?;
    let description =
        Description::parse(&text).ok_or_else(|| format!("unexpected output of rustc -vV: {text}"))?;
    if description.release < OLDEST {
        return Err(format!("{} is older than {}.{}", description.version, OLDEST.0, OLDEST.1));
    }
    Ok(description)
}

fn assemble(
    place: &'static str,
    compiler: Result<Description, String>,
    sysroot: impl Fn() -> Option<String>,
    cargo: Cargo,
) -> Result<Toolchain, Search> {
    let sysroot = compiler.as_ref().ok().and_then(|_| sysroot()).map(PathBuf::from);
    let source = match &sysroot {
        Some(folder) => {
            let file = folder.join("lib/rustlib/src/rust/library/core/src/lib.rs");
            if file.is_file() { Ok(folder.clone()) } else { Err(format!("no {}", file.display())) }
        }
        None => Err("needs the compiler first".into()),
    };
    let linker = Linker::find().and_then(|linker| match &compiler {
        Ok(compiler) => linker.reads(compiler),
        Err(_) => Ok(linker),
    });
    match (compiler, source, linker) {
        (Ok(compiler), Ok(sysroot), Ok(linker)) => Ok(Toolchain {
            sysroot,
            identity: Identity {
                rustc: compiler.version,
                rustc_llvm: compiler.llvm,
                linker: linker.version,
                linker_llvm: linker.llvm,
            },
            linker: linker.path,
            cargo,
        }),
        (compiler, source, linker) => Err(Search {
            place,
            parts: vec![
                ("compiler", compiler.map(|one| one.version)),
                ("standard library source", source.map(|folder| folder.display().to_string())),
                ("bpf-linker", linker.map(|one| format!("{} at {}", one.version, one.path.display()))),
            ],
        }),
    }
}

/// What `rustc -vV` says.
#[derive(Debug, PartialEq, Eq)]
struct Description {
    version: String,
    release: (u32, u32),
    llvm: String,
}

impl Description {
    fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let mut numbers = value("release:")?.split('.').map_while(|number| number.parse().ok());
        Some(Self {
            version: text.lines().next()?.to_owned(),
            release: (numbers.next()?, numbers.next()?),
            llvm: value("LLVM version:")?.to_owned(),
        })
    }
}

struct Linker {
    path: PathBuf,
    version: String,
    llvm: String,
}

impl Linker {
    /// In PATH, or where `cargo install` puts it.
    fn find() -> Result<Self, String> {
        let home = env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
        let installed = home.map(|home| home.join("bin/bpf-linker")).filter(|file| file.is_file());
        let path =
            find_program("bpf-linker").or(installed).ok_or("no bpf-linker in PATH or CARGO_HOME/bin")?;
        let version = read(Command::new(&path).arg("--version").env_remove("LD_LIBRARY_PATH"))
            .map_err(|error| format!("{error:#}"))?;
        let llvm = llvm_of(&path);
        Ok(Self { path, version, llvm })
    }

    /// An LLVM reads the bitcode of older ones, not of newer ones.
    fn reads(self, compiler: &Description) -> Result<Self, String> {
        match (major(&self.llvm), major(&compiler.llvm)) {
            (Some(own), Some(theirs)) if own < theirs => Err(format!(
                "{} is built on LLVM {}, which cannot read what LLVM {} of the compiler writes",
                self.path.display(),
                self.llvm,
                compiler.llvm
            )),
            _ => Ok(self),
        }
    }
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

/// The version of the LLVM that bpf-linker uses: it generates the code, and the linker's own version does not
/// tell it. A shared libLLVM's comes from the llvm-config beside it.
fn llvm_of(linker: &Path) -> String {
    let listing = read(Command::new("ldd").arg(linker).env_remove("LD_LIBRARY_PATH")).unwrap_or_default();
    let Some(library) = shared_llvm(&listing) else { return "linked statically".into() };
    let config = Path::new(library).parent().map(|lib| lib.join("../bin/llvm-config"));
    config
        .and_then(|config| read(Command::new(config).arg("--version")).ok())
        // The name at least: libLLVM.so.22.1 gives "22.1".
        .unwrap_or_else(|| library.rsplit_once(".so.").map_or(library, |(_, version)| version).to_owned())
}

/// The path of libLLVM in what ldd prints.
fn shared_llvm(listing: &str) -> Option<&str> {
    let line = listing.lines().find(|line| line.trim_start().starts_with("libLLVM"))?;
    line.split_once("=> ")?.1.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERBOSE: &str = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\nrelease: 1.97.0-nightly\n\
                           LLVM version: 22.1.4";

    #[test]
    fn a_compilers_description_is_read() {
        let expected = Description {
            version: "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)".into(),
            release: (1, 97),
            llvm: "22.1.4".into(),
        };
        assert_eq!(Description::parse(VERBOSE), Some(expected));
        assert_eq!(Description::parse("rustc 1.97.0"), None);
    }

    #[test]
    fn libllvm_is_found_in_ldds_listing() {
        let listing = "\tlinux-vdso.so.1 (0x00007fbc)\n\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x7f)";
        assert_eq!(shared_llvm(listing), Some("/usr/lib/llvm-22/lib/libLLVM.so.22.1"));
        assert_eq!(shared_llvm("\tstatically linked"), None);
    }

    #[test]
    fn a_linker_on_an_older_llvm_is_refused() {
        let linker =
            |llvm: &str| Linker { path: "bpf-linker".into(), version: String::new(), llvm: llvm.into() };
        let compiler = Description::parse(VERBOSE).unwrap();
        assert!(linker("21.1.0").reads(&compiler).is_err());
        assert!(linker("22.1.0").reads(&compiler).is_ok());
        assert!(linker("linked statically").reads(&compiler).is_ok());
    }

    #[test]
    fn the_advice_names_each_missing_part_and_its_remedy() {
        let search = Search {
            place: "Debian's compiler",
            parts: vec![
                ("compiler", Ok("rustc 1.96.0".into())),
                ("standard library source", Err("no /usr/lib/rustlib/core".into())),
                ("bpf-linker", Err("no bpf-linker in PATH or CARGO_HOME/bin".into())),
            ],
        };
        let text = advice(&[search]);
        assert!(text.contains("standard library source  MISSING: no /usr/lib/rustlib/core"), "{text}");
        assert!(text.contains("bpf-linker               MISSING: no bpf-linker"), "{text}");
        assert!(!text.contains("compiler                 MISSING"), "{text}");
        assert!(text.contains("apt-get install rustc-web cargo-web rust-web-src llvm-22-dev"), "{text}");
        assert!(LINKER_COMMAND.contains(&format!("bpf-linker@{LINKER_VERSION} ")));
    }
}

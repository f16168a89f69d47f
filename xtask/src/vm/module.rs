//! The leaky kernel module (tests/modules/leaky), built here for the kernels of guests.
//!
//! Kernels are built by other compilers, and newer tools, than this machine has. What a kernel's configuration
//! says of its compiler is compared with what the compiler here can do, and corrected on make's command line;
//! tools that this machine's C library is too old for run with the suite's own.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{archive::Archive, boot::Boot, mirror::Mirror};
use crate::{bpf::Architecture, command};

/// Where the suite's C library and its loader lie, once unpacked.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";
/// What is added to the name of a tool that a script stands in for.
const REAL: &str = ".elf";

/// Fetches a kernel's headers and builds the module into `folder`.
///
/// # Errors
/// When a package cannot be fetched, or the module does not build without warnings.
pub fn fetch_and_build(cache: &Path, mirror: &Mirror, boot: &Boot, folder: &Path) -> Result<PathBuf> {
    let suite = [boot.kernel.suite];
    let archive = Archive::open(cache, mirror, &suite, boot.kernel.architecture)?;
    let package = format!("linux-headers-{}", boot.release);
    let all = archive.closure(&package, &["linux-headers-", "linux-kbuild-"])?;
    let (tools, headers): (BTreeSet<String>, BTreeSet<String>) =
        all.into_iter().partition(|package| package.starts_with("linux-kbuild-"));
    let headers = archive.unpacked(&headers)?;
    // The tools run here, whatever they build for.
    let archive = Archive::open(cache, mirror, &suite, Architecture::X86_64)?;
    let mut unpacked = archive.unpacked(&tools)?;
    if !too_new(&unpacked)?.is_empty() {
        let with_library = tools.into_iter().chain(["libc6".to_owned()]).collect();
        unpacked = archive.unpacked(&with_library)?;
        wrap(&unpacked)?;
    }
    join(&unpacked, &headers)?;
    build(&headers, &boot.release, boot.kernel.architecture, folder)
}

/// The headers' links lead to `../../lib/linux-kbuild-VERSION`: there the tools are put.
fn join(tools: &Path, headers: &Path) -> Result<()> {
    let place = headers.join("usr/lib");
    fs::create_dir_all(&place).with_context(|| format!("failed to make {}", place.display()))?;
    for folder in list(&tools.join("usr/lib"))? {
        let name = folder.file_name().unwrap_or_default();
        if name.to_string_lossy().starts_with("linux-kbuild-") {
            let link = place.join(name);
            let _ = fs::remove_file(&link);
            symlink(&folder, &link).with_context(|| format!("failed to link {}", link.display()))?;
        }
    }
    Ok(())
}

/// Builds the module against unpacked headers, their tools beside them; `folder` gets leaky.ko in `module`.
///
/// # Errors
/// When make fails, warns, or makes a module for another kernel.
pub fn build(headers: &Path, release: &str, architecture: Architecture, folder: &Path) -> Result<PathBuf> {
    let sources = headers.join("usr/src").canonicalize().with_context(|| {
        format!("failed to find usr/src in {}, where headers were unpacked", headers.display())
    })?;
    let flavour = sources.join(format!("linux-headers-{release}"));
    let out = folder.join("module");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("failed to clear {}", out.display()))?;
    }
    fs::create_dir_all(&out).with_context(|| format!("failed to make {}", out.display()))?;
    let out = out.canonicalize().with_context(|| format!("failed to find {}", out.display()))?;
    for path in [&sources, &out] {
        let path = path.to_string_lossy();
        let is_plain = !path.contains(|c: char| c.is_whitespace() || c == ':');
        ensure!(is_plain, "failed to build a module in {path}: Kbuild knows no paths with blanks or colons");
    }
    for file in list(&command::workspace().join("tests/modules/leaky"))? {
        let to = out.join(file.file_name().unwrap_or_default());
        fs::copy(&file, &to).with_context(|| format!("failed to copy {}", file.display()))?;
    }
    let makefile = flavour.join("Makefile");
    let text = fs::read_to_string(&makefile)
        .with_context(|| format!("failed to read {}, of the kernel's headers", makefile.display()))?;
    let top = out.join("headers.mk");
    fs::write(&top, moved(&text, &sources)).with_context(|| format!("failed to write {}", top.display()))?;
    let config = fs::read_to_string(flavour.join(".config"))
        .with_context(|| format!("failed to read the configuration in {}", flavour.display()))?;

    let compiler = compiler(architecture);
    let mut make = Command::new("make");
    make.arg("-C").arg(&flavour).arg("-f").arg(&top).arg(format!("M={}", out.display()));
    make.arg(format!("CC={compiler}"))
        .args(corrections(&config, |options, code| can(compiler, options, code)));
    if architecture == Architecture::Aarch64 {
        make.args(["ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"]);
    }
    run(make.arg("modules"))?;
    let module = out.join("leaky.ko");
    let bytes = fs::read(&module).with_context(|| format!("failed to read {}", module.display()))?;
    let magic = format!("vermagic={release} ");
    ensure!(
        bytes.windows(magic.len()).any(|window| window == magic.as_bytes()),
        "failed to build {} for {release}: it says that it is for another kernel",
        module.display()
    );
    Ok(module)
}

fn compiler(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "gcc",
        Architecture::Aarch64 => "aarch64-linux-gnu-gcc",
    }
}

/// The Makefile of headers that lie elsewhere than where their package puts them.
fn moved(makefile: &str, sources: &Path) -> String {
    makefile.replace("/usr/src/", &format!("{}/", sources.display()))
}

/// What must be said to make, given a kernel's configuration, and whether the compiler here takes an option or
/// a piece of code.
fn corrections(config: &str, can: impl Fn(&[&str], &str) -> bool) -> Vec<String> {
    let value = |name: &str| {
        config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    // Types for BPF programs would want pahole and the kernel's image; nothing asks for them. Without pahole,
    // a comparison of its version would warn.
    let mut words = vec!["CONFIG_DEBUG_INFO_BTF_MODULES=".to_owned()];
    let pahole = value("CONFIG_PAHOLE_VERSION");
    if !pahole.is_empty() {
        words.push(format!("PAHOLE_VERSION={pahole}"));
    }
    if value("CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT") == "y" && !can(&["-fmin-function-alignment=16"], "") {
        words.push("CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=".to_owned());
    }
    let counted = "struct s { int n; char bytes[] __attribute__((counted_by(n))); };";
    if value("CONFIG_CC_HAS_COUNTED_BY") == "y" && !can(&["-Werror"], counted) {
        // The headers use it by the configuration's word; a compiler that doesn't know it warns each time.
        words.push("KCFLAGS=-Wno-attributes".to_owned());
    }
    words
}

/// Whether the compiler takes code with these options.
fn can(compiler: &str, options: &[&str], code: &str) -> bool {
    let mut child = match Command::new(compiler)
        .args(options)
        .args(["-x", "c", "-S", "-o", "/dev/null", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
    {
        Ok(child) => child,
        Err(_) => return false,
    };
    let told = child.stdin.take().map(|mut input| std::io::Write::write_all(&mut input, code.as_bytes()));
    matches!(told, Some(Ok(()))) && child.wait().is_ok_and(|status| status.success())
}

fn run(make: &mut Command) -> Result<()> {
    let shown = command::show(make);
    eprintln!("+ {shown}");
    let output = make.stdin(Stdio::null()).output().with_context(|| {
        format!("failed to start `{shown}`; install the packages make, gcc and gcc-aarch64-linux-gnu")
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("failed to build a kernel module: `{shown}`: {}: {}", output.status, said.trim());
    }
    ensure!(!said.contains("warning:"), "failed to build a kernel module without warnings: {}", said.trim());
    Ok(())
}

/// Executables of the kernel's build for this machine, those that make uses for a module.
fn programs(tools: &Path) -> Result<Vec<PathBuf>> {
    let mut programs = Vec::new();
    for kbuild in list(&tools.join("usr/lib"))? {
        for folder in ["scripts/basic", "scripts/genksyms", "scripts/mod", "tools/objtool"] {
            let folder = kbuild.join(folder);
            let files = if folder.is_dir() { list(&folder)? } else { Vec::new() };
            programs.extend(files.into_iter().filter(|file| starts_as_elf(file)));
        }
    }
    Ok(programs)
}

fn starts_as_elf(file: &Path) -> bool {
    let mut magic = [0; 4];
    let read = fs::File::open(file).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
    read.is_ok() && magic == *b"\x7fELF"
}

/// Those that this machine's C library is too old for.
fn too_new(tools: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for program in programs(tools)? {
        let output = Command::new("ldd")
            .arg(&program)
            .output()
            .with_context(|| format!("failed to run ldd on {}", program.display()))?;
        let said = [output.stdout, output.stderr].concat();
        // version `GLIBC_2.38' not found (required by ...)
        if String::from_utf8_lossy(&said).lines().any(|line| line.contains("`GLIBC_")) {
            found.push(program);
        }
    }
    Ok(found)
}

/// Puts scripts in the place of tools that are too new, which run them with the C library beside them. Others stay:
/// objtool is a program that finds its real one by its own name.
fn wrap(tools: &Path) -> Result<()> {
    let libraries = tools.join(LIBRARIES);
    ensure!(
        libraries.join(LOADER).is_file(),
        "failed to find the loader {LOADER} in {}, of the package libc6",
        libraries.display()
    );
    for found in too_new(tools)? {
        let name = found.to_string_lossy().into_owned();
        let (program, real) = match name.strip_suffix(REAL) {
            Some(program) => (PathBuf::from(program), found),
            None => (found, PathBuf::from(name + REAL)),
        };
        let libraries = libraries.display();
        let script = format!(
            "#!/bin/sh\nexec '{libraries}/{LOADER}' --library-path \
             '{libraries}:/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu' '{}' \"$@\"\n",
            real.display()
        );
        let moved = if real.exists() { Ok(()) } else { fs::rename(&program, &real) };
        moved
            .and_then(|()| fs::write(&program, script))
            .and_then(|()| fs::set_permissions(&program, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("failed to wrap {}", program.display()))?;
    }
    Ok(())
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("failed to read {}", folder.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(|| format!("failed to read {}", folder.display()))?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_corrected_by_what_the_compiler_lacks() {
        let config = "CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=y\nCONFIG_CC_HAS_COUNTED_BY=y\n\
                      CONFIG_PAHOLE_VERSION=132\n# CONFIG_X is not set\n";
        let always = ["CONFIG_DEBUG_INFO_BTF_MODULES=", "PAHOLE_VERSION=132"];
        assert_eq!(corrections(config, |_, _| true), always);
        let old = ["CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=", "KCFLAGS=-Wno-attributes"];
        assert_eq!(corrections(config, |_, _| false), [&always[..], &old[..]].concat());
        assert_eq!(corrections("# CONFIG_CC_HAS_COUNTED_BY is not set\n", |_, _| false), always[..1]);
    }

    #[test]
    fn the_compiler_is_asked() {
        assert!(can("gcc", &["-Werror"], "int one(void) { return 1; }"));
        assert!(!can("gcc", &["-fno-such-option"], ""));
        assert!(!can("gcc", &[], "int one("));
        assert!(!can("no-such-compiler", &[], ""));
    }

    #[test]
    fn makefiles_are_moved_with_their_headers() {
        let text =
            "KBUILD_OUTPUT=/usr/src/linux-headers-7\ninclude /usr/src/linux-headers-7-common/Makefile\n";
        let moved = moved(text, Path::new("/cache/usr/src"));
        let wanted = "KBUILD_OUTPUT=/cache/usr/src/linux-headers-7\n\
                      include /cache/usr/src/linux-headers-7-common/Makefile\n";
        assert_eq!(moved, wanted);
    }
}

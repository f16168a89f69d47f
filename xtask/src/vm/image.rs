//! The initial file system of a guest: busybox, leakprobe, the live tests, what they are linked with, and a plan.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// Process 1.
const INIT: &str = include_str!("init.sh");

/// What a guest runs, for one architecture.
#[derive(Clone, Debug)]
pub struct Payload {
    /// leakprobe itself.
    pub leakprobe: PathBuf,
    /// The live tests' executable.
    pub live_tests: PathBuf,
    /// The folder of victims, built.
    pub victims: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
    /// Shared libraries and the loader: the file here, and its path in the guest.
    pub libraries: Vec<(PathBuf, String)>,
}

/// Writes the image to `file`.
///
/// # Errors
/// When a file cannot be read or written, or cpio fails.
pub fn write(payload: &Payload, plan: &str, module: Option<&Path>, file: &Path) -> Result<()> {
    let root = file.with_extension("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("failed to clear {}", root.display()))?;
    }
    let folder = |path: &str| {
        let path = root.join(path);
        fs::create_dir_all(&path).with_context(|| format!("failed to make {}", path.display()))
    };
    for path in ["bin", "etc", "proc", "root", "run", "sys", "tmp", "dev", "usr", "t/victims"] {
        folder(path)?;
    }
    copy(&payload.busybox, &root.join("bin/busybox"))?;
    std::os::unix::fs::symlink("../bin", root.join("usr/bin")).context("failed to link /usr/bin")?;
    for (library, path) in &payload.libraries {
        let to = root.join(path.trim_start_matches('/'));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).with_context(|| format!("failed to make {}", parent.display()))?;
        }
        copy(library, &to)?;
    }
    copy(&payload.leakprobe, &root.join("t/leakprobe"))?;
    copy(&payload.live_tests, &root.join("t/live"))?;
    let victims = fs::read_dir(&payload.victims)
        .with_context(|| format!("failed to read {}", payload.victims.display()))?;
    for entry in victims {
        let entry = entry.context("failed to read the folder of victims")?;
        let is_draft = entry.file_name().to_string_lossy().starts_with('.');
        if !is_draft && entry.path().is_file() {
            copy(&entry.path(), &root.join("t/victims").join(entry.file_name()))?;
        }
    }
    if let Some(module) = module {
        copy(module, &root.join("t/leaky.ko"))?;
    }
    text(&root.join("t/plan"), plan, 0o644)?;
    text(
        &root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
        0o644,
    )?;
    text(&root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n", 0o644)?;
    text(&root.join("init"), INIT, 0o755)?;
    archive(&root, file)?;
    fs::remove_dir_all(&root).with_context(|| format!("failed to remove {}", root.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(|_| ())
        .with_context(|| format!("failed to copy {} to {}", from.display(), to.display()))
}

fn text(path: &Path, text: &str, mode: u32) -> Result<()> {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("failed to write {}", path.display()))
}

/// All files as a cpio archive of the kernel's format, owned by root.
fn archive(root: &Path, file: &Path) -> Result<()> {
    let list = Command::new("find")
        .args([".", "-print0"])
        .current_dir(root)
        .output()
        .with_context(|| format!("failed to list {}", root.display()))?;
    let output = File::create(file).with_context(|| format!("failed to create {}", file.display()))?;
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--null", "--quiet", "--owner=0:0"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(output)
        .spawn()
        .context("failed to start cpio")?;
    let mut input = cpio.stdin.take().context("failed to talk to cpio")?;
    std::io::Write::write_all(&mut input, &list.stdout).context("failed to talk to cpio")?;
    drop(input);
    let status = cpio.wait().context("failed to wait for cpio")?;
    ensure!(status.success(), "failed to make the image {}: cpio ended with {status}", file.display());
    Ok(())
}

/// The shared libraries that executables of this machine's own architecture are linked with, and their loader.
///
/// # Errors
/// When ldd cannot be run.
pub fn libraries(executables: &[PathBuf]) -> Result<Vec<(PathBuf, String)>> {
    let mut all = Vec::new();
    for executable in executables {
        let output = Command::new("ldd")
            .arg(executable)
            .output()
            .with_context(|| format!("failed to run ldd on {}", executable.display()))?;
        // A static executable has none, which ldd calls a failure.
        all.extend(parse_ldd(&String::from_utf8_lossy(&output.stdout)));
    }
    all.sort();
    all.dedup();
    Ok(all.into_iter().map(|path| (PathBuf::from(&path), path)).collect())
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f...)` and `/lib64/ld-linux-x86-64.so.2 (0x7f...)`.
fn parse_ldd(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            let line = line.trim();
            let path = line.split_once(" => ").map_or(line, |(_, path)| path);
            path.split(' ').next().filter(|path| path.starts_with('/')).map(str::to_owned)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_that_ldd_finds() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \tlibgone.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(parse_ldd(text), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert!(parse_ldd("\tnot a dynamic executable\n").is_empty());
    }
}

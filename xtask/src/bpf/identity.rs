//! Which toolchain made the committed objects: another one, though right, gives other bytes.

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, bail};

/// What decides, beside the sources, about the bytes of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `rustc -V`.
    pub rustc: String,
    /// The LLVM in the compiler.
    pub rustc_llvm: String,
    /// `bpf-linker --version`.
    pub linker: String,
    /// The LLVM that bpf-linker is built on.
    pub linker_llvm: String,
}

const HEAD: &str =
    "# What built the objects in this folder: written by `cargo xtask build-ebpf`, compared by `--check`.\n";

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "compiler: {}", self.rustc)?;
        writeln!(f, "compiler's LLVM: {}", self.rustc_llvm)?;
        writeln!(f, "linker: {}", self.linker)?;
        writeln!(f, "linker's LLVM: {}", self.linker_llvm)
    }
}

impl Identity {
    /// Reads what [`Identity::write`] wrote; none when the file does not exist.
    ///
    /// # Errors
    /// When it cannot be read, or a line is missing.
    pub fn read(file: &Path) -> anyhow::Result<Option<Self>> {
        if !file.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
        match Self::parse(&text) {
            Some(identity) => Ok(Some(identity)),
            None => bail!("failed to parse {}; write it anew: cargo xtask build-ebpf", file.display()),
        }
    }

    /// Writes the record.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, file: &Path) -> anyhow::Result<()> {
        fs::write(file, format!("{HEAD}{self}"))
            .with_context(|| format!("failed to write {}", file.display()))
    }

    fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        Some(Self {
            rustc: value("compiler")?.to_owned(),
            rustc_llvm: value("compiler's LLVM")?.to_owned(),
            linker: value("linker")?.to_owned(),
            linker_llvm: value("linker's LLVM")?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back() {
        let identity = Identity {
            rustc: "rustc 1.96.0 (ac68faa20 2026-05-25)".into(),
            rustc_llvm: "22.1.8".into(),
            linker: "bpf-linker 0.13.0".into(),
            linker_llvm: "22.1.7".into(),
        };
        assert_eq!(Identity::parse(&format!("{HEAD}{identity}")), Some(identity));
        assert_eq!(Identity::parse("compiler: rustc 1.96.0\n"), None);
    }
}

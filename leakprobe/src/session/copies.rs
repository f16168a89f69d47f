//! The file of copied stacks: what `cargo xtask stacks` unwinds by other means, to compare.

use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The file: `StackCopy` records one after the other, each cut to its valid pages.
pub struct Copies {
    file: BufWriter<File>,
    path: PathBuf,
}

impl Copies {
    /// Opens it. What is in there is the target's memory: nobody else may read it.
    pub fn create(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
        let file = file.with_context(|| format!("failed to open {} for copies of stacks", path.display()))?;
        Ok(Self { file: BufWriter::new(file), path: path.to_owned() })
    }

    /// Adds a record.
    pub fn write(&mut self, record: &[u8]) -> Result<()> {
        let written = self.file.write_all(record);
        written.with_context(|| format!("failed to write a copy of a stack to {}", self.path.display()))
    }
}

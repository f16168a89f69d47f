//! /proc/meminfo: what the kernel uses for itself, in sum.

use std::{fs, io::Read as _};

use anyhow::{Context as _, Result};

const PATH: &str = "/proc/meminfo";

/// What is shown of it, in the order of the report.
pub const FIELDS: [&str; 7] =
    ["Slab", "SReclaimable", "SUnreclaim", "KernelStack", "PageTables", "Percpu", "VmallocUsed"];

/// The [`FIELDS`], bytes each; `None` for one that the kernel does not show.
pub type Meminfo = [Option<u64>; FIELDS.len()];

/// Reads it.
///
/// # Errors
/// When it cannot be read.
pub fn read() -> Result<Meminfo> {
    let mut text = String::new();
    fs::File::open(PATH)
        .and_then(|file| file.take(1 << 20).read_to_string(&mut text))
        .with_context(|| format!("failed to read {PATH}"))?;
    Ok(parse(&text))
}

/// Reads lines such as `SUnreclaim:        48212 kB`.
pub fn parse(text: &str) -> Meminfo {
    FIELDS.map(|field| {
        let rest = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        let kib: u64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
        kib.checked_mul(1024)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_by_their_whole_names() {
        let all = parse("SlabX: 1 kB\nSlab:   12 kB\nSUnreclaim: 3 kB\nPercpu: x kB\n");
        assert_eq!(all, [Some(12 << 10), None, Some(3 << 10), None, None, None, None]);
    }
}

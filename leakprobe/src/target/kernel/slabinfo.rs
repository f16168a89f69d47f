//! /proc/slabinfo: the kernel's own account of its caches.

use std::{collections::BTreeMap, fs, io::Read as _};

use anyhow::{Context as _, Result};

const PATH: &str = "/proc/slabinfo";

/// A hundred times what a kernel has.
const MAX_BYTES: u64 = 64 << 20;

/// One cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Objects that are taken. Free ones that a CPU keeps for itself count as taken.
    pub active: u64,
    /// Objects for which there is room.
    pub total: u64,
    /// Bytes of an object with what the allocator adds to it.
    pub object_bytes: u64,
    /// Objects of one slab.
    pub per_slab: u64,
}

/// All caches by name.
pub type Slabinfo = BTreeMap<String, Row>;

/// Reads them.
///
/// # Errors
/// When the kernel shows none (`CONFIG_SLUB_DEBUG`), or not to this process.
pub fn read() -> Result<Slabinfo> {
    let mut text = Vec::new();
    fs::File::open(PATH)
        .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text))
        .with_context(|| format!("failed to read {PATH}"))?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// Reads its lines; those of another form (the two heading ones) are left out. Names may hold blanks: the numbers are
/// counted from the colon.
pub fn parse(text: &str) -> Slabinfo {
    let row = |line: &str| {
        let (left, _) = line.split_once(" : ")?;
        let words: Vec<&str> = left.split_ascii_whitespace().collect();
        let (name, numbers) = words.split_at(words.len().checked_sub(5).filter(|&words| words > 0)?);
        let number = |index: usize| numbers[index].parse::<u64>().ok();
        let row =
            Row { active: number(0)?, total: number(1)?, object_bytes: number(2)?, per_slab: number(3)? };
        Some((name.join(" "), row))
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_by_name() {
        let text = "slabinfo - version: 2.1\n\
            # name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>\n\
            leaky_object         420    432    112   36    1 : tunables    0    0    0 : slabdata     12     12      0\n\
            odd name               1      2      3    4    5 : tunables    0    0    0 : slabdata      0      0      0\n\
            cut 1 2\n";
        let all = parse(text);
        assert_eq!(all.len(), 2);
        assert_eq!(all["leaky_object"], Row { active: 420, total: 432, object_bytes: 112, per_slab: 36 });
        assert_eq!(all["odd name"], Row { active: 1, total: 2, object_bytes: 3, per_slab: 4 });
    }
}

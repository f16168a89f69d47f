//! Maps whose elements are there from the start, for kernels where tracing programs must not have others.
//!
//! Before 6.1 the kernel warned of such a program in its log (once, with a stack, and a machine that panics on
//! warnings would), since its allocator may be what is traced.

use anyhow::{Context as _, Result};
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, read::elf::ElfFile64};

/// Outstanding blocks that there is room for by default where maps grow.
const MAX_BLOCKS: u32 = 2_097_152;

/// The same where they do not: about 56 MB.
const MAX_BLOCKS_SET_ASIDE: u32 = 524_288;

/// Threads that there is room for where maps do not grow.
pub const THREADS: u32 = 8_192;

/// Outstanding blocks that there is room for by default.
pub fn max_blocks(preallocate: bool) -> u32 {
    if preallocate { MAX_BLOCKS_SET_ASIDE } else { MAX_BLOCKS }
}

/// The maps that grow otherwise.
const GROWING: [&str; 4] = ["BLOCKS", "SITES", "STACKS", "THREADS"];

/// Where the flags are in a `struct bpf_map_def`: after type, sizes of key and value, and number of entries.
const FLAGS_OFFSET: u64 = 16;

/// An object in memory, aligned as ELF files are read.
pub struct Aligned {
    buffer: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(bytes: &[u8]) -> Self {
        let mut buffer = vec![0; bytes.len() + 8];
        let start = buffer.as_ptr().align_offset(8).min(8);
        buffer[start..start + bytes.len()].copy_from_slice(bytes);
        Self { buffer, start, len: bytes.len() }
    }

    /// The object.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.len]
    }
}

/// The BPF object with the flags of its growing maps cleared.
///
/// # Errors
/// When it has no such maps: it is not ours.
pub fn object(from: &[u8]) -> Result<Aligned> {
    let file: ElfFile64<'_, Endianness> = ElfFile64::parse(from).context("failed to read the BPF object")?;
    let mut object = Aligned::new(from);
    for name in GROWING {
        let at = flags_of(&file, name)
            .with_context(|| format!("failed to find the map {name} in the BPF object"))?;
        let at = object.start + usize::try_from(at)?;
        object.buffer[at..at + 4].copy_from_slice(&[0; 4]);
    }
    Ok(object)
}

/// Offset in the file of a map's flags.
fn flags_of(file: &ElfFile64<'_, Endianness>, name: &str) -> Option<u64> {
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name))?;
    let section = file.section_by_index(symbol.section_index()?).ok()?;
    Some(section.file_range()?.0 + symbol.address() + FLAGS_OFFSET)
}

#[cfg(test)]
mod tests {
    use aya_obj::{Object, generated::BPF_F_NO_PREALLOC};

    use super::*;
    use crate::probe::load::OBJECT;

    #[test]
    fn only_the_flags_of_growing_maps_are_cleared() {
        let before = Object::parse(OBJECT).expect("the committed object");
        let patched = object(OBJECT).expect("it has these maps");
        let after = Object::parse(patched.bytes()).expect("still an object");
        let grows = |object: &Object, name: &str| object.maps[name].map_flags() & BPF_F_NO_PREALLOC != 0;
        for name in before.maps.keys() {
            assert_eq!(grows(&before, name), GROWING.contains(&name.as_str()), "{name}");
            assert!(!grows(&after, name), "{name}");
            assert_eq!(before.maps[name].max_entries(), after.maps[name].max_entries(), "{name}");
            assert_eq!(before.maps[name].value_size(), after.maps[name].value_size(), "{name}");
        }
        let differing = OBJECT.iter().zip(patched.bytes()).filter(|(a, b)| a != b).count();
        assert_eq!(differing, GROWING.len(), "one byte each");
    }
}

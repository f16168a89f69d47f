//! What the maps of the kernel's programs held at one moment.

use std::collections::HashMap;

use leakprobe_common::{Block, BlockKey, KernelBlock, KernelKey, MemoryKind};

use super::snapshot::Snapshot;

/// Tells the kinds of memory apart where processes are told apart otherwise.
pub const KERNEL: u32 = 0;

/// Different processes that are told apart at one site; a site of a machine that forks all day could have any number.
const MAX_MAKERS: usize = 4096;

/// Who was running when an object was allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Maker {
    /// The thread's name at that time.
    pub comm: [u8; 16],
    /// Its process.
    pub tgid: u32,
}

/// A snapshot of the kernel's memory.
#[derive(Clone, Debug)]
pub struct KernelSnapshot {
    /// Sites, ages and counters, as of a process: the process is [`KERNEL`], the family a [`MemoryKind`].
    pub plain: Snapshot,
    /// By site: survivors by who was running when they were made, weighted.
    pub makers: HashMap<u64, HashMap<Maker, u64>>,
}

impl KernelSnapshot {
    /// Begins one.
    pub fn new(plain: Snapshot) -> Self {
        Self { plain, makers: HashMap::new() }
    }

    /// Takes in one record.
    pub fn add(&mut self, key: KernelKey, block: &KernelBlock) {
        let plain = Block {
            size: block.size,
            allocated_ns: block.allocated_ns,
            stack: block.site,
            tid: 0,
            generation: 0,
            weight: block.weight,
            family: key.kind() as u32,
        };
        self.plain.add(BlockKey { address: key.0, tgid: KERNEL, _pad: 0 }, &plain);
        if self.plain.at_ns.saturating_sub(block.allocated_ns) < self.plain.older_ns
            || (self.plain.moving && block.allocated_ns > self.plain.at_ns)
        {
            return;
        }
        let makers = self.makers.entry(block.site).or_default();
        let maker = Maker { comm: block.comm, tgid: block.tgid };
        if makers.len() < MAX_MAKERS || makers.contains_key(&maker) {
            *makers.entry(maker).or_default() += u64::from(block.weight);
        }
    }
}

/// The kind of memory of a site by its family.
pub fn kind(family: u32) -> MemoryKind {
    MemoryKind::from_raw(family).unwrap_or(MemoryKind::Slab)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survivors_are_counted_by_who_made_them() {
        let mut snapshot = KernelSnapshot::new(Snapshot::of_standing(1_000, 100));
        let mut add = |address, allocated_ns, tgid| {
            let key = KernelKey::new(MemoryKind::Slab, address);
            let block = KernelBlock {
                size: 64,
                allocated_ns,
                site: 9,
                tgid,
                weight: 2,
                comm: *b"fork\0\0\0\0\0\0\0\0\0\0\0\0",
            };
            snapshot.add(key, &block);
        };
        add(0x10, 500, 7);
        add(0x20, 600, 7);
        add(0x30, 700, 8);
        add(0x40, 950, 8);
        let makers = &snapshot.makers[&9];
        let mut counts: Vec<_> = makers.iter().map(|(maker, &count)| (maker.tgid, count)).collect();
        counts.sort_unstable();
        assert_eq!(counts, [(7, 4), (8, 2)], "the last is too young");
        let site = snapshot.plain.outstanding.values().next().expect("a site");
        assert_eq!((site.blocks, site.bytes, site.survivors.len()), (8, 512, 3));
    }
}

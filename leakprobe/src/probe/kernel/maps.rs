//! The maps of the kernel's programs, by name.

use std::{collections::HashMap, os::fd::AsFd as _};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    maps::{Array, HashMap as BpfHashMap, Map, MapData, PerCpuArray},
};
use leakprobe_common::{CACHE_NAME, Cache, CacheKey, CacheName, Counter, KernelStack, LedgerRow};

use crate::{
    drain::{batch::Elements, decode, kernel::KernelSnapshot, snapshot::Counters},
    probe::{load::map_data, maps::read_sites},
};

/// The maps.
pub struct KernelMaps {
    caches: BpfHashMap<MapData, u64, Cache>,
    wanted: BpfHashMap<MapData, CacheName, u32>,
    stacks: BpfHashMap<MapData, u64, KernelStack>,
    ledger: PerCpuArray<MapData, LedgerRow>,
    closing: Array<MapData, u32>,
    blocks: Map,
    sites: Map,
    max_blocks: usize,
    max_sites: usize,
}

impl KernelMaps {
    /// Takes the maps out of a loaded object.
    ///
    /// # Errors
    /// When one is missing.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let mut map =
            |name: &str| ebpf.take_map(name).ok_or_else(|| anyhow!("the BPF object has no map {name}"));
        let (blocks, sites) = (map("BLOCKS")?, map("SITES")?);
        let room = |map: &Map| -> Result<usize> {
            Ok(map_data(map).context("not a hash map")?.info()?.max_entries() as usize)
        };
        Ok(Self {
            caches: BpfHashMap::try_from(map("CACHES")?)?,
            wanted: BpfHashMap::try_from(map("WANTED")?)?,
            stacks: BpfHashMap::try_from(map("STACKS")?)?,
            ledger: PerCpuArray::try_from(map("LEDGER")?)?,
            closing: Array::try_from(map(".bss")?)?,
            max_blocks: room(&blocks)?,
            max_sites: room(&sites)?,
            blocks,
            sites,
        })
    }

    /// Ends the programs' work: what they have recorded stands still as soon as those that run now are done.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn close(&mut self) -> Result<()> {
        self.closing.set(0, 1, 0).context("failed to end the BPF programs' work")
    }

    /// Has objects of a cache recorded (`--cache`). `keys`: those that stand for it where it has no address.
    ///
    /// # Errors
    /// When there is no room.
    pub fn want(&mut self, name: &str, object_bytes: u64, keys: &[CacheKey]) -> Result<()> {
        let context = || format!("failed to tell the BPF programs of the cache {name}");
        let padded = padded(name);
        self.wanted.insert(padded, 1, 0).with_context(context)?;
        let size = u32::try_from(object_bytes).unwrap_or(u32::MAX);
        let cache = Cache { name: padded, size, object_size: size, wanted: 1, _pad: 0 };
        for key in keys {
            self.caches.insert(key.0, cache, 0).with_context(context)?;
        }
        // It may have been met under another name's rule before.
        let met: Vec<(u64, Cache)> = self
            .caches
            .iter()
            .flatten()
            .filter(|(_, cache)| cache.name == padded && cache.wanted == 0)
            .collect();
        for (key, cache) in met {
            self.caches.insert(key, Cache { wanted: 1, ..cache }, 0).with_context(context)?;
        }
        Ok(())
    }

    /// What is known of the caches that were met.
    pub fn caches(&self) -> HashMap<u64, Cache> {
        self.caches.iter().flatten().collect()
    }

    /// The stack of a site; `None` when it was not kept.
    pub fn stack(&self, site: u64) -> Option<KernelStack> {
        self.stacks.get(&site, 0).ok()
    }

    /// Reads everything once, into a snapshot that was begun.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn fill(&self, mut snapshot: KernelSnapshot) -> Result<KernelSnapshot> {
        let blocks = Elements {
            map: map_data(&self.blocks).context("BLOCKS is no hash map")?.fd().as_fd(),
            key_size: decode::KERNEL_KEY_BYTES,
            value_size: decode::KERNEL_BLOCK_BYTES,
            max_entries: self.max_blocks,
        };
        blocks
            .read(|mut keys, mut values| {
                while let (Some(key), Some(block)) =
                    (decode::kernel_key(&mut keys), decode::kernel_block(&mut values))
                {
                    snapshot.add(key, &block);
                }
            })
            .context("failed to read the map of outstanding objects")?;
        self.each_site(|id, site| {
            snapshot.plain.sites.insert(id, site);
        })?;
        if snapshot.plain.moving {
            // Once more: see `Snapshot::add_freed`.
            self.each_site(|id, site| snapshot.plain.add_freed(id, &site))?;
        }
        snapshot.plain.counters = self.counters()?;
        Ok(snapshot)
    }

    /// The counters, summed over programs and CPUs.
    fn counters(&self) -> Result<Counters> {
        let mut counters = Counters::default();
        // Backwards: programs that give memory back come last, so what was freed is never ahead of what was recorded.
        for program in (0..self.ledger.len()).rev() {
            for row in self.ledger.get(&program, 0).context("failed to read the ledger")?.iter() {
                for counter in Counter::ALL {
                    counters.0[*counter as usize] += row[counter.place()];
                }
            }
        }
        Ok(counters)
    }

    fn each_site(&self, each: impl FnMut(u64, leakprobe_common::Site)) -> Result<()> {
        read_sites(&self.sites, self.max_sites, each)
    }
}

/// A name as the kernel's programs keep it: cut so that a zero follows.
fn padded(name: &str) -> CacheName {
    let mut padded = [0; CACHE_NAME];
    let bytes = &name.as_bytes()[..name.len().min(CACHE_NAME - 1)];
    padded[..bytes.len()].copy_from_slice(bytes);
    padded
}

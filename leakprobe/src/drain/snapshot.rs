//! What the maps held at one moment, reduced to sites.

use std::collections::HashMap;

use leakprobe_common::{Block, BlockKey, COUNTERS, Counter, NO_STACK, Site};

/// The ledger's counters, summed over the CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters(pub [u64; COUNTERS]);

impl Default for Counters {
    fn default() -> Self {
        Self([0; COUNTERS])
    }
}

impl Counters {
    /// One counter's value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }
}

/// Whose site it is: a stack belongs to one process, except the one that stands for stacks not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteKey {
    /// Process.
    pub tgid: u32,
    /// Stack ID.
    pub stack: u64,
}

/// The outstanding blocks of one site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outstanding {
    /// Blocks, weighted.
    pub blocks: u64,
    /// Bytes, weighted.
    pub bytes: u64,
    /// Allocator family of the last block seen.
    pub family: u32,
    /// Of each block at least the asked-for age: when it was allocated, and its weighted bytes. Unordered.
    pub survivors: Vec<Survivor>,
}

/// Records that were deleted because their program is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// How many.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Dropped {
    /// Adds some more.
    pub fn add(&mut self, more: Dropped) {
        self.blocks += more.blocks;
        self.bytes += more.bytes;
    }
}

/// A block old enough to be shown. Packed, because there are millions: of 20 bytes, not 24.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, packed(4))]
pub struct Survivor {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub allocated_ns: u64,
    /// Bytes, weighted.
    pub bytes: u64,
    /// Blocks that it stands for.
    pub weight: u32,
}

/// All that one drain has read.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The moment it stands for, `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// Whether the maps change while they are read.
    pub moving: bool,
    /// Blocks younger than this were not asked for as survivors, nanoseconds.
    pub older_ns: u64,
    /// Outstanding blocks by site.
    pub outstanding: HashMap<SiteKey, Outstanding>,
    /// Totals by stack ID since the start.
    pub sites: HashMap<u64, Site>,
    /// The ledger.
    pub counters: Counters,
    /// Records in the map of outstanding blocks.
    pub records: u64,
    /// Threads with a call pending, and how many of these hold a record that they took out.
    pub pending: Pending,
}

/// Calls that had begun and not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Calls of allocating functions that have not returned.
    pub calls: u64,
    /// Of these, reallocations that hold a record.
    pub taken: u64,
}

impl Snapshot {
    /// Begins a snapshot of the moment `at_ns`, of maps that change while they are read.
    pub fn new(at_ns: u64, older_ns: u64) -> Self {
        Self { at_ns, older_ns, moving: true, ..Self::default() }
    }

    /// Begins a snapshot of maps that stand still since `at_ns`.
    pub fn of_standing(at_ns: u64, older_ns: u64) -> Self {
        Self { moving: false, ..Self::new(at_ns, older_ns) }
    }

    /// Puts what each site's own counters say in the place of the blocks counted one by one, where maps change
    /// while they are read: a block that was live at `at_ns` may be freed before its turn comes, but a site's
    /// counters are read at one moment. `dropped` by stack: what the counters still hold of programs that are
    /// gone.
    pub fn settle(&mut self, dropped: &HashMap<u64, Dropped>) {
        if !self.moving {
            return;
        }
        for (key, site) in &mut self.outstanding {
            let Some(totals) = self.sites.get(&key.stack).filter(|_| key.stack != NO_STACK) else { continue };
            let gone = dropped.get(&key.stack).copied().unwrap_or_default();
            site.blocks = totals.allocated_blocks.saturating_sub(totals.freed_blocks + gone.blocks);
            site.bytes = totals.allocated_bytes.saturating_sub(totals.freed_bytes + gone.bytes);
        }
        self.outstanding.retain(|_, site| site.blocks > 0);
    }

    /// Puts sites together that are one: from an ID that its stack was kept under at first, to the one that it has.
    pub fn unite(&mut self, same: &HashMap<u64, u64>) {
        for (from, to) in same {
            if let Some(site) = self.sites.remove(from) {
                self.absorb(*to, &site);
            }
        }
        let of_same: Vec<SiteKey> =
            self.outstanding.keys().filter(|key| same.contains_key(&key.stack)).copied().collect();
        for key in of_same {
            let Some(site) = self.outstanding.remove(&key) else { continue };
            let sum = self.outstanding.entry(SiteKey { stack: same[&key.stack], ..key }).or_default();
            sum.blocks += site.blocks;
            sum.bytes += site.bytes;
            sum.family = site.family;
            sum.survivors.extend(site.survivors);
        }
    }

    /// Adds to a site what was counted elsewhere of the same stack.
    pub fn absorb(&mut self, id: u64, site: &Site) {
        match self.sites.get_mut(&id) {
            Some(sum) => unite(sum, site),
            None => _ = self.sites.insert(id, *site),
        }
    }

    /// Takes in what a site has freed by a second reading of all sites, when what they had allocated is known from
    /// a first.
    ///
    /// A block that is freed at one site and allocated anew at another, while sites are read one by one, would count
    /// at both. What was allocated before the first reading ended and is not freed when the second begins was
    /// live between the two, so that the sum over sites is never more than there was.
    pub fn add_freed(&mut self, id: u64, later: &Site) {
        if let Some(site) = self.sites.get_mut(&id) {
            *site = Site {
                allocated_blocks: site.allocated_blocks,
                allocated_bytes: site.allocated_bytes,
                ..*later
            };
        }
    }

    /// Takes in one record of the outstanding map.
    ///
    /// A map that changes while it is read: a block that is freed and allocated anew elsewhere could be seen
    /// twice. What was allocated by `at_ns` and is still there was live at `at_ns`, and is seen once, so
    /// counting only those never shows more than there was.
    pub fn add(&mut self, key: BlockKey, block: &Block) {
        self.records += 1;
        if self.moving && block.allocated_ns > self.at_ns {
            return;
        }
        let weight = u64::from(block.weight);
        let site = self.outstanding.entry(SiteKey { tgid: key.tgid, stack: block.stack }).or_default();
        site.blocks += weight;
        site.bytes += block.size * weight;
        site.family = block.family_index().into();
        if self.at_ns.saturating_sub(block.allocated_ns) >= self.older_ns {
            site.survivors.push(Survivor {
                allocated_ns: block.allocated_ns,
                bytes: block.size * weight,
                weight: block.weight,
            });
        }
    }
}

/// Adds up two sites.
pub fn unite(sum: &mut Site, site: &Site) {
    sum.allocated_blocks += site.allocated_blocks;
    sum.allocated_bytes += site.allocated_bytes;
    sum.freed_blocks += site.freed_blocks;
    sum.freed_bytes += site.freed_bytes;
    sum.max_lifetime_ns = sum.max_lifetime_ns.max(site.max_lifetime_ns);
    sum.missed_frees += site.missed_frees;
    sum.undescribed_blocks += site.undescribed_blocks;
    for (sum, count) in sum.lifetimes.iter_mut().zip(site.lifetimes) {
        *sum += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(size: u64, allocated_ns: u64) -> Block {
        Block { size, allocated_ns, stack: 9, tid: 1, generation: 0, weight: 1, family: 0 }
    }

    /// What a site of blocks of 10 bytes has allocated and freed.
    fn totals(allocated_blocks: u64, freed_blocks: u64) -> Site {
        Site {
            allocated_blocks,
            allocated_bytes: 10 * allocated_blocks,
            freed_blocks,
            freed_bytes: 10 * freed_blocks,
            max_lifetime_ns: 0,
            missed_frees: 0,
            undescribed_blocks: 0,
            lifetimes: [0; leakprobe_common::LIFETIME_BUCKETS],
        }
    }

    #[test]
    fn a_block_allocated_after_the_moment_is_counted_as_a_record_only() {
        let mut snapshot = Snapshot::new(1_000, 100);
        let key = BlockKey { address: 0x10, tgid: 5, _pad: 0 };
        snapshot.add(key, &block(10, 1_001));
        snapshot.add(key, &block(20, 1_000));
        snapshot.add(key, &block(30, 900));
        let site = &snapshot.outstanding[&SiteKey { tgid: 5, stack: 9 }];
        assert_eq!((snapshot.records, site.blocks, site.bytes), (3, 2, 50));
        assert_eq!(site.survivors, [Survivor { allocated_ns: 900, bytes: 30, weight: 1 }]);
    }

    #[test]
    fn a_sites_own_counters_say_what_is_live_while_maps_move() {
        let mut snapshot = Snapshot::new(1_000, 0);
        snapshot.add(BlockKey { address: 0x10, tgid: 5, _pad: 0 }, &block(10, 900));
        snapshot.sites.insert(9, totals(100, 60));
        snapshot.settle(&HashMap::from([(9, Dropped { blocks: 4, bytes: 40 })]));
        let site = &snapshot.outstanding[&SiteKey { tgid: 5, stack: 9 }];
        assert_eq!((site.blocks, site.bytes), (36, 360));
        snapshot.sites.insert(9, totals(100, 100));
        snapshot.settle(&HashMap::new());
        assert!(snapshot.outstanding.is_empty(), "freed while it was read");
    }

    #[test]
    fn sites_of_one_stack_are_put_together() {
        let mut snapshot = Snapshot::of_standing(1_000, 0);
        for stack in [9, 8, 7] {
            let key = BlockKey { address: stack, tgid: 5, _pad: 0 };
            snapshot.add(key, &Block { stack, ..block(10, 900) });
        }
        snapshot.sites.extend([(9, totals(3, 2)), (8, totals(5, 4)), (7, totals(2, 1))]);
        snapshot.unite(&HashMap::from([(8, 9), (7, 6), (1, 9)]));
        let mut sites: Vec<_> =
            snapshot.outstanding.iter().map(|(key, site)| (key.stack, site.blocks)).collect();
        sites.sort_unstable();
        assert_eq!(sites, [(6, 1), (9, 2)]);
        assert_eq!((snapshot.sites[&9].allocated_blocks, snapshot.sites[&9].freed_blocks), (8, 6));
        assert_eq!((snapshot.sites[&6].allocated_blocks, snapshot.sites.len()), (2, 2));
    }

    #[test]
    fn a_block_that_moves_between_sites_while_they_are_read_is_not_live_twice() {
        let mut snapshot = Snapshot::new(1_000, 0);
        // Read before the block left the one site, and after it came to the other.
        snapshot.sites.insert(1, totals(5, 4));
        snapshot.sites.insert(2, totals(3, 2));
        snapshot.add_freed(1, &totals(5, 5));
        snapshot.add_freed(2, &totals(4, 2));
        snapshot.add_freed(3, &totals(1, 0));
        let live = |id: u64| snapshot.sites[&id].allocated_blocks - snapshot.sites[&id].freed_blocks;
        assert_eq!((live(1), live(2), snapshot.sites.len()), (0, 1, 2));
    }

    #[test]
    fn of_maps_that_stand_still_every_record_counts() {
        let mut snapshot = Snapshot::of_standing(1_000, 0);
        let key = BlockKey { address: 0x10, tgid: 5, _pad: 0 };
        snapshot.add(key, &block(10, 1_001));
        snapshot.add(key, &block(20, 1_000));
        let site = &snapshot.outstanding[&SiteKey { tgid: 5, stack: 9 }];
        assert_eq!((snapshot.records, site.blocks, site.survivors.len()), (2, 2, 2));
    }
}

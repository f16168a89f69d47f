//! Sites, ranked.

use std::collections::HashMap;

use leakprobe_common::Site;

use crate::{
    drain::snapshot::{SiteKey, Snapshot},
    lifetime::ages::Ages,
};

/// One site as it is ranked and shown, but for the names of its frames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankedSite {
    /// Which one.
    pub key: SiteKey,
    /// Allocator family.
    pub family: u32,
    /// Blocks outstanding.
    pub live_blocks: u64,
    /// Bytes outstanding.
    pub live_bytes: u64,
    /// Its survivors.
    pub ages: Ages,
    /// Change of `live_bytes` since the snapshot before.
    pub growth_bytes: i64,
    /// Change of `live_bytes` a minute since the start.
    pub growth_bytes_per_minute: f64,
    /// Blocks and bytes ever allocated and freed here.
    pub totals: Totals,
}

/// Blocks and bytes ever allocated and freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Blocks ever recorded.
    pub allocated_blocks: u64,
    /// Bytes ever recorded.
    pub allocated_bytes: u64,
    /// Of these, blocks given back.
    pub freed_blocks: u64,
    /// Of these, bytes given back.
    pub freed_bytes: u64,
}

impl Totals {
    fn add(&mut self, site: &Site) {
        self.allocated_blocks += site.allocated_blocks;
        self.allocated_bytes += site.allocated_bytes;
        self.freed_blocks += site.freed_blocks;
        self.freed_bytes += site.freed_bytes;
    }
}

/// Sums over all sites.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Blocks outstanding.
    pub live_blocks: u64,
    /// Bytes outstanding.
    pub live_bytes: u64,
    /// Blocks old enough.
    pub survivor_blocks: u64,
    /// Their bytes.
    pub survivor_bytes: u64,
    /// Change of `live_bytes` since the snapshot before.
    pub growth_bytes: i64,
    /// Change of `live_bytes` a minute since the start.
    pub growth_bytes_per_minute: f64,
    /// Ever allocated and freed.
    pub totals: Totals,
}

/// Sums over the sites of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessSums {
    /// Blocks outstanding.
    pub live_blocks: u64,
    /// Bytes outstanding.
    pub live_bytes: u64,
    /// Blocks old enough.
    pub survivor_blocks: u64,
    /// Their bytes.
    pub survivor_bytes: u64,
}

/// What one report shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Analysis {
    /// All sites that have survivors, the most surviving bytes first.
    pub sites: Vec<RankedSite>,
    /// Sums over all sites, those without survivors too.
    pub sums: Sums,
    /// The same by process, for those that have something outstanding.
    pub processes: HashMap<u32, ProcessSums>,
}

/// Compares each snapshot with the one before it.
#[derive(Debug, Default)]
pub struct Analyst {
    start_ns: u64,
    before: HashMap<SiteKey, u64>,
}

impl Analyst {
    /// `start_ns`: when the probes were in place; nothing was live then.
    pub fn new(start_ns: u64) -> Self {
        Self { start_ns, before: HashMap::new() }
    }

    /// Ranks the sites of the next snapshot.
    pub fn next(&mut self, mut snapshot: Snapshot) -> Analysis {
        let minutes = snapshot.at_ns.saturating_sub(self.start_ns) as f64 / 60e9;
        let per_minute = |bytes: u64| if minutes > 0.0 { bytes as f64 / minutes } else { 0.0 };
        let mut analysis = Analysis::default();
        let sums = &mut analysis.sums;
        let mut now = HashMap::with_capacity(snapshot.outstanding.len());
        for (key, mut site) in snapshot.outstanding.drain() {
            let before = self.before.remove(&key).unwrap_or_default();
            now.insert(key, site.bytes);
            let growth_bytes = site.bytes as i64 - before as i64;
            let mut ages = Ages::of(&mut site.survivors, snapshot.at_ns);
            // Found one by one while the maps moved: no more than is live, and all of it where any age will do.
            if snapshot.older_ns == 0 && ages.blocks > 0 {
                (ages.blocks, ages.bytes) = (site.blocks, site.bytes);
            }
            ages.blocks = ages.blocks.min(site.blocks);
            ages.bytes = ages.bytes.min(site.bytes);
            sums.live_blocks += site.blocks;
            sums.live_bytes += site.bytes;
            sums.survivor_blocks += ages.blocks;
            sums.survivor_bytes += ages.bytes;
            sums.growth_bytes += growth_bytes;
            let process = analysis.processes.entry(key.tgid).or_default();
            process.live_blocks += site.blocks;
            process.live_bytes += site.bytes;
            process.survivor_blocks += ages.blocks;
            process.survivor_bytes += ages.bytes;
            if ages.blocks > 0 {
                let mut totals = Totals::default();
                if let Some(site) = snapshot.sites.get(&key.stack) {
                    totals.add(site);
                }
                analysis.sites.push(RankedSite {
                    key,
                    family: site.family,
                    live_blocks: site.blocks,
                    live_bytes: site.bytes,
                    ages,
                    growth_bytes,
                    growth_bytes_per_minute: per_minute(site.bytes),
                    totals,
                });
            }
        }
        // What is left has nothing outstanding any more.
        sums.growth_bytes -= self.before.values().map(|&bytes| bytes as i64).sum::<i64>();
        sums.growth_bytes_per_minute = per_minute(sums.live_bytes);
        for site in snapshot.sites.values() {
            sums.totals.add(site);
        }
        self.before = now;
        analysis.sites.sort_by(|a, b| {
            (b.ages.bytes, b.ages.oldest_ns, b.ages.blocks, a.key).cmp(&(
                a.ages.bytes,
                a.ages.oldest_ns,
                a.ages.blocks,
                b.key,
            ))
        });
        analysis
    }
}

#[cfg(test)]
mod tests {
    use leakprobe_common::{Block, BlockKey};

    use super::*;

    fn snapshot(at_ns: u64, blocks: &[(u64, u64, u64)]) -> Snapshot {
        let mut snapshot = Snapshot::new(at_ns, 10);
        for (address, &(stack, size, allocated_ns)) in blocks.iter().enumerate() {
            let key = BlockKey { address: address as u64, tgid: 1, _pad: 0 };
            let block = Block { size, allocated_ns, stack, tid: 1, generation: 0, weight: 1, family: 0 };
            snapshot.add(key, &block);
        }
        snapshot
    }

    #[test]
    fn growth_is_since_the_snapshot_before_and_a_site_that_emptied_shrinks_the_sum() {
        let mut analyst = Analyst::new(0);
        let first = analyst.next(snapshot(60_000_000_000, &[(5, 100, 1), (6, 50, 1)]));
        assert_eq!(first.sums.growth_bytes, 150);
        assert_eq!(first.sums.growth_bytes_per_minute, 150.0);
        let second = analyst.next(snapshot(120_000_000_000, &[(5, 100, 1), (5, 30, 2)]));
        assert_eq!(second.sums.growth_bytes, 30 - 50);
        assert_eq!(second.sites[0].growth_bytes, 30);
        assert_eq!(second.sites[0].growth_bytes_per_minute, 65.0);
    }

    #[test]
    fn sites_rank_by_surviving_bytes_and_young_blocks_do_not_survive() {
        let analysis = Analyst::new(0).next(snapshot(100, &[(5, 1_000, 95), (6, 10, 1), (7, 20, 1)]));
        let order: Vec<_> = analysis.sites.iter().map(|site| (site.key.stack, site.ages.bytes)).collect();
        assert_eq!(order, [(7, 20), (6, 10)]);
        assert_eq!((analysis.sums.live_bytes, analysis.sums.survivor_bytes), (1_030, 30));
        let of_it = ProcessSums { live_blocks: 3, live_bytes: 1_030, survivor_blocks: 2, survivor_bytes: 30 };
        assert_eq!(analysis.processes, HashMap::from([(1, of_it)]));
    }
}

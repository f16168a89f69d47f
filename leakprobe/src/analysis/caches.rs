//! The kernel's caches: what was traced of each, beside the kernel's own account of it.

use std::{cmp::Reverse, collections::BTreeMap};

use leakprobe_common::Site;

use super::sites::RankedSite;

/// What was traced of one cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traced {
    /// Objects recorded.
    pub allocated_blocks: u64,
    /// Objects given back, seen or not.
    pub freed_blocks: u64,
    /// Of these, objects whose free was not seen: their addresses were handed out again.
    pub missed_frees: u64,
    /// Objects live.
    pub live_blocks: u64,
    /// Their bytes.
    pub live_bytes: u64,
}

impl Traced {
    /// Adds a site of the cache.
    pub fn add(&mut self, site: &Site) {
        self.allocated_blocks += site.allocated_blocks;
        self.freed_blocks += site.freed_blocks;
        self.missed_frees += site.missed_frees;
        self.live_blocks += site.allocated_blocks.saturating_sub(site.freed_blocks);
        self.live_bytes += site.allocated_bytes.saturating_sub(site.freed_bytes);
    }

    /// Share of the frees that were not seen, 0 to 1. A lower bound: an object that was freed unseen and whose address
    /// has not come again counts as live.
    pub fn missed_share(&self) -> f64 {
        if self.freed_blocks == 0 { 0.0 } else { self.missed_frees as f64 / self.freed_blocks as f64 }
    }
}

/// The kernel's own account of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accounted {
    /// Objects in use now, minus those at the start.
    pub change: i64,
    /// Bytes of an object.
    pub object_bytes: u64,
    /// By how many objects this account may be behind: free ones that CPUs keep for themselves count as in use.
    pub slack: u64,
}

/// By how many objects /proc/slabinfo may be behind for one cache.
///
/// Each CPU has a slab from which it takes, and partly used ones beside it with up to twice `cpu_partial` objects, by
/// `set_cpu_partial()` of the kernel's slub.c; `sheaves`: from 7.0 on CPUs and nodes keep free
/// objects in those instead, and more of them.
pub fn slack(per_slab: u64, object_bytes: u64, cpus: u64, sheaves: bool) -> u64 {
    let cpu_partial = match object_bytes {
        4096.. => 6,
        1024.. => 24,
        256.. => 52,
        _ => 120,
    };
    cpus * (per_slab + 2 * cpu_partial) * if sheaves { 2 } else { 1 }
}

/// What the kernel's account says of the objects that were traced as live.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Support {
    /// Share of them that the cache's growth can account for, 0 to 1.
    pub share: f64,
    /// Whether most of them cannot have come on top of what was there, beyond what the account may be behind.
    pub contradicted: bool,
}

impl Support {
    /// Where there is nothing to compare with.
    pub const NOT_ASKED: Self = Self { share: 1.0, contradicted: false };

    /// Compares.
    pub fn of(live_blocks: u64, account: &Accounted) -> Self {
        if live_blocks == 0 {
            return Self::NOT_ASKED;
        }
        let grown = u64::try_from(account.change).unwrap_or(0);
        Self {
            share: (grown as f64 / live_blocks as f64).min(1.0),
            contradicted: live_blocks > account.slack
                && (grown == 0 || grown + account.slack < live_blocks / 2),
        }
    }
}

/// By how many objects a cache has grown that were not traced, where that is most of its growth and more than the
/// kernel's account may be off; `None` where the trace explains it.
pub fn untraced_growth(live_blocks: u64, account: &Accounted) -> Option<u64> {
    let grown = u64::try_from(account.change).ok()?;
    let untraced = grown.saturating_sub(live_blocks);
    (untraced > account.slack && untraced > grown / 2).then_some(untraced)
}

/// Orders sites by the surviving bytes that the kernel's account supports; those that it contradicts come last.
pub fn rank(sites: Vec<RankedSite>, support: impl Fn(&RankedSite) -> Support) -> Vec<(RankedSite, Support)> {
    let mut ranked: Vec<_> = sites.into_iter().map(|site| (site, support(&site))).collect();
    let key = |(site, support): &(RankedSite, Support)| {
        let supported = (site.ages.bytes as f64 * support.share) as u64;
        (support.contradicted, Reverse((supported, site.ages.bytes, site.ages.oldest_ns)), site.key)
    };
    ranked.sort_by_key(key);
    ranked
}

/// Sums up the sites of each cache, by its name.
pub fn by_name<'a>(sites: impl Iterator<Item = (String, &'a Site)>) -> BTreeMap<String, Traced> {
    let mut all: BTreeMap<String, Traced> = BTreeMap::new();
    for (name, site) in sites {
        all.entry(name).or_default().add(site);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{drain::snapshot::SiteKey, lifetime::ages::Ages};

    fn site(stack: u64, bytes: u64) -> RankedSite {
        RankedSite {
            key: SiteKey { tgid: 0, stack },
            family: 1,
            live_blocks: bytes / 100,
            live_bytes: bytes,
            ages: Ages { blocks: bytes / 100, bytes, ..Ages::default() },
            growth_bytes: 0,
            growth_bytes_per_minute: 0.0,
            totals: Default::default(),
        }
    }

    #[test]
    fn a_cache_that_did_not_grow_contradicts_what_was_traced() {
        let account = |change| Accounted { change, object_bytes: 100, slack: 100 };
        let of = |live, change| Support::of(live, &account(change)).contradicted;
        assert!(of(10_000, 0) && of(10_000, -5_000) && of(10_000, 4_800));
        assert!(!of(10_000, 10_000) && !of(10_000, 5_000), "it grew by half of it");
        assert!(!of(90, -1_000), "no more than the account may be behind");
        assert!(of(150, 0) && !of(150, 1), "more than it may be behind, and it did not grow at all");
        assert_eq!(Support::of(10_000, &account(2_500)).share, 0.25);
        assert_eq!(Support::of(10_000, &account(20_000)).share, 1.0);
        assert_eq!(Support::of(0, &account(-3)), Support::NOT_ASKED);
    }

    #[test]
    fn growth_that_was_not_traced_is_told_of() {
        let account = |change| Accounted { change, object_bytes: 100, slack: 100 };
        assert_eq!(untraced_growth(0, &account(8_192)), Some(8_192));
        assert_eq!(untraced_growth(1_000, &account(8_192)), Some(7_192));
        assert_eq!(untraced_growth(5_000, &account(8_192)), None, "most of it was traced");
        assert_eq!(untraced_growth(0, &account(90)), None, "no more than the account may be off");
        assert_eq!(untraced_growth(0, &account(-5)), None);
    }

    #[test]
    fn what_the_kernel_contradicts_comes_last() {
        let support = |site: &RankedSite| match site.key.stack {
            1 => Support { share: 0.0, contradicted: true },
            2 => Support { share: 0.1, contradicted: false },
            _ => Support::NOT_ASKED,
        };
        let sites = vec![site(1, 1_000_000), site(2, 50_000), site(3, 6_000), site(4, 7_000)];
        let order: Vec<u64> = rank(sites, support).iter().map(|(site, _)| site.key.stack).collect();
        assert_eq!(order, [4, 3, 2, 1]);
    }

    #[test]
    fn sites_of_one_cache_are_summed_and_the_unseen_frees_are_a_share() {
        let totals = |allocated_blocks, freed_blocks, missed_frees| Site {
            allocated_blocks,
            allocated_bytes: 10 * allocated_blocks,
            freed_blocks,
            freed_bytes: 10 * freed_blocks,
            max_lifetime_ns: 0,
            missed_frees,
            undescribed_blocks: 0,
            lifetimes: [0; leakprobe_common::LIFETIME_BUCKETS],
        };
        let (a, b) = (totals(10, 4, 1), totals(5, 4, 1));
        let all = by_name([("x".to_owned(), &a), ("x".to_owned(), &b)].into_iter());
        let x = all["x"];
        assert_eq!((x.live_blocks, x.live_bytes, x.missed_share()), (7, 70, 0.25));
        assert_eq!(Traced::default().missed_share(), 0.0);
    }

    #[test]
    fn the_slack_grows_with_processors_and_with_small_objects() {
        assert_eq!(slack(16, 256, 2, false), 2 * (16 + 104));
        assert!(slack(64, 64, 2, false) > slack(16, 256, 2, false));
        assert_eq!(slack(3, 9792, 4, true), 2 * 4 * (3 + 12));
    }
}

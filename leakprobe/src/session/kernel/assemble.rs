//! One report: drained, compared with the kernel's own account, named.

use std::{
    collections::{HashMap, HashSet},
    thread,
    time::Duration,
};

use anyhow::Result;
use leakprobe_common::{CacheKey, CacheKind, KernelStack, MemoryKind, Site, StackEnd};

use super::{KernelSession, Origin};
use crate::{
    analysis::{
        balance::{self, Counting},
        caches::{self, Support, Traced},
        sites::RankedSite,
    },
    drain::{
        kernel::{KERNEL, KernelSnapshot, Maker as Made, kind},
        snapshot::{SiteKey, Snapshot},
    },
    probe::{features::release, kernel::attach::How},
    report::model::{
        CacheRow, Gauge, Kernel, Maker, MemoryRow, ProbedFunction, Report, SCHEMA_VERSION, SiteKind, SiteRow,
        SlabPages, StackQuality, StackRow, Warning,
    },
    session::{
        assemble::{Occasion, totals},
        output::Reader,
    },
    sys::clock,
    target::kernel::meminfo::{self, FIELDS},
};

/// Names of makers that a site's row has.
const MAKERS: usize = 8;

/// Programs that still run when the probes are out end within this time each: it is asked until nothing changes.
const SETTLING: Duration = Duration::from_millis(5);
const MOST_SETTLING: usize = 100;

/// What is said of the caches.
struct CacheRows {
    /// Those that are shown.
    rows: Vec<CacheRow>,
    /// How many there are to be shown.
    live: u64,
    /// Names of those that /proc/slabinfo contradicts.
    contradicted: Vec<String>,
    /// What is to be said of those that grew untraced.
    untraced: Option<Warning>,
}

impl KernelSession {
    /// Drains the maps, and writes a report.
    ///
    /// The last one comes after [`KernelSession::stop`]: it reads one moment, and its ledger must balance.
    pub(super) fn report(&mut self, occasion: Occasion) -> Result<Reader> {
        let counting = match occasion {
            Occasion::Interval => Counting::Runs,
            Occasion::End => Counting::Stands,
        };
        let now = self.stopped_ns.unwrap_or_else(clock::monotonic_ns);
        let elapsed = Duration::from_nanos(now.saturating_sub(self.started_ns));
        let older = self.options.older_after(elapsed);
        let older_ns = older.as_nanos() as u64;
        let KernelSnapshot { plain: mut snapshot, makers } = match counting {
            Counting::Runs => self.maps.fill(KernelSnapshot::new(Snapshot::new(now, older_ns)))?,
            Counting::Stands => self.fill_standing(now, older_ns)?,
        };
        self.caches.refresh(&mut self.maps)?;
        if counting == Counting::Runs {
            self.own.recursion_misses = self.probes.recursion_misses();
        }
        let ledger = balance::kernel_ledger(&snapshot, &self.own, counting);
        snapshot.settle(&HashMap::new());
        self.learn_origins(&snapshot);
        let slab_pages = self.leave_out_slab_pages(&mut snapshot);
        let minutes = elapsed.as_secs_f64() / 60.0;
        let CacheRows { rows: cache_rows, live: live_caches, contradicted, untraced } =
            self.cache_rows(&snapshot.sites, minutes);
        let contradicted: HashSet<String> = contradicted.into_iter().collect();
        let misses_frees: HashSet<u64> =
            snapshot.sites.iter().filter(|(_, site)| site.missed_frees > 0).map(|(&id, _)| id).collect();
        let analysis = self.analyst.next(snapshot);
        // Each site by itself, since another one of its cache may be what is freed unseen; but by its whole cache where
        // frees of its own were missed.
        let support = |site: &RankedSite| {
            let name = self.origins.get(&site.key.stack).map(|origin| self.caches.name(origin.cache));
            let account = name.as_ref().and_then(|name| self.caches.account(name));
            let mut support =
                account.map_or(Support::NOT_ASKED, |account| Support::of(site.live_blocks, &account));
            let is_cache_contradicted = name.is_some_and(|name| contradicted.contains(&name));
            support.contradicted |= is_cache_contradicted && misses_frees.contains(&site.key.stack);
            support
        };
        let sums = totals(&analysis);
        let with_survivors = analysis.sites.len() as u64;
        let mut ranked = caches::rank(analysis.sites, support);
        ranked.truncate(self.options.top);
        let sites = ranked
            .into_iter()
            .zip(1..)
            .map(|((site, support), rank)| self.row(&site, support, rank, &makers));
        let sites = sites.collect();
        let mut warnings = ledger.losses();
        warnings.extend(untraced);
        warnings.extend(self.notes.iter().cloned());
        self.reports += 1;
        let since_last = now.saturating_sub(self.last_report_ns);
        self.last_report_ns = now;
        let report = Report {
            version: SCHEMA_VERSION,
            generator: format!("leakprobe {}", env!("CARGO_PKG_VERSION")),
            sequence: self.reports,
            is_final: occasion == Occasion::End,
            time: clock::utc_now(),
            elapsed_seconds: elapsed.as_secs_f64(),
            since_last_seconds: Duration::from_nanos(since_last).as_secs_f64(),
            older_seconds: older.as_secs_f64(),
            warnings,
            processes: Vec::new(),
            kernel: Some(Kernel {
                release: release(),
                memory: self.memory()?,
                caches: cache_rows,
                caches_with_live_objects: live_caches,
                sampled_one_in: self.options.kernel.one_in,
                tracepoints: self.shape.tracepoints.name().to_owned(),
                probed_functions: self.probed_functions(),
                unprobed_functions: self.probes.unprobed.clone(),
                slab_pages: self.options.kernel.pages.then_some(slab_pages),
            }),
            totals: sums,
            sites,
            mismatches: Vec::new(),
            sites_with_survivors: with_survivors,
            ledger,
            verbose: self.options.verbose,
            probes: Vec::new(),
            stacks: Vec::new(),
        };
        self.output.write(&report)
    }

    /// Reads until nothing changes any more: a program may still run for a moment after its probe is out.
    fn fill_standing(&self, now: u64, older_ns: u64) -> Result<KernelSnapshot> {
        let mut last = None;
        for _ in 0..MOST_SETTLING {
            thread::sleep(SETTLING);
            let snapshot = self.maps.fill(KernelSnapshot::new(Snapshot::of_standing(now, older_ns)))?;
            if last.as_ref() == Some(&snapshot.plain.counters) {
                return Ok(snapshot);
            }
            last = Some(snapshot.plain.counters.clone());
        }
        self.maps.fill(KernelSnapshot::new(Snapshot::of_standing(now, older_ns)))
    }

    /// Finds out which cache each new site allocates from.
    fn learn_origins(&mut self, snapshot: &Snapshot) {
        let mut without_stack: Option<HashMap<u64, u64>> = None;
        for &site in snapshot.sites.keys() {
            if self.origins.contains_key(&site) {
                continue;
            }
            let origin = match self.maps.stack(site) {
                Some(stack) => Origin {
                    cache: stack.cache,
                    is_slab_page: stack.kind == MemoryKind::Pages as u32
                        && self.symbolizer.takes_pages_for_slabs(addresses(&stack)),
                },
                None => {
                    let by_site =
                        without_stack.get_or_insert_with(|| sites_without_stacks(self.caches.keys()));
                    let Some(&cache) = by_site.get(&site) else { continue };
                    Origin { cache, is_slab_page: false }
                }
            };
            self.origins.insert(site, origin);
        }
    }

    /// Takes the sites out whose pages are those of slabs: their objects are counted.
    fn leave_out_slab_pages(&self, snapshot: &mut Snapshot) -> SlabPages {
        let mut left_out = SlabPages::default();
        let is_slab_page = |site: &u64| self.origins.get(site).is_some_and(|origin| origin.is_slab_page);
        snapshot.outstanding.retain(|key, outstanding| {
            let keep = !is_slab_page(&key.stack);
            if !keep {
                left_out.blocks += outstanding.blocks;
                left_out.bytes += outstanding.bytes;
            }
            keep
        });
        snapshot.sites.retain(|site, _| !is_slab_page(site));
        left_out
    }

    /// The table of caches.
    fn cache_rows(&self, sites: &HashMap<u64, Site>, minutes: f64) -> CacheRows {
        let named = sites.iter().filter_map(|(id, site)| {
            let origin = self.origins.get(id)?;
            Some((self.caches.name(origin.cache), site))
        });
        let mut by_name = caches::by_name(named);
        // Objects of other sizes are in the same caches.
        let compares = self.options.min_size.is_none() && self.options.max_size.is_none();
        let mut untraced: Vec<(u64, String)> = Vec::new();
        for name in self.caches.wanted().filter(|_| compares) {
            let Some(account) = self.caches.account(name) else { continue };
            let live = by_name.get(name).map_or(0, |traced| traced.live_blocks);
            if let Some(objects) = caches::untraced_growth(live, &account) {
                untraced.push((objects * account.object_bytes, format!("{name} by {objects}")));
                by_name.entry(name.clone()).or_default();
            }
        }
        let account = |name: &str| self.caches.account(name);
        let mut rows: Vec<CacheRow> = by_name
            .iter()
            .map(|(name, traced)| {
                let support = account(name)
                    .map_or(Support::NOT_ASKED, |account| Support::of(traced.live_blocks, &account));
                self.cache_row(name, traced, support, minutes)
            })
            .collect();
        let grown = |row: &CacheRow| {
            let change = u64::try_from(row.slabinfo_change.unwrap_or(0)).unwrap_or(0);
            row.live_bytes.max(change.saturating_mul(row.object_bytes.unwrap_or(0)))
        };
        rows.retain(|row| row.live_objects > 0 || grown(row) > 0);
        let live = rows.len() as u64;
        let contradicted = rows.iter().filter(|row| row.contradicted).map(|row| row.name.clone()).collect();
        rows.sort_by(|a, b| grown(b).cmp(&grown(a)).then_with(|| a.name.cmp(&b.name)));
        rows.truncate(self.options.top);
        CacheRows { rows, live, contradicted, untraced: untraced_growth(untraced) }
    }

    fn cache_row(&self, name: &str, traced: &Traced, support: Support, minutes: f64) -> CacheRow {
        let per_minute = |bytes: f64| if minutes > 0.0 { bytes / minutes } else { 0.0 };
        let account = self.caches.account(name);
        CacheRow {
            name: name.to_owned(),
            object_bytes: self.caches.row(name).map(|row| row.object_bytes),
            live_objects: traced.live_blocks,
            live_bytes: traced.live_bytes,
            growth_bytes_per_minute: per_minute(traced.live_bytes as f64),
            slabinfo_objects: self.caches.row(name).map(|row| row.active),
            slabinfo_change: account.map(|account| account.change),
            slabinfo_bytes_per_minute: account
                .map(|account| per_minute(account.change as f64 * account.object_bytes as f64)),
            allocated_objects: traced.allocated_blocks,
            freed_objects: traced.freed_blocks,
            untraced_frees: traced.missed_frees,
            untraced_free_share: traced.missed_share(),
            contradicted: support.contradicted,
        }
    }

    fn memory(&self) -> Result<Vec<MemoryRow>> {
        let now = meminfo::read()?;
        let rows = FIELDS.iter().zip(now).zip(self.memory_at_start).map(|((name, now), start)| MemoryRow {
            name: (*name).to_owned(),
            bytes: now.zip(start).map(|(now, start)| Gauge {
                now,
                change: now.cast_signed().wrapping_sub(start.cast_signed()),
            }),
        });
        Ok(rows.collect())
    }

    fn probed_functions(&self) -> Vec<ProbedFunction> {
        let how = |how: &How| match how {
            How::Patched => "patched",
            How::Breakpoint => "breakpoint",
        };
        let functions = self.probes.functions.iter();
        functions.map(|(name, by)| ProbedFunction { name: name.clone(), how: how(by).to_owned() }).collect()
    }

    fn row(
        &mut self,
        site: &RankedSite,
        support: Support,
        rank: u32,
        makers: &HashMap<u64, HashMap<Made, u64>>,
    ) -> SiteRow {
        let seconds = |ns: u64| Duration::from_nanos(ns).as_secs_f64();
        let cache = self.origins.get(&site.key.stack).map(|origin| self.caches.name(origin.cache));
        let cache = cache.unwrap_or_else(|| "a cache without a name".to_owned());
        let contradiction = support.contradicted.then(|| self.contradiction(&cache)).flatten();
        SiteRow {
            rank,
            pid: KERNEL,
            kind: match kind(site.family) {
                MemoryKind::Slab => SiteKind::Slab,
                MemoryKind::Pages => SiteKind::Pages,
                MemoryKind::PerCpu => SiteKind::PerCpu,
            },
            allocator: cache,
            live_bytes: site.live_bytes,
            live_blocks: site.live_blocks,
            survivor_bytes: site.ages.bytes,
            survivor_blocks: site.ages.blocks,
            growth_bytes: site.growth_bytes,
            growth_bytes_per_minute: site.growth_bytes_per_minute,
            oldest_seconds: seconds(site.ages.oldest_ns),
            median_seconds: seconds(site.ages.median_ns),
            allocated_blocks: site.totals.allocated_blocks,
            allocated_bytes: site.totals.allocated_bytes,
            freed_blocks: site.totals.freed_blocks,
            freed_bytes: site.totals.freed_bytes,
            made_by: makers.get(&site.key.stack).map(made_by).unwrap_or_default(),
            contradiction,
            stack: self.stack_row(&site.key),
        }
    }

    /// What is to be said of a site whose cache did not grow as its survivors would have it.
    fn contradiction(&self, cache: &str) -> Option<String> {
        let account = self.caches.account(cache)?;
        Some(format!(
            "not to be believed as growth: by /proc/slabinfo the objects of {cache} have changed by {:+} since the start; \
             either as many older ones went, or frees of these were not seen",
            account.change
        ))
    }

    fn stack_row(&mut self, key: &SiteKey) -> StackRow {
        let id = format!("{:016x}", key.stack);
        let Some(stack) = self.maps.stack(key.stack) else {
            return StackRow { id, quality: StackQuality::NotKept, frames: Vec::new() };
        };
        let quality = match StackEnd::from_raw(stack.end) {
            StackEnd::Base => StackQuality::Whole,
            StackEnd::Truncated => StackQuality::Truncated,
            StackEnd::Lost => StackQuality::Caller,
        };
        StackRow { id, quality, frames: self.symbolizer.stack(addresses(&stack)) }
    }
}

/// Caches that are named in a warning.
const NAMED: usize = 4;

/// What is to be said of caches that grew by objects that no tracepoint told of: bytes, and name with objects.
fn untraced_growth(mut caches: Vec<(u64, String)>) -> Option<Warning> {
    caches.sort_by(|a, b| b.cmp(a));
    let names: Vec<&str> = caches.iter().take(NAMED).map(|(_, name)| name.as_str()).collect();
    let more = caches.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(", and {more} caches more") } else { String::new() };
    (!names.is_empty()).then(|| Warning {
        kind: "allocations_untraced".to_owned(),
        text: format!(
            "by /proc/slabinfo these caches grew by objects that no tracepoint told of: {}{more}; such are allocated in bulk, \
             or before the probes were in place, and no site below is theirs",
            names.join(", ")
        ),
    })
}

fn addresses(stack: &KernelStack) -> &[u64] {
    &stack.frames[..(stack.len as usize).min(stack.frames.len())]
}

/// Sites of objects whose stacks were not kept, with their caches: by the same sum as in the BPF programs.
fn sites_without_stacks(met: impl Iterator<Item = u64>) -> HashMap<u64, u64> {
    let unnamed = [
        CacheKind::Kmalloc,
        CacheKind::KmallocCgroup,
        CacheKind::KmallocReclaimable,
        CacheKind::KmallocDma,
        CacheKind::Unnamed,
    ];
    // Sizes of kmalloc's caches, and of others in steps of what they are aligned to.
    let sizes = (1..=8192 / 8).map(|words| words * 8);
    let sized = sizes.flat_map(|bytes| unnamed.map(|kind| CacheKey::of(kind, bytes).0));
    let others =
        [CacheKind::KmallocLarge, CacheKind::Pages, CacheKind::PerCpu].map(|kind| CacheKey::of(kind, 0).0);
    met.chain(sized).chain(others).map(|cache| (leakprobe_common::mix(0, cache), cache)).collect()
}

/// Who made a site's survivors, by name, most first.
fn made_by(makers: &HashMap<Made, u64>) -> Vec<Maker> {
    let mut by_name: HashMap<&[u8; 16], (Maker, u64)> = HashMap::new();
    for (maker, &blocks) in makers {
        let (row, most) = by_name.entry(&maker.comm).or_insert_with(|| {
            let length = maker.comm.iter().position(|&byte| byte == 0).unwrap_or(maker.comm.len());
            let name = String::from_utf8_lossy(&maker.comm[..length]).into_owned();
            (Maker { name, blocks: 0, processes: 0, pid: maker.tgid }, 0)
        });
        row.blocks += blocks;
        row.processes += 1;
        if blocks > *most {
            (*most, row.pid) = (blocks, maker.tgid);
        }
    }
    let mut rows: Vec<Maker> = by_name.into_values().map(|(row, _)| row).collect();
    rows.sort_by(|a, b| b.blocks.cmp(&a.blocks).then_with(|| a.name.cmp(&b.name)));
    rows.truncate(MAKERS);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makers_are_summed_by_name_and_the_busiest_process_stands_for_them() {
        let maker = |comm: &[u8], tgid| {
            let mut padded = [0; 16];
            padded[..comm.len()].copy_from_slice(comm);
            Made { comm: padded, tgid }
        };
        let makers = HashMap::from([(maker(b"sh", 1), 5), (maker(b"sh", 2), 7), (maker(b"nginx", 3), 6)]);
        let rows = made_by(&makers);
        let seen: Vec<_> =
            rows.iter().map(|row| (&row.name[..], row.blocks, row.processes, row.pid)).collect();
        assert_eq!(seen, [("sh", 12, 2, 2), ("nginx", 6, 1, 3)]);
    }

    #[test]
    fn a_site_without_a_stack_is_found_by_its_cache() {
        let key = CacheKey::of(CacheKind::KmallocCgroup, 192).0;
        let sites = sites_without_stacks([0xffff_8880_1234_5600].into_iter());
        assert_eq!(sites.get(&leakprobe_common::mix(0, key)), Some(&key));
        assert_eq!(sites.get(&leakprobe_common::mix(0, 0xffff_8880_1234_5600)), Some(&0xffff_8880_1234_5600));
    }
}

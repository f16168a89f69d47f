//! The caches of a session: their names, which of them are wanted, and the kernel's own account of them.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Result, bail};
use leakprobe_common::{Cache, CacheKey, CacheKind};

use crate::{
    analysis::caches::{Accounted, slack},
    cli::Options,
    probe::kernel::maps::KernelMaps,
    target::kernel::{
        pattern,
        shape::{Shape, cache_name},
        slabinfo::{self, Row, Slabinfo},
    },
};

/// What blocks above kmalloc's largest cache are called, which are in no cache.
const LARGE: &str = "kmalloc-large";

/// Near names that an error lists.
const NEAR: usize = 8;

/// The caches.
pub struct Caches {
    patterns: Vec<String>,
    /// Whether keys of kmalloc's caches are addresses.
    by_address: bool,
    sheaves: bool,
    cpus: u64,
    start: Slabinfo,
    now: Slabinfo,
    /// Those that the programs have met, by key.
    met: HashMap<u64, Cache>,
    told: usize,
}

impl Caches {
    /// Of a kernel with these caches.
    ///
    /// # Errors
    /// When a pattern of `--cache` matches none, with near names.
    pub fn new(options: &Options, shape: &Shape, slabs: Slabinfo) -> Result<Self> {
        for wanted in &options.kernel.caches {
            if !slabs.keys().any(|name| pattern::matches(wanted, name)) {
                bail!(nothing_matches(wanted, &slabs));
            }
        }
        if !options.kernel.caches.is_empty() && !shape.knows_caches() {
            bail!(
                "failed to record only some caches: this kernel's tracepoints name no caches, and it says nowhere how \
                 to find them; leave out --cache, and use --min-size and --max-size"
            );
        }
        Ok(Self {
            patterns: options.kernel.caches.clone(),
            by_address: shape.layout.page_offset_variable != 0,
            sheaves: shape.sheaves,
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64),
            start: slabs.clone(),
            now: slabs,
            met: HashMap::new(),
            told: 0,
        })
    }

    /// Takes the kernel's account as it is now for that of the start.
    pub fn begin(&mut self) {
        if let Ok(slabs) = slabinfo::read() {
            (self.start, self.now) = (slabs.clone(), slabs);
        }
    }

    /// Reads what has changed; with `--cache`, has objects of caches recorded that have come meanwhile.
    pub fn refresh(&mut self, maps: &mut KernelMaps) -> Result<()> {
        if let Ok(slabs) = slabinfo::read() {
            self.now = slabs;
        }
        if !self.patterns.is_empty() && self.now.len() != self.told {
            self.tell(maps)?;
            self.told = self.now.len();
        }
        self.met = maps.caches();
        Ok(())
    }

    /// Tells the programs which caches are wanted.
    pub fn tell(&self, maps: &mut KernelMaps) -> Result<()> {
        let wanted = |name: &String| self.patterns.iter().any(|wanted| pattern::matches(wanted, name));
        for (name, row) in self.now.iter().filter(|(name, _)| wanted(name)) {
            let keys = if self.by_address { Vec::new() } else { kmalloc_keys(name, row.object_bytes) };
            maps.want(name, row.object_bytes, &keys)?;
        }
        Ok(())
    }

    /// The name of a cache by its key.
    pub fn name(&self, key: u64) -> String {
        if let Some((kind, bytes)) = CacheKey(key).parts() {
            return cache_name(kind, bytes);
        }
        match self.met.get(&key) {
            Some(cache) if cache.name[0] != 0 => {
                let length = cache.name.iter().position(|&byte| byte == 0).unwrap_or(cache.name.len());
                String::from_utf8_lossy(&cache.name[..length]).into_owned()
            }
            _ => "a cache without a name".to_owned(),
        }
    }

    /// Keys of all caches that the programs have met.
    pub fn keys(&self) -> impl Iterator<Item = u64> {
        self.met.keys().copied()
    }

    /// Names of the caches that are recorded.
    pub fn wanted(&self) -> impl Iterator<Item = &String> {
        self.now.keys().filter(|name| {
            self.patterns.is_empty() || self.patterns.iter().any(|wanted| pattern::matches(wanted, name))
        })
    }

    /// The kernel's own row of a cache; `None` where it has none.
    pub fn row(&self, name: &str) -> Option<Row> {
        self.now.get(name).copied()
    }

    /// The kernel's own account of how a cache has changed.
    pub fn account(&self, name: &str) -> Option<Accounted> {
        let before = self.start.get(name).map_or(0, |row| row.active);
        let now = self.now.get(name)?;
        Some(Accounted {
            change: now.active.cast_signed() - before.cast_signed(),
            object_bytes: now.object_bytes,
            slack: slack(now.per_slab, now.object_bytes, self.cpus, self.sheaves),
        })
    }
}

/// The keys of kmalloc's caches, which have no address where the page of an object does not tell its cache.
fn kmalloc_keys(name: &str, bytes: u64) -> Vec<CacheKey> {
    [CacheKind::Kmalloc, CacheKind::KmallocCgroup, CacheKind::KmallocReclaimable, CacheKind::KmallocDma]
        .into_iter()
        .filter(|&kind| cache_name(kind, bytes) == name)
        .map(|kind| CacheKey::of(kind, bytes))
        .collect()
}

fn nothing_matches(wanted: &str, slabs: &BTreeMap<String, Row>) -> String {
    let near = pattern::nearest(wanted, slabs.keys().map(String::as_str), NEAR);
    let shown = crate::report::escape::visible(wanted).into_owned();
    let near = match &near[..] {
        [] => "no name is near it".to_owned(),
        near => format!("near names: {}", near.join(", ")),
    };
    if wanted == LARGE {
        return format!(
            "failed to find a cache that matches '{LARGE}': blocks that are larger than kmalloc's caches are in none; leave \
             out --cache, and use --min-size"
        );
    }
    if slabs.is_empty() {
        return format!(
            "failed to find the cache '{shown}': /proc/slabinfo lists none here; leave out --cache, and use --min-size and \
             --max-size"
        );
    }
    format!(
        "failed to find a cache that matches '{shown}' among the {} of /proc/slabinfo: {near} (a cache that was merged \
         with another one has that one's name)",
        slabs.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_matches_nothing_is_answered_with_near_ones() {
        let slabs = slabinfo::parse(
            "dentry 1 2 192 21 1 : tunables 0 0 0 : slabdata 0 0 0\n\
             filp 1 2 256 16 1 : tunables 0 0 0 : slabdata 0 0 0\n",
        );
        let text = nothing_matches("dentri", &slabs);
        assert!(
            text.contains("matches 'dentri' among the 2 of /proc/slabinfo: near names: dentry ("),
            "{text}"
        );
        assert!(nothing_matches("zzzzzzz", &slabs).contains("no name is near it"));
        assert!(nothing_matches("\x1b[31m", &slabs).contains("\\x1b[31m"));
    }

    #[test]
    fn kmallocs_caches_have_keys_by_their_names() {
        assert_eq!(kmalloc_keys("kmalloc-cg-1k", 1024), [CacheKey::of(CacheKind::KmallocCgroup, 1024)]);
        assert!(kmalloc_keys("dentry", 192).is_empty());
    }
}

//! The maps that user space reads and writes, by name.

use std::{
    collections::HashMap,
    mem::{self, offset_of},
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    maps::{Array, HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
};
use bytes::Bytes;
use leakprobe_common::{
    Block, BlockKey, COUNTERS, Cookie, Counter, Kin, Mismatch, MismatchKey, NO_STACK, ProbeKey, Site, Stack,
    Target, Thread,
};

use super::load::map_data;
use crate::{
    drain::{
        batch::Elements,
        decode,
        snapshot::{self, Counters, Dropped, Pending, Snapshot},
    },
    sys::bpf,
};

/// The maps of a loaded object.
pub struct Maps {
    targets: BpfHashMap<MapData, u32, Target>,
    targets_fd: OwnedFd,
    /// Of processes of a tree (`--follow`).
    kin: BpfHashMap<MapData, u32, Kin>,
    /// Those whose target is gone.
    kin_left: Vec<u32>,
    follows: bool,
    cookies: BpfHashMap<MapData, ProbeKey, u64>,
    stacks: BpfHashMap<MapData, u64, Stack>,
    ledger: PerCpuArray<MapData, u64>,
    closing: Array<MapData, u32>,
    blocks: Map,
    sites: Map,
    threads: Map,
    mismatches: BpfHashMap<MapData, MismatchKey, Mismatch>,
    capacity: Capacity,
}

/// What the programs tell as it happens.
pub struct Rings {
    /// `Event`s, and `RangeEvent`s.
    pub events: RingBuf<MapData>,
    /// `StackCopy`s.
    pub copies: RingBuf<MapData>,
}

#[derive(Clone, Copy)]
struct Capacity {
    blocks: usize,
    stacks: usize,
}

impl Maps {
    /// Takes the maps out of a loaded object, and the ring buffers with them.
    pub fn take(ebpf: &mut Ebpf, max_blocks: u32, max_stacks: u32, follows: bool) -> Result<(Self, Rings)> {
        let mut map =
            |name: &str| ebpf.take_map(name).ok_or_else(|| anyhow!("the BPF object has no map {name}"));
        let targets = map("TARGETS")?;
        let targets_fd = map_data(&targets).ok_or_else(|| anyhow!("TARGETS is no hash map"))?.fd().as_fd();
        let maps = Self {
            targets_fd: targets_fd.try_clone_to_owned().context("failed to copy a map's descriptor")?,
            targets: BpfHashMap::try_from(targets)?,
            kin: BpfHashMap::try_from(map("KIN")?)?,
            kin_left: Vec::new(),
            follows,
            cookies: BpfHashMap::try_from(map("COOKIES")?)?,
            stacks: BpfHashMap::try_from(map("STACKS")?)?,
            ledger: PerCpuArray::try_from(map("LEDGER")?)?,
            // The section of zeroed globals holds one, CLOSING.
            closing: Array::try_from(map(".bss")?)?,
            blocks: map("BLOCKS")?,
            sites: map("SITES")?,
            threads: map("THREADS")?,
            mismatches: BpfHashMap::try_from(map("MISMATCHES")?)?,
            capacity: Capacity { blocks: max_blocks as usize, stacks: max_stacks as usize },
        };
        // There from the beginning, since there may be no room for it when it is needed.
        let sites = map_data(&maps.sites).ok_or_else(|| anyhow!("SITES is no hash map"))?.fd().as_fd();
        bpf::update(sites, &NO_STACK.to_ne_bytes(), &[0; decode::SITE_BYTES])
            .context("failed to make the site of what has no stack")?;
        let (events, copies) = (map("EVENTS")?, map("COPIES")?);
        Ok((maps, Rings { events: events.try_into()?, copies: copies.try_into()? }))
    }

    /// Ends the programs' work: what they have recorded stands still as soon as those that run now are done.
    pub fn close(&mut self) -> Result<()> {
        self.closing.set(0, 1, 0).context("failed to end the BPF programs' work")
    }

    /// Makes a process a target. `number` is its place among the targets, `generation` the number of its program image.
    pub fn add_target(&mut self, tgid: u32, number: u32, generation: u32) -> Result<()> {
        let context = || format!("failed to register process {tgid} with the BPF programs");
        if self.follows {
            self.kin.insert(tgid, Kin::default(), 0).with_context(context)?;
        }
        let (image, born, owner, book) = (generation, generation, tgid, tgid);
        let target = Target { number, generation, image, born, owner, book, ..Target::default() };
        self.targets.insert(tgid, target, 0).with_context(context)
    }

    /// What the programs know of a process; `None` when it is no target.
    pub fn target(&self, tgid: u32) -> Result<Option<Target>> {
        match self.targets.get(&tgid, 0) {
            Ok(target) => Ok(Some(target)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("failed to read the target {tgid}")),
        }
    }

    /// Says something else of a process to the programs.
    pub fn set_target(&mut self, tgid: u32, target: Target) -> Result<()> {
        self.targets.insert(tgid, target, 0).with_context(|| format!("failed to write the target {tgid}"))
    }

    /// What a process of a tree holds, and what it had from its parent.
    pub fn kin(&self, tgid: u32) -> Kin {
        self.kin.get(&tgid, 0).unwrap_or_default()
    }

    /// Makes a process that has ended no target any more, unless its number is another one's by now, whose first image has
    /// another number than `born`.
    pub fn remove_target(&mut self, tgid: u32, born: u32) -> Result<()> {
        if self.target(tgid)?.is_none_or(|target| target.born != born) {
            return Ok(());
        }
        let context = || format!("failed to drop process {tgid}, which has ended");
        let (targets, key, mut value) =
            (self.targets_fd.as_fd(), tgid.to_ne_bytes(), [0; size_of::<Target>()]);
        if bpf::take(targets, &key, &mut value).with_context(context)?
            && value[offset_of!(Target, born)..][..size_of::<u32>()] != born.to_ne_bytes()
        {
            // Another process was made meanwhile.
            bpf::insert(targets, &key, &value).with_context(context)?;
        } else if self.follows {
            self.kin_left.push(tgid);
        }
        Ok(())
    }

    /// Deletes what processes of a tree held that are targets no more: not at once, since the next one of the number has its
    /// own before it is a target.
    pub fn sweep_kin(&mut self) -> Result<()> {
        for tgid in mem::take(&mut self.kin_left) {
            if self.target(tgid)?.is_none() {
                // It need not be there.
                let _ = self.kin.remove(&tgid);
            }
        }
        Ok(())
    }

    /// Outstanding blocks that there is room for.
    pub fn room_for_blocks(&self) -> u64 {
        self.capacity.blocks as u64
    }

    /// Tells the programs what is probed where, in the order given; see [`super::cookies`].
    pub fn set_cookies(&mut self, entries: Vec<(ProbeKey, Cookie)>) -> Result<()> {
        for (key, cookie) in entries {
            self.cookies.insert(key, cookie.0, 0).with_context(|| {
                format!("failed to tell the BPF programs of a probe in process {}", key.tgid)
            })?;
        }
        Ok(())
    }

    /// Tells the programs where a target's page of return-probe trampolines is.
    pub fn set_trampoline(&mut self, tgid: u32, trampoline: u64) -> Result<()> {
        // It may have ended meanwhile.
        let Some(target) = self.target(tgid)? else { return Ok(()) };
        if target.trampoline != trampoline {
            self.targets.insert(tgid, Target { trampoline, ..target }, 0)?;
        }
        Ok(())
    }

    /// Keeps a stack under another ID, or in the place of what is there; whether there is room.
    pub fn set_stack(&mut self, id: u64, stack: Stack) -> bool {
        self.stacks.insert(id, stack, 0).is_ok()
    }

    /// Gives back a stack's room.
    pub fn remove_stack(&mut self, id: u64) {
        // It may not have been kept, for want of room.
        let _ = self.stacks.remove(&id);
    }

    /// Gives back the room of a site that nothing is counted for any more.
    pub fn remove_site(&self, id: u64) {
        if let Some(data) = map_data(&self.sites) {
            // It may not have been kept, for want of room.
            let _ = bpf::delete(data.fd().as_fd(), &id.to_ne_bytes());
        }
    }

    /// The frames of a stack; `None` when it is not kept.
    pub fn stack(&self, id: u64) -> Option<Stack> {
        self.stacks.get(&id, 0).ok()
    }

    /// Blocks that came to another allocator than their own, by the way they came.
    pub fn mismatches(&self) -> Result<Vec<(MismatchKey, Mismatch)>> {
        let all = self.mismatches.iter().filter(|entry| !entry.as_ref().is_ok_and(|(_, it)| it.blocks == 0));
        all.collect::<Result<_, _>>().context("failed to read the map of mismatched frees")
    }

    /// The ledger's counters.
    pub fn counters(&self) -> Result<Counters> {
        let mut counters = Counters::default();
        // Backwards: outcomes before the hits that they belong to, which come first in each group. So hits are
        // never behind, however fast the programs count meanwhile.
        for counter in Counter::ALL.iter().rev() {
            let index = *counter as u32;
            let values = self.ledger.get(&index, 0).context("failed to read the ledger")?;
            counters.0[index as usize] = values.iter().sum();
        }
        const _: () = assert!(Counter::ALL.len() == COUNTERS);
        Ok(counters)
    }

    /// Reads everything once, into a snapshot that was begun.
    pub fn fill(&self, mut snapshot: Snapshot) -> Result<Snapshot> {
        self.each_block(|key, block| snapshot.add(key, block))?;
        self.each_site(|id, site| {
            snapshot.sites.insert(id, site);
        })?;
        if snapshot.moving {
            // Once more: see `Snapshot::add_freed`.
            self.each_site(|id, site| snapshot.add_freed(id, &site))?;
        }
        snapshot.pending = self.pending()?;
        snapshot.counters = self.counters()?;
        Ok(snapshot)
    }

    /// Calls in flight, counted thread by thread.
    fn pending(&self) -> Result<Pending> {
        let mut pending = Pending::default();
        let data = map_data(&self.threads).ok_or_else(|| anyhow!("THREADS is no hash map"))?;
        let (value_size, room) = (size_of::<Thread>(), data.info()?.max_entries() as usize);
        let threads = self.elements(&self.threads, size_of::<u32>(), value_size, room)?;
        let word = |thread: &[u8], at: usize| {
            thread.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
        };
        threads
            .read(|_, values| {
                for thread in values.chunks_exact(value_size) {
                    pending.calls += u64::from(word(thread, offset_of!(Thread, outer)) != 0);
                    if word(thread, offset_of!(Thread, cookie)) != 0 {
                        pending.calls += 1;
                        pending.taken += u64::from(word(thread, offset_of!(Thread, has_taken)) != 0);
                    }
                }
            })
            .context("failed to read the map of threads")?;
        Ok(pending)
    }

    /// Deletes the records that are said to be gone with their process or its program, and returns them by stack.
    pub fn forget(&self, is_gone: impl Fn(&BlockKey, &Block) -> bool) -> Result<HashMap<u64, Dropped>> {
        let mut old = Vec::new();
        self.each_block(|key, block| {
            if is_gone(&key, block) {
                old.push(key);
            }
        })?;
        let data = map_data(&self.blocks).ok_or_else(|| anyhow!("BLOCKS is no hash map"))?.fd().as_fd();
        let mut deleted: HashMap<u64, Dropped> = HashMap::new();
        for key in old {
            let mut bytes = [0; decode::BLOCK_KEY_BYTES];
            bytes[..8].copy_from_slice(&key.address.to_ne_bytes());
            bytes[8..12].copy_from_slice(&key.tgid.to_ne_bytes());
            let mut value = vec![0; decode::BLOCK_BYTES];
            if !bpf::take(data, &bytes, &mut value)? {
                continue;
            }
            let value = Bytes::from(value);
            let Some(block) = decode::block(&mut value.clone()) else { continue };
            // A process of the same number, or its new program, may have been given that address meanwhile. If it has been given
            // it once more since, that record is the one that counts; if it has freed it in between, it seems to live. One that
            // cannot be put back, for lack of room, is lost.
            if is_gone(&key, &block) || bpf::insert(data, &bytes, &value).is_err() {
                deleted.entry(block.stack).or_default().add(Dropped { blocks: 1, bytes: block.size });
            }
        }
        Ok(deleted)
    }

    /// Deletes stacks of a process that has ended, with their sites, and adds these up in `sum`.
    pub fn remove_stacks(&mut self, ids: &[u64], sum: &mut Site) -> Result<()> {
        let sites = map_data(&self.sites).ok_or_else(|| anyhow!("SITES is no hash map"))?.fd().as_fd();
        for id in ids {
            let mut bytes = vec![0; decode::SITE_BYTES];
            if bpf::lookup(sites, &id.to_ne_bytes(), &mut bytes)?
                && let Some(site) = decode::site(&mut bytes.into())
            {
                snapshot::unite(sum, &site);
                bpf::delete(sites, &id.to_ne_bytes())?;
            }
            // It need not be there.
            let _ = self.stacks.remove(id);
        }
        Ok(())
    }

    fn each_block(&self, mut each: impl FnMut(BlockKey, &Block)) -> Result<()> {
        let blocks =
            self.elements(&self.blocks, decode::BLOCK_KEY_BYTES, decode::BLOCK_BYTES, self.capacity.blocks)?;
        blocks
            .read(|mut keys, mut values| {
                while let (Some(key), Some(block)) =
                    (decode::block_key(&mut keys), decode::block(&mut values))
                {
                    each(key, &block);
                }
            })
            .context("failed to read the map of outstanding blocks")
    }

    fn each_site(&self, each: impl FnMut(u64, Site)) -> Result<()> {
        read_sites(&self.sites, self.capacity.stacks + 1, each)
    }

    fn elements<'a>(
        &self,
        map: &'a Map,
        key_size: usize,
        value_size: usize,
        max_entries: usize,
    ) -> Result<Elements<'a>> {
        let data = map_data(map).ok_or_else(|| anyhow!("not a hash map"))?;
        Ok(Elements { map: data.fd().as_fd(), key_size, value_size, max_entries })
    }
}

/// Calls `each(id, site)` for all elements of a map of sites.
///
/// # Errors
/// What the kernel said.
pub fn read_sites(map: &Map, max_entries: usize, mut each: impl FnMut(u64, Site)) -> Result<()> {
    let map = map_data(map).ok_or_else(|| anyhow!("not a hash map"))?.fd().as_fd();
    Elements { map, key_size: 8, value_size: decode::SITE_BYTES, max_entries }
        .read(|keys, mut values| {
            for id in keys.chunks_exact(8) {
                let id = u64::from_ne_bytes(id.try_into().unwrap_or_default());
                if let Some(site) = decode::site(&mut values) {
                    each(id, site);
                }
            }
        })
        .context("failed to read the map of sites")
}

//! Stacks that came through code that was not described yet, a library that was opened a moment ago: unwound anew from
//! copies, as soon as their code is known.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    mem,
};

use anyhow::Result;
use leakprobe_common::{
    MAX_FRAMES, Site, Stack, StackEnd, guess, mix, stack_id, stack_seed, undescribed_hash, variant_hash,
};

use super::unwinding::ObjectTables;
use crate::{
    analysis::balance::Corrections,
    drain::{
        decode::CopiedStack,
        snapshot::{self, Dropped, Snapshot},
    },
    probe::{maps::Maps, tables::Image},
    unwind::walk::Walked,
};

/// Copies that are kept until their code is known; the oldest goes first. 37 KiB each, at most.
const MAX_WAITING: usize = 128;

/// Of the room for stacks, one part in so many is for copies.
const SHARE: u32 = 4;

/// What is unwound anew, and what has been.
#[derive(Debug, Default)]
pub struct Anew {
    waiting: VecDeque<CopiedStack>,
    /// By the ID that a copied stack was kept under at first, which one block has: what it is.
    found: HashMap<u64, Found>,
    /// Stacks that were kept, and that nobody was told of yet.
    kept: Vec<Kept>,
    /// By a stack's ID: what was allocated and freed under those IDs of copies that were given back.
    spent: HashMap<u64, Site>,
    /// What they correct the ledger by.
    spent_corrections: Corrections,
    /// How many of their blocks have got their stack.
    spent_settled: u64,
}

/// A stack that is kept under the ID that it has.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Its ID.
    pub id: u64,
    /// The one that it was kept under at first, and is not any more.
    pub from: u64,
    /// Epoch of the process's code when it was made.
    pub epoch: u32,
}

/// What became of a stack that was copied.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// Its ID.
    id: u64,
    /// How the first walk ended.
    ended: StackEnd,
    /// The same of the new one, and whether that followed frame pointers.
    ends: StackEnd,
    guessed: bool,
    /// Whether all of its code was known.
    settled: bool,
    /// Whether its block was gone at the last report.
    spent: bool,
}

impl Found {
    /// What the ledger is to be corrected by, where so many blocks had the stack of the first walk.
    fn correct(&self, sums: &mut Corrections, blocks: u64) {
        let blocks = blocks.cast_signed();
        // The programs count a walk to a base as guessed, since frame pointers were followed.
        sums.add(self.ended, true, -blocks);
        sums.add(self.ends, self.guessed, blocks);
    }
}

/// Why a walk was broken off.
enum Stopped {
    /// It came to code that is not described.
    Undescribed,
    /// A map could not be read.
    Failed(anyhow::Error),
}

impl Anew {
    /// Whether more copies are to be taken. Each has an ID in the table of sites as long as its block is there.
    pub fn has_room(&self, max_stacks: u32) -> bool {
        self.found.len() < (max_stacks / SHARE) as usize
    }

    /// Unwinds a stack if its code is known by now, and keeps it until its process has been looked at if it is not;
    /// whether it is to be.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn take(
        &mut self,
        copy: CopiedStack,
        target: u32,
        tables: &ObjectTables,
        maps: &mut Maps,
    ) -> Result<bool> {
        if self.settle(&copy, target, tables, maps)? {
            return Ok(false);
        }
        if self.waiting.len() == MAX_WAITING
            && let Some(oldest) = self.waiting.pop_front()
        {
            self.leave(&oldest, maps);
        }
        self.waiting.push_back(copy);
        Ok(true)
    }

    /// Unwinds the stacks of a process that has been described. What is still unknown then stays as it is.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn unwind(&mut self, tgid: u32, target: u32, tables: &ObjectTables, maps: &mut Maps) -> Result<()> {
        let waiting = mem::take(&mut self.waiting);
        let (of_this, others): (VecDeque<_>, _) = waiting.into_iter().partition(|copy| copy.tgid == tgid);
        self.waiting = others;
        for copy in of_this {
            if !self.settle(&copy, target, tables, maps)? {
                self.leave(&copy, maps);
            }
        }
        Ok(())
    }

    /// Unwinds a stack; whether all of its code is known.
    fn settle(
        &mut self,
        copy: &CopiedStack,
        target: u32,
        tables: &ObjectTables,
        maps: &mut Maps,
    ) -> Result<bool> {
        let image = Image { generation: copy.generation, epoch: copy.epoch };
        let rule_of = |address: u64| match tables.rule(target, image, address) {
            Ok(rule) if rule.is_guess & guess::UNDESCRIBED != 0 => Err(Stopped::Undescribed),
            Ok(rule) => Ok(rule),
            Err(error) => Err(Stopped::Failed(error)),
        };
        let walked = match copy.memory.walk(rule_of) {
            Ok(walked) => walked,
            Err(Stopped::Undescribed) => return Ok(false),
            Err(Stopped::Failed(error)) => return Err(error),
        };
        let id = stack_id(variant_hash(hash(copy, &walked.frames), tables.variant(target, image)));
        self.keep(copy, &walked, id, true, maps);
        Ok(true)
    }

    /// Leaves a stack as it was walked at first. Others that look the same are one with it, as those are that were not
    /// copied.
    fn leave(&mut self, copy: &CopiedStack, maps: &mut Maps) {
        let guessed = if copy.guessed { guess::FRAME_POINTER } else { 0 };
        let walked = Walked { frames: copy.frames.clone(), end: copy.end, guessed };
        self.keep(copy, &walked, stack_id(undescribed_hash(hash(copy, &copy.frames))), false, maps);
    }

    fn keep(&mut self, copy: &CopiedStack, walked: &Walked, id: u64, settled: bool, maps: &mut Maps) {
        let stack = stack(copy, walked);
        if maps.set_stack(id, stack) {
            let image = Image { generation: copy.generation, epoch: copy.epoch };
            self.kept.push(Kept { id, from: copy.id, epoch: image.settled_epoch() });
            let (ended, ends, guessed) = (copy.end, walked.end, stack.guessed != 0);
            self.found.insert(copy.id, Found { id, ended, ends, guessed, settled, spent: false });
            if copy.id != id {
                maps.remove_stack(copy.id);
            }
        }
    }

    /// Leaves all that still wait.
    pub fn leave_all(&mut self, maps: &mut Maps) {
        for copy in mem::take(&mut self.waiting) {
            self.leave(&copy, maps);
        }
    }

    /// The stacks that were kept since this was asked for last.
    pub fn kept(&mut self) -> Vec<Kept> {
        mem::take(&mut self.kept)
    }

    /// IDs that stand for the same stack as another one: from a copied one's to the one that it has.
    pub fn same(&self) -> HashMap<u64, u64> {
        self.found.iter().map(|(&from, found)| (from, found.id)).collect()
    }

    /// What the ledger is to be corrected by, where so many blocks of a stack were walked before it was described.
    pub fn corrections(&self, undescribed: impl Fn(u64) -> u64) -> Corrections {
        let mut sums = self.spent_corrections;
        for (&from, found) in &self.found {
            found.correct(&mut sums, undescribed(from));
        }
        sums
    }

    /// How many blocks of those whose first walk came through code that was not described have the stack of that walk for
    /// good. `all` of them, `undescribed` by ID.
    pub fn unsettled(&self, all: u64, undescribed: impl Fn(u64) -> u64) -> u64 {
        let settled = self.found.iter().filter(|(_, found)| found.settled);
        let settled: u64 = settled.map(|(&from, _)| undescribed(from)).sum();
        all.saturating_sub(settled + self.spent_settled)
    }

    /// Gives back the IDs whose blocks are gone, and were at the last report: nobody writes to their sites any more. What
    /// they have come to is added to the sites of the stacks that they are, in this snapshot and in all later ones. Those
    /// in `named` are still asked for.
    pub fn give_back(
        &mut self,
        snapshot: &mut Snapshot,
        dropped: &mut HashMap<u64, Dropped>,
        named: &HashSet<u64>,
        maps: &Maps,
    ) {
        for id in self.take_spent(&snapshot.sites, dropped, named) {
            snapshot.sites.remove(&id);
            dropped.remove(&id);
            maps.remove_site(id);
        }
        for (&id, site) in &self.spent {
            snapshot.absorb(id, site);
        }
    }

    /// The IDs that are given back now.
    fn take_spent(
        &mut self,
        sites: &HashMap<u64, Site>,
        dropped: &HashMap<u64, Dropped>,
        named: &HashSet<u64>,
    ) -> Vec<u64> {
        let mut spent = Vec::new();
        for (&id, found) in &mut self.found {
            let Some(site) = sites.get(&id) else { continue };
            let gone = dropped.get(&id).copied().unwrap_or_default();
            let is_spent = site.allocated_blocks > 0
                && site.freed_blocks + gone.blocks >= site.allocated_blocks
                && !named.contains(&id);
            if is_spent && found.spent {
                spent.push((id, gone));
            }
            found.spent = is_spent;
        }
        for &(id, gone) in &spent {
            let (Some(found), Some(site)) = (self.found.remove(&id), sites.get(&id)) else { continue };
            found.correct(&mut self.spent_corrections, site.undescribed_blocks);
            if found.settled {
                self.spent_settled += site.undescribed_blocks;
            }
            // The records of those are gone, so that they are no more live than what was freed.
            let site = Site {
                freed_blocks: site.freed_blocks + gone.blocks,
                freed_bytes: site.freed_bytes + gone.bytes,
                ..*site
            };
            match self.spent.get_mut(&found.id) {
                Some(sum) => snapshot::unite(sum, &site),
                None => _ = self.spent.insert(found.id, site),
            }
        }
        spent.into_iter().map(|(id, _)| id).collect()
    }
}

/// The hash of a stack's frames, as the programs make it.
fn hash(copy: &CopiedStack, frames: &[u64]) -> u64 {
    let seed = stack_seed(copy.tgid, copy.generation);
    frames.iter().fold(seed, |hash, &frame| mix(hash, frame))
}

/// The stack that a walk has found, as the programs keep it.
fn stack(copy: &CopiedStack, walked: &Walked) -> Stack {
    let mut frames = [0; MAX_FRAMES];
    for (place, frame) in frames.iter_mut().zip(&walked.frames) {
        *place = *frame;
    }
    Stack {
        tgid: copy.tgid,
        generation: copy.generation,
        len: walked.frames.len().min(MAX_FRAMES) as u32,
        end: walked.end as u32,
        guessed: (walked.guessed & guess::FRAME_POINTER).into(),
        _pad: 0,
        frames,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_is_corrected_by_what_was_walked_before_the_code_was_known() {
        let mut anew = Anew::default();
        let found =
            |id, ended, ends, guessed| Found { id, ended, ends, guessed, settled: !guessed, spent: false };
        anew.found.insert(1, found(10, StackEnd::Base, StackEnd::Base, false));
        anew.found.insert(2, found(20, StackEnd::Lost, StackEnd::Base, true));
        anew.found.insert(3, found(30, StackEnd::Lost, StackEnd::Truncated, false));
        let corrections = anew.corrections(|id| id * 100);
        assert_eq!(corrections, Corrections { guessed: -100 + 200, lost: -200 - 300, truncated: 300 });
        assert_eq!(anew.same(), HashMap::from([(1, 10), (2, 20), (3, 30)]));
        assert_eq!(anew.unsettled(1_000, |id| id * 100), 600);
    }

    #[test]
    fn ids_are_given_back_once_their_blocks_were_gone_at_two_reports() {
        let mut anew = Anew::default();
        let site = |freed_blocks| Site {
            allocated_blocks: 1,
            allocated_bytes: 10,
            freed_blocks,
            freed_bytes: 10 * freed_blocks,
            max_lifetime_ns: 0,
            missed_frees: 0,
            undescribed_blocks: 1,
            lifetimes: [0; leakprobe_common::LIFETIME_BUCKETS],
        };
        let (ended, ends) = (StackEnd::Lost, StackEnd::Base);
        for id in 1..=4 {
            anew.found.insert(id, Found { id: 10, ended, ends, guessed: false, settled: true, spent: false });
        }
        // Freed, gone with its process, live, and freed by another allocator.
        let sites = HashMap::from([(1, site(1)), (2, site(0)), (3, site(0)), (4, site(1))]);
        let dropped = HashMap::from([(2, Dropped { blocks: 1, bytes: 10 })]);
        let before = anew.corrections(|_| 1);
        let mut spent = || {
            let mut spent = anew.take_spent(&sites, &dropped, &HashSet::from([4]));
            spent.sort_unstable();
            spent
        };
        assert_eq!([spent(), spent(), spent()], [vec![], vec![1, 2], vec![]]);
        assert_eq!(anew.corrections(|_| 1), before, "the ledger stays as it was");
        assert_eq!(anew.unsettled(4, |_| 1), 0);
        let sum = &anew.spent[&10];
        assert_eq!((sum.allocated_blocks, sum.freed_blocks, sum.freed_bytes), (2, 2, 20));
        let mut snapshot = Snapshot::new(0, 0);
        snapshot.sites.insert(10, site(0));
        snapshot.absorb(10, sum);
        assert_eq!((snapshot.sites[&10].allocated_blocks, snapshot.sites[&10].freed_blocks), (3, 2));
    }
}

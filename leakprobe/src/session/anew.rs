//! Stacks that came through code that was not described yet, a library that was opened a moment ago: unwound anew from
//! copies, as soon as their code is known.

use std::{
    collections::{HashMap, VecDeque},
    mem,
};

use anyhow::Result;
use leakprobe_common::{
    MAX_FRAMES, Stack, StackEnd, guess, mix, stack_id, stack_seed, undescribed_hash, variant_hash,
};

use super::unwinding::ObjectTables;
use crate::{
    analysis::balance::Corrections,
    drain::decode::CopiedStack,
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
}

/// A stack that is kept under the ID that it has.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Its ID.
    pub id: u64,
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
}

/// Why a walk was broken off.
enum Stopped {
    /// It came to code that is not described.
    Undescribed,
    /// A map could not be read.
    Failed(anyhow::Error),
}

impl Anew {
    /// Whether more copies are to be taken. Each has an ID in the tables of stacks and of sites for good.
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
        self.keep(copy, &walked, id, maps);
        Ok(true)
    }

    /// Leaves a stack as it was walked at first. Others that look the same are one with it, as those are that were not
    /// copied.
    fn leave(&mut self, copy: &CopiedStack, maps: &mut Maps) {
        let guessed = if copy.guessed { guess::FRAME_POINTER } else { 0 };
        let walked = Walked { frames: copy.frames.clone(), end: copy.end, guessed };
        self.keep(copy, &walked, stack_id(undescribed_hash(hash(copy, &copy.frames))), maps);
    }

    fn keep(&mut self, copy: &CopiedStack, walked: &Walked, id: u64, maps: &mut Maps) {
        let stack = stack(copy, walked);
        if maps.set_stack(id, stack) {
            let image = Image { generation: copy.generation, epoch: copy.epoch };
            self.kept.push(Kept { id, epoch: image.settled_epoch() });
            let guessed = stack.guessed != 0;
            self.found.insert(copy.id, Found { id, ended: copy.end, ends: walked.end, guessed });
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
        let mut sums = Corrections::default();
        for (&from, found) in &self.found {
            let blocks = undescribed(from).cast_signed();
            // The programs count a walk to a base as guessed, since frame pointers were followed.
            sums.add(found.ended, true, -blocks);
            sums.add(found.ends, found.guessed, blocks);
        }
        sums
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
        let found = |id, ended, ends, guessed| Found { id, ended, ends, guessed };
        anew.found.insert(1, found(10, StackEnd::Base, StackEnd::Base, false));
        anew.found.insert(2, found(20, StackEnd::Lost, StackEnd::Base, true));
        anew.found.insert(3, found(30, StackEnd::Lost, StackEnd::Truncated, false));
        let corrections = anew.corrections(|id| id * 100);
        assert_eq!(corrections, Corrections { guessed: -100 + 200, lost: -200 - 300, truncated: 300 });
        assert_eq!(anew.same(), HashMap::from([(1, 10), (2, 20), (3, 30)]));
    }
}

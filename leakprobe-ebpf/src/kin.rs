//! With `--follow`: what each process of a tree holds, counted as its records come and go. Without it nothing is done here:
//! the verifier knows the global's value.

use aya_ebpf::bindings::BPF_ANY;
use leakprobe_common::{Block, BlockKey, Kin, Target};

use crate::{
    ledger::add,
    maps::{FOLLOW, KIN, TARGETS},
};

/// A block's record was made.
#[inline(always)]
pub fn gained(key: &BlockKey, block: &Block) {
    if FOLLOW.load() != 0
        && let Some(kin) = KIN.get_ptr_mut(key.tgid)
    {
        // SAFETY: points into a live map value.
        unsafe {
            add(&raw mut (*kin).live_blocks, 1);
            add(&raw mut (*kin).live_bytes, block.size);
        }
    }
}

/// A block's record is gone. One of a program that was replaced since is not counted any more.
#[inline(always)]
pub fn lost(key: &BlockKey, block: &Block) {
    if FOLLOW.load() == 0 {
        return;
    }
    // SAFETY: entries are removed only when a target is dropped.
    let is_present =
        unsafe { TARGETS.get(key.tgid) }.is_some_and(|target| target.generation == block.generation);
    if is_present && let Some(kin) = KIN.get_ptr_mut(key.tgid) {
        // SAFETY: points into a live map value. Adding the complement subtracts.
        unsafe {
            add(&raw mut (*kin).live_blocks, u64::MAX);
            add(&raw mut (*kin).live_bytes, block.size.wrapping_neg());
        }
    }
}

/// A block of which there is no record was given back: whether it is one from before a fork, which is then counted.
#[inline(always)]
pub fn is_inherited(owner: u32) -> bool {
    if FOLLOW.load() == 0 {
        return false;
    }
    // SAFETY: entries are removed only when a target is dropped.
    let is_forked = unsafe { TARGETS.get(owner) }.is_some_and(|target| target.flags & Target::FORKED != 0);
    if is_forked && let Some(kin) = KIN.get_ptr_mut(owner) {
        // SAFETY: points into a live map value.
        unsafe { add(&raw mut (*kin).inherited_freed, 1) };
    }
    is_forked
}

/// In whose memory a process runs: its own, but for a child of vfork.
#[inline(always)]
pub fn owner(tgid: u32) -> u32 {
    if FOLLOW.load() == 0 {
        return tgid;
    }
    // SAFETY: entries are removed only when a target is dropped.
    unsafe { TARGETS.get(tgid) }.map_or(tgid, |target| target.owner)
}

/// A process is about to run in a copy of another one's memory.
#[inline(always)]
pub fn born(child: u32, parent: u32) {
    // SAFETY: a stale read gives a wrong sum at worst.
    let held = unsafe { KIN.get(parent) }.map_or((0, 0), |kin| (kin.live_blocks, kin.live_bytes));
    let kin = Kin { inherited_blocks: held.0, inherited_bytes: held.1, ..Kin::default() };
    let _ = KIN.insert(child, &kin, BPF_ANY as u64);
}

/// A process has replaced its program, or has got memory of its own for one: it holds nothing.
#[inline(always)]
pub fn begin(tgid: u32) {
    let _ = KIN.insert(tgid, &Kin::default(), BPF_ANY as u64);
}

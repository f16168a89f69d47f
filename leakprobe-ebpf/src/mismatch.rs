//! Blocks that come to another allocator than their own: counted by the way they came, with a copy of the first one's stack.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_get_current_pid_tgid};
use leakprobe_common::{Block, Cookie, Counter, LastMismatch, Mismatch, MismatchKey};

use crate::{
    ledger::{add, count},
    maps::{LAST_MISMATCH, MISMATCHES, TARGETS},
    registers::Registers,
    stack,
};

/// Counts a block that a function of another family was given, at that function's entry.
#[inline(always)]
pub fn note(registers: &Registers, cookie: Cookie, block: &Block, address: u64) {
    if !block.is_mismatch(cookie.family()) {
        return;
    }
    let id = bpf_get_current_pid_tgid();
    let tgid = (id >> 32) as u32;
    let caller = if cookie.has_return_address() { registers.called_from() } else { None };
    let key = MismatchKey {
        stack: block.stack,
        caller: caller.as_ref().map_or(0, |caller| caller.ip),
        tgid,
        generation: block.generation,
        from: block.family_index() as u32,
        to: cookie.family() as u32,
    };
    count(Counter::Mismatched);
    let found = match MISMATCHES.get_ptr_mut(key) {
        None => {
            let is_new = MISMATCHES.insert(key, Mismatch { blocks: 0, bytes: 0 }, BPF_NOEXIST as u64).is_ok();
            // SAFETY: entries are removed only when a target is dropped.
            if let (true, Some(caller), Some(target)) = (is_new, caller, unsafe { TARGETS.get(tgid) }) {
                stack::send_caller(tgid, block.generation, target.number, &caller, key.copy_id());
            }
            MISMATCHES.get_ptr_mut(key)
        }
        found => found,
    };
    let Some(found) = found else { return };
    // SAFETY: points into a live map value.
    unsafe {
        add(&raw mut (*found).blocks, 1);
        add(&raw mut (*found).bytes, block.size);
    }
    let _ = LAST_MISMATCH.insert(id as u32, LastMismatch { key, address, size: block.size }, 0);
}

/// Takes one back: the function that was given the block has passed it on to its owner, as one does that stands before
/// another allocator.
#[inline(always)]
pub fn passed_on(cookie: Cookie, address: u64) {
    let tid = bpf_get_current_pid_tgid() as u32;
    // SAFETY: an entry that only this thread uses, or another one of its number that has ended.
    let Some(last) = (unsafe { LAST_MISMATCH.get(tid) }) else { return };
    if last.address != address || last.key.from != cookie.family() as u32 {
        return;
    }
    let (key, size) = (last.key, last.size);
    let _ = LAST_MISMATCH.remove(tid);
    if let Some(found) = MISMATCHES.get_ptr_mut(key) {
        // SAFETY: points into a live map value. Adding the complement subtracts.
        unsafe {
            add(&raw mut (*found).blocks, u64::MAX);
            add(&raw mut (*found).bytes, size.wrapping_neg());
        }
    }
    count(Counter::PassedOn);
}

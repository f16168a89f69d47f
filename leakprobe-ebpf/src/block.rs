//! Outstanding blocks: recorded, freed, taken by a reallocation, put back.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    programs::ProbeContext,
};
use aya_log_ebpf::debug;
use leakprobe_common::{Block, BlockKey, Call, Cookie, Counter, Site, StackEnd, Thread, lifetime_bucket};

use crate::{
    cookie, kin,
    ledger::{add, count},
    lifecycle,
    maps::{BLOCKS, MAX_SIZE, MIN_SIZE, SITES, closing},
    mismatch, private_stack,
    registers::{Caller, Registers},
    stack, thread,
};

const EEXIST: i32 = -17;
const E2BIG: i32 = -7;

/// How often an update that the kernel refused for want of memory is tried again. The map's per-CPU cache
/// of free elements is refilled by an interrupt, which comes between two tries.
const TRIES: u32 = 8;

/// Deletes a freed block's record, before the allocator can hand the block out again.
#[inline(always)]
pub fn free(ctx: &ProbeContext) -> u32 {
    private_stack::refuse();
    if closing() {
        return 0;
    }
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let cookie = cookie::of(ctx);
    if let Some(cookie) = cookie {
        match cookie.call() {
            Some(Call::CodeChange) => return lifecycle::code_change(ctx, tgid, cookie),
            Some(Call::DestroyHeap) => {
                count(Counter::HeapDestroyed);
                return 0;
            }
            _ => {}
        }
    }
    count(Counter::FreesEntered);
    let Some(cookie) = cookie else {
        count(if thread::is_target(tgid) { Counter::FreeProbeUnknown } else { Counter::FreeUnknown });
        return 0;
    };
    let registers = Registers::new(ctx.regs);
    let address = registers.get(cookie.pointer());
    if address == 0 {
        count(Counter::FreeNull);
        return 0;
    }
    let key = key(kin::owner(tgid), address);
    match remove(&key) {
        Some(block) => {
            count(Counter::Freed);
            mismatch::note(&registers, cookie, &block, address);
            // SAFETY: the helper has no preconditions.
            retire(&block, Some(unsafe { bpf_ktime_get_ns() }));
        }
        None => unknown(&registers, cookie, key.tgid, address),
    }
    0
}

/// Whether the pending call is a reallocation that gives this block back by `free`, as glibc's `realloc(p, 0)`
/// does: its record was taken at that call's entry.
#[inline(always)]
fn is_for_realloc(thread: &Thread, address: u64) -> bool {
    thread.pointer == address
        && matches!(
            thread.cookie.call(),
            Some(Call::Reallocate | Call::ReallocateOrFree | Call::ReallocateOut)
        )
}

/// Counts the free of a block that is not recorded.
#[inline(always)]
fn unknown(registers: &Registers, cookie: Cookie, tgid: u32, address: u64) {
    if let Some(thread) = thread::find(bpf_get_current_pid_tgid() as u32) {
        // Of what an allocating call takes for a while there are no records. One that ends at instructions can call anything:
        // see `pair::place`.
        if is_for_realloc(thread, address)
            || !thread.cookie.ends_at_instructions() && thread::still_pending(thread, Some(registers))
        {
            return count(Counter::FreeNested);
        }
    }
    if kin::is_inherited(tgid) {
        return count(Counter::FreeInherited);
    }
    count(Counter::FreeUnknown);
    mismatch::passed_on(cookie, address);
}

/// Takes the record of the block that the pending reallocation gives back. At the entry, because another
/// thread may be handed the old address before this call returns.
#[inline(always)]
pub fn take(thread: &mut Thread, registers: &Registers) {
    if let Some(block) = remove(&key(thread.tgid, thread.pointer)) {
        mismatch::note(registers, thread.cookie, &block, thread.pointer);
        thread.taken = block;
        thread.has_taken = 1;
        count(Counter::Taken);
    } else {
        kin::is_inherited(thread.tgid);
    }
}

/// The reallocation succeeded: its old block is gone.
#[inline(always)]
pub fn settle_taken(thread: &mut Thread) {
    if thread.has_taken != 0 {
        // SAFETY: the helper has no preconditions.
        retire(&thread.taken, Some(unsafe { bpf_ktime_get_ns() }));
        thread.has_taken = 0;
    }
}

/// The reallocation failed: its old block is as it was.
#[inline(always)]
pub fn put_back(thread: &mut Thread) {
    if thread.has_taken == 0 {
        return;
    }
    thread.has_taken = 0;
    match insert(&key(thread.tgid, thread.pointer), &thread.taken, BPF_ANY as u64) {
        Ok(()) => count(Counter::Restored),
        Err(_) => {
            count(Counter::RestoreLost);
            retire(&thread.taken, None);
        }
    }
}

/// Whether a block of this process is recorded.
#[inline(always)]
pub fn is_recorded(thread: &Thread, address: u64) -> bool {
    // SAFETY: only whether there is one is asked.
    unsafe { BLOCKS.get(key(thread.tgid, address)) }.is_some()
}

/// Records the block that the pending call has returned to `caller`.
#[inline(always)]
pub fn record<C: EbpfContext, const LOOPED: bool>(
    ctx: &C,
    thread: &mut Thread,
    caller: &Caller,
    address: u64,
) {
    if thread.size < MIN_SIZE.load() || thread.size > MAX_SIZE.load() {
        return count(Counter::Filtered);
    }
    let (stack, site) = stack::capture::<_, LOOPED>(ctx, thread, caller);
    let Some(site) = site else { return count(Counter::BlockMapRefused) };
    let block = Block {
        size: thread.size,
        // SAFETY: the helper has no preconditions.
        allocated_ns: unsafe { bpf_ktime_get_ns() },
        stack,
        tid: thread.tid,
        generation: thread.generation,
        weight: 1,
        family: thread.cookie.owner(),
    };
    let key = key(thread.tgid, address);
    let mut inserted = insert(&key, &block, BPF_NOEXIST as u64);
    if inserted == Err(EEXIST) {
        evict(ctx, &key, thread.generation);
        inserted = insert(&key, &block, BPF_ANY as u64);
    }
    match inserted {
        Ok(()) => {
            count(Counter::Recorded);
            match StackEnd::from_raw(thread.stack.end) {
                StackEnd::Truncated => count(Counter::StackTruncated),
                StackEnd::Lost => count(Counter::StackLost),
                StackEnd::Base if thread.stack.guessed != 0 => count(Counter::StackGuessed),
                StackEnd::Base => {}
            }
            // SAFETY: points into a live map value.
            unsafe {
                add(&raw mut (*site).allocated_blocks, 1);
                add(&raw mut (*site).allocated_bytes, block.size);
            }
        }
        Err(E2BIG) => count(Counter::BlockMapFull),
        Err(_) => count(Counter::BlockMapRefused),
    }
}

/// Counts a block as gone from its site. `now_ns` is when it was freed, or `None` when that is not known,
/// and then its lifetime is not either.
#[inline(always)]
pub fn retire(block: &Block, now_ns: Option<u64>) {
    let Some(site) = SITES.get_ptr_mut(block.stack) else { return };
    // SAFETY: points into a live map value.
    unsafe {
        add(&raw mut (*site).freed_blocks, 1);
        add(&raw mut (*site).freed_bytes, block.size);
        if let Some(now_ns) = now_ns {
            add_lifetime(site, now_ns.saturating_sub(block.allocated_ns));
        }
    }
}

/// # Safety
/// `site` must point into a live map value.
#[inline(always)]
unsafe fn add_lifetime(site: *mut Site, lifetime_ns: u64) {
    let bucket = lifetime_bucket(lifetime_ns);
    // SAFETY: `lifetime_bucket` is below the array's length.
    unsafe {
        add((&raw mut (*site).lifetimes).cast::<u64>().add(bucket), 1);
        // Not atomic: two frees at once may lose the smaller record of the two, or, rarely, the larger.
        if lifetime_ns > (*site).max_lifetime_ns {
            (*site).max_lifetime_ns = lifetime_ns;
        }
    }
}

/// Removes the record of an address that is handed out again: its free was missed, or it belonged to a
/// program that the process has replaced.
#[inline(always)]
fn evict<C: EbpfContext>(ctx: &C, key: &BlockKey, generation: u32) {
    let Some(old) = remove(key) else { return };
    if old.generation == generation {
        debug!(ctx, "address {:x} was handed out again without a free", key.address);
        count(Counter::MissedFree);
        if let Some(site) = SITES.get_ptr_mut(old.stack) {
            // SAFETY: points into a live map value.
            unsafe { add(&raw mut (*site).missed_frees, 1) };
        }
    } else {
        count(Counter::ExecDropped);
    }
    retire(&old, None);
}

/// Reads and deletes a record; `None` when there is none, or another thread was first.
#[inline(always)]
fn remove(key: &BlockKey) -> Option<Block> {
    // SAFETY: a live element of the map. Where elements are allocated on demand, a removed one is not reused while this
    // program runs; where they are not, it can be, but only the thread that frees a block removes its record.
    let block = *unsafe { BLOCKS.get(key) }?;
    BLOCKS.remove(key).ok()?;
    kin::lost(key, &block);
    Some(block)
}

#[inline(always)]
fn insert(key: &BlockKey, block: &Block, flags: u64) -> Result<(), i32> {
    let mut result = Err(0);
    for _ in 0..TRIES {
        result = BLOCKS.insert(key, block, flags);
        match result {
            Ok(()) | Err(EEXIST) | Err(E2BIG) => break,
            Err(_) => {}
        }
    }
    if result == Ok(()) {
        kin::gained(key, block);
    }
    result
}

#[inline(always)]
fn key(tgid: u32, address: u64) -> BlockKey {
    BlockKey { address, tgid, _pad: 0 }
}

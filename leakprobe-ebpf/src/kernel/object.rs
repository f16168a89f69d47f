//! Outstanding objects: recorded and freed.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns},
};
use leakprobe_common::{
    CacheKey, CacheKind, Counter, KernelBlock, KernelKey, MemoryKind, Site, StackEnd, lifetime_bucket,
};

use crate::{
    books::{Books, add},
    cache,
    maps::{BLOCKS, LAST_FREED, MAX_SIZE, MIN_SIZE, OWN_TGID, Program, SCRATCH, SITES, Scratch},
    site,
};

const EEXIST: i32 = -17;
const E2BIG: i32 = -7;

/// What was allocated.
pub struct New {
    pub kind: MemoryKind,
    pub cache: CacheKey,
    pub address: u64,
    /// Bytes that the allocator has spent.
    pub size: u64,
    /// Return address in the allocator's caller.
    pub call_site: u64,
    pub weight: u32,
}

/// Whether an allocation is to be recorded, as far as that can be told without its cache. Counts it in any case.
#[inline(always)]
pub fn is_of_interest(books: Books, address: u64, requested: impl FnOnce() -> u64) -> bool {
    books.count(Counter::AllocationsEntered);
    let outcome = if address == 0 {
        Counter::Failed
    } else if (bpf_get_current_pid_tgid() >> 32) as u32 == OWN_TGID.load() {
        Counter::Own
    } else if is_filtered(requested) {
        Counter::Filtered
    } else {
        return true;
    };
    books.count(outcome);
    false
}

#[inline(always)]
fn is_filtered(requested: impl FnOnce() -> u64) -> bool {
    let (min, max) = (MIN_SIZE.load(), MAX_SIZE.load());
    if min == 0 && max == u64::MAX {
        return false;
    }
    let requested = requested();
    requested < min || requested > max
}

/// Records an object, with the stack that allocates it.
#[inline(always)]
pub fn record<C: EbpfContext>(ctx: &C, books: Books, program: Program, new: &New) {
    let Some(scratch) = borrow(program) else { return books.count(Counter::ScratchBusy) };
    record_in(ctx, books, scratch, new);
    scratch.busy = 0;
}

/// As [`record`], where the program has its scratch already.
#[inline(always)]
pub fn record_in<C: EbpfContext>(ctx: &C, books: Books, scratch: &mut Scratch, new: &New) {
    if !cache::is_wanted(new.cache, &mut scratch.cache) {
        return books.count(Counter::CacheFiltered);
    }
    match site::capture(ctx, books, scratch, new.kind, new.cache, new.call_site) {
        Some((id, site)) => store(books, scratch, new, id, site),
        None => books.count(Counter::BlockMapRefused),
    }
}

/// Lends a program its scratch, until it sets `busy` to 0; `None` where an interrupt finds it lent.
#[inline(always)]
pub fn borrow(program: Program) -> Option<&'static mut Scratch> {
    let scratch = SCRATCH.get_ptr_mut(program as u32)?;
    // SAFETY: a per-CPU value of this program's own, which runs once at a time on a CPU: the kernel sees to that from
    // 6.1 on, and `busy` before, where nothing but an interrupt comes in between.
    let scratch = unsafe { &mut *scratch };
    if scratch.busy != 0 {
        return None;
    }
    scratch.busy = 1;
    Some(scratch)
}

/// Stores an object's record under its site, of which the scratch has the stack.
#[inline(always)]
pub fn store(books: Books, scratch: &mut Scratch, new: &New, id: u64, site: *mut Site) {
    let block = &mut scratch.block;
    *block = KernelBlock {
        size: new.size,
        // SAFETY: the helper has no preconditions.
        allocated_ns: unsafe { bpf_ktime_get_ns() },
        site: id,
        tgid: (bpf_get_current_pid_tgid() >> 32) as u32,
        weight: new.weight,
        comm: bpf_get_current_comm().unwrap_or_default(),
    };
    let key = KernelKey::new(new.kind, new.address);
    let mut inserted = BLOCKS.insert(key.0, &*block, BPF_NOEXIST as u64);
    let mut again = false;
    if inserted == Err(EEXIST) {
        again = new.cache == CacheKey::of(CacheKind::KmallocLarge, 0) && key.0 == scratch.last;
        if again {
            take_back(key);
        } else {
            evict(books, key);
        }
        inserted = BLOCKS.insert(key.0, &*block, BPF_ANY as u64);
    }
    match inserted {
        Ok(()) => {
            scratch.last = key.0;
            books.count(if again { Counter::Nested } else { Counter::Recorded });
            if scratch.stack.end == StackEnd::Truncated as u32 {
                books.count(Counter::StackTruncated);
            }
            let weight = u64::from(new.weight);
            // SAFETY: points into a live map value.
            unsafe {
                add(&raw mut (*site).allocated_blocks, weight);
                add(&raw mut (*site).allocated_bytes, weight * new.size);
            }
        }
        Err(E2BIG) => books.count(Counter::BlockMapFull),
        Err(_) => books.count(Counter::BlockMapRefused),
    }
}

/// Removes the record of an object that is given back.
#[inline(always)]
pub fn free(books: Books, kind: MemoryKind, address: u64) {
    books.count(Counter::FreesEntered);
    if address == 0 {
        return books.count(Counter::FreeNull);
    }
    match remove(KernelKey::new(kind, address)) {
        Some(block) => {
            books.count(Counter::Freed);
            // SAFETY: the helper has no preconditions.
            retire(&block, Some(unsafe { bpf_ktime_get_ns() }));
        }
        None => books.count(Counter::FreeUnknown),
    }
}

/// A tracepoint of frees.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum FreePoint {
    Kfree = 0,
    CacheFree = 1,
}

/// The first program of a tracepoint of frees.
#[inline(always)]
pub fn free_first(books: Books, point: FreePoint, address: u64) {
    let Some(last) = LAST_FREED.get_ptr_mut(point as u32) else { return };
    // SAFETY: a per-CPU value that only this program writes; volatile, because the second one reads it meanwhile.
    unsafe { core::ptr::write_volatile(last, 0) };
    free(books, MemoryKind::Slab, address);
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(last, address) };
}

/// The second program, after the first at the same event. The kernel skips a program that runs on the CPU already (a raw
/// one from 6.1 on, a classic one while any other runs); an interrupt in between may free hundreds of objects, and it is
/// this program that sees them: the address is not the one that the first has dealt with last. (Where an interrupt comes
/// between the two, this one may look in vain.)
#[inline(always)]
pub fn free_second(books: Books, point: FreePoint, address: u64) {
    let Some(last) = LAST_FREED.get_ptr_mut(point as u32) else { return };
    // SAFETY: a per-CPU value; volatile, because the first program may be in the middle of its work.
    if unsafe { core::ptr::read_volatile(last) } == address {
        return;
    }
    if let Some(block) = remove(KernelKey::new(MemoryKind::Slab, address)) {
        books.count(Counter::FreesEntered);
        books.count(Counter::Freed);
        books.count(Counter::FreeSeenAgain);
        // SAFETY: the helper has no preconditions.
        retire(&block, Some(unsafe { bpf_ktime_get_ns() }));
    }
}

/// The address is handed out again: its free was not seen.
#[inline(always)]
fn evict(books: Books, key: KernelKey) {
    let Some(old) = remove(key) else { return };
    books.count(Counter::MissedFree);
    retire(&old, None);
}

/// The function that called kmalloc tells of the same block as what it has called: of those above the largest cache, both
/// fire the tracepoint, one after the other. The caller's word is the better one; the first is taken back.
#[inline(always)]
fn take_back(key: KernelKey) {
    let Some(old) = remove(key) else { return };
    let Some(site) = SITES.get_ptr_mut(old.site) else { return };
    let weight = u64::from(old.weight);
    // SAFETY: points into a live map value.
    unsafe {
        add(&raw mut (*site).allocated_blocks, weight.wrapping_neg());
        add(&raw mut (*site).allocated_bytes, (weight * old.size).wrapping_neg());
    }
}

/// Reads and deletes a record; `None` when there is none, or another CPU was first.
#[inline(always)]
pub fn remove(key: KernelKey) -> Option<KernelBlock> {
    // SAFETY: an element that is removed meanwhile can be used anew, but only who gives an object back removes its
    // record, and nobody gets the object before that.
    let block = *unsafe { BLOCKS.get(key.0) }?;
    BLOCKS.remove(key.0).ok()?;
    Some(block)
}

/// Counts an object as gone from its site. `now_ns` is when it was freed, or `None` when its free was not seen.
#[inline(always)]
pub fn retire(block: &KernelBlock, now_ns: Option<u64>) {
    let Some(site) = SITES.get_ptr_mut(block.site) else { return };
    let weight = u64::from(block.weight);
    // SAFETY: points into a live map value; `lifetime_bucket` is below the array's length.
    unsafe {
        add(&raw mut (*site).freed_blocks, weight);
        add(&raw mut (*site).freed_bytes, weight * block.size);
        let Some(now_ns) = now_ns else { return add(&raw mut (*site).missed_frees, weight) };
        let lifetime_ns = now_ns.saturating_sub(block.allocated_ns);
        add((&raw mut (*site).lifetimes).cast::<u64>().add(lifetime_bucket(lifetime_ns)), weight);
        // Not atomic: of two frees at once, one may be forgotten here.
        if lifetime_ns > (*site).max_lifetime_ns {
            (*site).max_lifetime_ns = lifetime_ns;
        }
    }
}

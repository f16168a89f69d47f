//! Calls that hand out or take back many objects at once, which no tracepoint tells of; and frees that wait for a
//! grace period in a sheaf of their cache, from which the object is handed out again without a free.

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_ANY,
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use leakprobe_common::{BULK_ALLOCATIONS, BULK_FREES, CacheKey, Counter, MemoryKind, PendingBulk};

use crate::{
    books::Books,
    cache,
    fields::{RETURN_ADDRESS_BYTES, arguments, parameter, read, stack_pointer},
    maps::{BULK, BULK_RESULT_BITS, Program, SHEAF_ARGUMENTS},
    object::{self, New, is_of_interest},
    sample, site,
};

/// `kmem_cache_free_bulk(s, size, p)`
#[inline(always)]
pub fn free_fentry(ctx: &FEntryContext) -> i32 {
    let [_, objects, array] = arguments(ctx);
    free_all(objects, array);
    0
}

/// As above.
#[inline(always)]
pub fn free_kprobe(ctx: &ProbeContext) -> u32 {
    free_all(parameter(ctx, 1), parameter(ctx, 2));
    0
}

#[inline(always)]
fn free_all(objects: u64, array: u64) {
    let Some(books) = Books::begin(Program::BulkFree) else { return };
    for index in 0..u64::from(BULK_FREES) {
        if index >= objects {
            return;
        }
        let address = read(array + index * 8);
        if !sample::leaves_out(address) {
            object::free(books, MemoryKind::Slab, address);
        }
    }
    if objects > u64::from(BULK_FREES) {
        books.count_many(Counter::FreesEntered, objects - u64::from(BULK_FREES));
        books.count_many(Counter::FreeBulkCut, objects - u64::from(BULK_FREES));
    }
}

/// `kmem_cache_alloc_bulk(s, flags, size, p)`, at its return: all or none, 0 standing for none.
#[inline(always)]
pub fn alloc_fexit(ctx: &FExitContext) -> i32 {
    let [cache, _, objects, pointer, result] = arguments(ctx);
    record_all(ctx, &PendingBulk { cache, pointer, objects }, result);
    0
}

/// At its entry.
#[inline(always)]
pub fn alloc_kprobe(ctx: &ProbeContext) -> u32 {
    let (cache, objects, pointer) = (parameter(ctx, 0), parameter(ctx, 2), parameter(ctx, 3));
    let Some(books) = Books::begin(Program::BulkEntry) else { return 0 };
    if !remember(ctx, PendingBulk { cache, pointer, objects }) {
        left_out(books, Counter::BulkCut, objects);
    }
    0
}

/// At its return.
#[inline(always)]
pub fn alloc_kretprobe(ctx: &RetProbeContext) -> u32 {
    if let Some(call) = recall(ctx) {
        record_all(ctx, &call, ctx.ret());
    }
    0
}

#[inline(always)]
fn record_all<C: EbpfContext>(ctx: &C, call: &PendingBulk, result: u64) {
    if result & BULK_RESULT_BITS.load() == 0 {
        return;
    }
    let Some(books) = Books::begin(Program::Bulk) else { return };
    let (cache, array, objects) = (CacheKey(call.cache), call.pointer, call.objects);
    let (requested, size) = (u64::from(cache::object_size(cache)), u64::from(cache::size(cache)));
    let Some(scratch) = object::borrow(Program::Bulk) else {
        return left_out(books, Counter::ScratchBusy, objects);
    };
    if !cache::is_wanted(cache, &mut scratch.cache) {
        left_out(books, Counter::CacheFiltered, objects);
    } else if let Some((id, site)) = site::capture(ctx, books, scratch, MemoryKind::Slab, cache, 0) {
        for index in 0..u64::from(BULK_ALLOCATIONS) {
            if index >= objects {
                break;
            }
            let address = read(array + index * 8);
            if !sample::leaves_out(address) && is_of_interest(books, address, || requested) {
                let (kind, weight) = (MemoryKind::Slab, sample::weight());
                let new = New { kind, cache, address, size, call_site: 0, weight };
                object::store(books, scratch, &new, id, site);
            }
        }
        if objects > u64::from(BULK_ALLOCATIONS) {
            left_out(books, Counter::BulkCut, objects - u64::from(BULK_ALLOCATIONS));
        }
    } else {
        left_out(books, Counter::BlockMapRefused, objects);
    }
    scratch.busy = 0;
}

/// Counts objects that were handed out and are not recorded.
#[inline(always)]
fn left_out(books: Books, why: Counter, objects: u64) {
    books.count_many(Counter::AllocationsEntered, objects);
    books.count_many(why, objects);
}

/// `__kfree_rcu_sheaf(s, obj)`, at its return: whether the sheaf has taken the object. If not, its free is seen
/// elsewhere.
#[inline(always)]
pub fn sheaf_free_fexit(ctx: &FExitContext) -> i32 {
    let [_, address, third, fourth] = arguments(ctx);
    sheaf_free(address, if SHEAF_ARGUMENTS.load() == 2 { third } else { fourth });
    0
}

/// At its entry.
#[inline(always)]
pub fn sheaf_free_kprobe(ctx: &ProbeContext) -> u32 {
    let (cache, pointer) = (parameter(ctx, 0), parameter(ctx, 1));
    let Some(books) = Books::begin(Program::SheafEntry) else { return 0 };
    if !remember(ctx, PendingBulk { cache, pointer, objects: 1 }) {
        books.count(Counter::FreesEntered);
        books.count(Counter::FreeBulkCut);
    }
    0
}

/// At its return.
#[inline(always)]
pub fn sheaf_free_kretprobe(ctx: &RetProbeContext) -> u32 {
    if let Some(call) = recall(ctx) {
        sheaf_free(call.pointer, ctx.ret());
    }
    0
}

#[inline(always)]
fn sheaf_free(address: u64, taken: u64) {
    // A bool is the lowest byte of the register.
    if taken & 0xff == 0 {
        return;
    }
    if let Some(books) = Books::begin_for(address, Program::SheafFree) {
        object::free(books, MemoryKind::Slab, address);
    }
}

/// Remembers a call by its stack pointer, which no other call on any stack has before it returns. Returns whether there
/// was room.
#[inline(always)]
fn remember(ctx: &ProbeContext, call: PendingBulk) -> bool {
    BULK.insert(stack_pointer(ctx.regs), &call, BPF_ANY as u64).is_ok()
}

/// The call that returns now; its stack pointer is the entry's, less the return address where that was on the stack.
#[inline(always)]
fn recall(ctx: &RetProbeContext) -> Option<PendingBulk> {
    let entry = stack_pointer(ctx.regs) - RETURN_ADDRESS_BYTES;
    // SAFETY: only this call removes its entry.
    let call = *unsafe { BULK.get(entry) }?;
    BULK.remove(entry).ok()?;
    Some(call)
}

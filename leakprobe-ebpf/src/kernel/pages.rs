//! Pages of the page allocator. A block of 2^order pages may be given back piece by piece: what is left of it is
//! then recorded in smaller blocks, as the allocator itself would split it.
//!
//! Not sampled: the free of a page does not tell which block it was allocated in.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::bpf_ktime_get_ns,
    programs::{RawTracePointContext, TracePointContext},
};
use leakprobe_common::{CacheKey, CacheKind, Counter, KernelBlock, KernelKey, MemoryKind};

use crate::{
    books::{Books, add},
    fields::{argument, field, field32},
    maps::{BLOCKS, PAGE_BYTES, Program, SITES},
    object::{self, New, is_of_interest},
};

/// The largest order of any supported kernel with 4 KiB pages.
const MAX_ORDER: u32 = 10;

/// Bytes of a page.
const PAGE_SHIFT: u32 = 12;

/// Where these fields are in the records of both classic tracepoints.
const FRAME_AT: u64 = 8;
const ORDER_AT: u64 = 16;

/// `mm_page_alloc(page, order, ...)`
#[inline(always)]
pub fn alloc(ctx: &RawTracePointContext) -> i32 {
    allocated(ctx, frame_of(argument(ctx, 0)), argument(ctx, 1) as u32);
    0
}

/// From the tracepoint's record. A page that could not be had is frame 0 or -1 there.
#[inline(always)]
pub fn alloc_classic(ctx: &TracePointContext) -> u32 {
    let frame = field(ctx, FRAME_AT);
    allocated(ctx, if frame == u64::MAX { 0 } else { frame }, field32(ctx, ORDER_AT));
    0
}

/// A number for a page by its `struct page`; those of neighbours differ by 1. 0 for none.
#[inline(always)]
fn frame_of(page: u64) -> u64 {
    page.checked_div(PAGE_BYTES.load()).unwrap_or(0)
}

#[inline(always)]
fn allocated<C: aya_ebpf::EbpfContext>(ctx: &C, frame: u64, order: u32) {
    let size = 1u64 << (PAGE_SHIFT + (order & 15));
    let Some(books) = Books::begin(Program::Pages) else { return };
    if !is_of_interest(books, frame, || size) {
        return;
    }
    let cache = CacheKey::of(CacheKind::Pages, 0);
    let kind = MemoryKind::Pages;
    let new = New { kind, cache, address: frame, size, call_site: 0, weight: 1 };
    object::record(ctx, books, Program::Pages, &new);
}

/// `mm_page_free(page, order)`
#[inline(always)]
pub fn free(ctx: &RawTracePointContext) -> i32 {
    freed(frame_of(argument(ctx, 0)), argument(ctx, 1) as u32);
    0
}

/// From the tracepoint's record.
#[inline(always)]
pub fn free_classic(ctx: &TracePointContext) -> u32 {
    freed(field(ctx, FRAME_AT), field32(ctx, ORDER_AT));
    0
}

#[inline(always)]
fn freed(frame: u64, order: u32) {
    let Some(books) = Books::begin(Program::PagesFree) else { return };
    books.count(Counter::FreesEntered);
    let Some((first, block)) = containing(frame) else { return books.count(Counter::FreeUnknown) };
    if BLOCKS.remove(key(first)).is_err() {
        return books.count(Counter::FreeUnknown);
    }
    books.count(Counter::Freed);
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    split(books, frame, order, first, &block);
    let size = 1u64 << (PAGE_SHIFT + (order & 15));
    let gone = KernelBlock { size: if size < block.size { size } else { block.size }, ..block };
    object::retire(&gone, Some(now_ns));
}

/// The recorded block that holds a frame, and its first frame: the one that begins there, or a larger one.
#[inline(always)]
fn containing(frame: u64) -> Option<(u64, KernelBlock)> {
    let mut first = frame;
    for larger in 0..MAX_ORDER + 1 {
        let candidate = frame >> larger << larger;
        if larger > 0 && candidate == first {
            continue; // looked at already
        }
        first = candidate;
        // SAFETY: removed only by who gives back the pages.
        if let Some(block) = unsafe { BLOCKS.get(key(first)) } {
            let block = *block;
            let holds = frame - first < block.size >> PAGE_SHIFT;
            return holds.then_some((first, block));
        }
    }
    None
}

/// Records what is left of a block of which the pages at `frame` are given back.
#[inline(always)]
fn split(books: Books, frame: u64, order: u32, first: u64, block: &KernelBlock) {
    let mut size = block.size;
    let mut start = first;
    for _ in 0..MAX_ORDER {
        let half = size >> 1;
        if half < 1u64 << (PAGE_SHIFT + (order & 15)) {
            return;
        }
        let middle = start + (half >> PAGE_SHIFT);
        let other = if frame < middle { middle } else { start };
        if frame >= middle {
            start = middle;
        }
        size = half;
        let rest = KernelBlock { size: half, ..*block };
        if BLOCKS.insert(key(other), &rest, BPF_NOEXIST as u64).is_err() {
            books.count(Counter::PagesSplitLost);
            if let Some(site) = SITES.get_ptr_mut(block.site) {
                // Nobody knows any more when these are given back.
                // SAFETY: points into a live map value.
                unsafe { add(&raw mut (*site).freed_bytes, half) };
            }
            continue;
        }
        books.count(Counter::PagesSplit);
        if let Some(site) = SITES.get_ptr_mut(block.site) {
            // One block more, of bytes that were counted already.
            // SAFETY: points into a live map value.
            unsafe { add(&raw mut (*site).allocated_blocks, 1) };
        }
    }
}

#[inline(always)]
fn key(frame: u64) -> u64 {
    KernelKey::new(MemoryKind::Pages, frame).0
}

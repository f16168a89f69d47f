//! Sites: a stack with the cache that it allocates from.

use aya_ebpf::{EbpfContext, bindings::BPF_NOEXIST, helpers::generated};
use leakprobe_common::{CacheKey, Counter, KernelStack, MAX_FRAMES, MemoryKind, Site, StackEnd, mix};

use crate::{
    books::Books,
    cache,
    maps::{NEW_SITE, SITES, STACKS, Scratch, WITH_STACKS},
};

/// Takes the kernel's stack and returns its site: the ID and the counters.
#[inline(always)]
pub fn capture<C: EbpfContext>(
    ctx: &C,
    books: Books,
    scratch: &mut Scratch,
    kind: MemoryKind,
    cache: CacheKey,
    call_site: u64,
) -> Option<(u64, *mut Site)> {
    let id = fill(ctx, &mut scratch.stack, cache, call_site);
    if let Some(site) = SITES.get_ptr_mut(id) {
        return Some((id, site)); // a site is made after its stack was kept
    }
    scratch.stack.cache = cache.0;
    scratch.stack.kind = kind as u32;
    // Keys that are no address say themselves which cache they stand for.
    if cache.is_address() && !cache::is_known(cache) {
        cache::describe(cache, &mut scratch.cache);
    }
    match STACKS.insert(id, &scratch.stack, BPF_NOEXIST as u64) {
        Ok(()) | Err(-17) => Some((id, site(id)?)),
        Err(_) => {
            books.count(Counter::StackMapFull);
            let id = without_stack(cache);
            Some((id, site(id)?))
        }
    }
}

/// The site of a cache's objects whose stack was not kept. User space finds it by the same sum.
#[inline(always)]
fn without_stack(cache: CacheKey) -> u64 {
    mix(0, cache.0)
}

/// The site's counters, made on first use.
#[inline(always)]
fn site(id: u64) -> Option<*mut Site> {
    if let Some(site) = SITES.get_ptr_mut(id) {
        return Some(site);
    }
    let new = NEW_SITE.get(0)?;
    // Another CPU may be first; either way it is there afterwards.
    let _ = SITES.insert(id, new, BPF_NOEXIST as u64);
    SITES.get_ptr_mut(id)
}

/// Has the kernel walk its stack, and returns the site's ID: a hash of the frames and the cache.
#[inline(always)]
fn fill<C: EbpfContext>(ctx: &C, stack: &mut KernelStack, cache: CacheKey, call_site: u64) -> u64 {
    let mut hash = mix(0x9e37_79b9_7f4a_7c15, cache.0);
    // Without stacks too where the event names no caller: pages, bulk calls.
    let bytes = if WITH_STACKS.load() == 0 && call_site != 0 {
        0
    } else {
        // SAFETY: the buffer is as long as is said.
        unsafe {
            generated::bpf_get_stack(
                ctx.as_ptr(),
                stack.frames.as_mut_ptr().cast(),
                (MAX_FRAMES * 8) as u32,
                0,
            )
        }
    };
    if bytes <= 0 {
        stack.frames[0] = call_site;
        stack.len = 1;
        stack.end = StackEnd::Lost as u32;
        return mix(hash, call_site);
    }
    let len = bytes as usize / 8;
    for (index, frame) in stack.frames.iter().enumerate() {
        if index >= len {
            break;
        }
        hash = mix(hash, *frame);
    }
    stack.len = len as u32;
    stack.end = if len >= MAX_FRAMES { StackEnd::Truncated } else { StackEnd::Base } as u32;
    hash
}

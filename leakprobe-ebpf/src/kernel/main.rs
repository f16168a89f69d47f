//! leakprobe's BPF programs on the kernel's own allocators. Each entry point is one line and names the function that
//! does its work.
//!
//! Tracepoints come in two forms: raw, which are cheaper and whose arguments user space knows from the kernel's BTF,
//! and classic, whose fields it knows from their format files. Bulk calls have no tracepoint; they are probed by
//! patching the function (fentry, fexit) or by a breakpoint (kprobe, kretprobe), whatever the kernel has.
//!
//! Nothing here allocates: all maps are preallocated, since the allocator is what is traced.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "atomic additions have no other spelling on this target")]

mod books;
mod bulk;
mod cache;
mod fields;
mod maps;
mod object;
mod pages;
mod sample;
mod site;
mod slab;

use maps::Program;
use object::FreePoint;

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe, raw_tracepoint, tracepoint},
    programs::{
        FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext, TracePointContext,
    },
};

// --- Raw tracepoints: kmalloc and kmalloc_node; kmem_cache_alloc where it names the cache, and where it does not;
// --- kfree and kmem_cache_free.

#[raw_tracepoint]
fn kmalloc(ctx: RawTracePointContext) -> i32 {
    slab::kmalloc(&ctx)
}

#[raw_tracepoint]
fn cache_alloc(ctx: RawTracePointContext) -> i32 {
    slab::cache_alloc(&ctx)
}

#[raw_tracepoint]
fn cache_alloc_sized(ctx: RawTracePointContext) -> i32 {
    slab::cache_alloc_sized(&ctx)
}

#[raw_tracepoint]
fn kfree(ctx: RawTracePointContext) -> i32 {
    slab::free(&ctx, Program::Kfree, FreePoint::Kfree)
}

#[raw_tracepoint]
fn kfree_again(ctx: RawTracePointContext) -> i32 {
    slab::free_again(&ctx, Program::KfreeAgain, FreePoint::Kfree)
}

#[raw_tracepoint]
fn cache_free(ctx: RawTracePointContext) -> i32 {
    slab::free(&ctx, Program::CacheFree, FreePoint::CacheFree)
}

#[raw_tracepoint]
fn cache_free_again(ctx: RawTracePointContext) -> i32 {
    slab::free_again(&ctx, Program::CacheFreeAgain, FreePoint::CacheFree)
}

#[raw_tracepoint]
fn page_alloc(ctx: RawTracePointContext) -> i32 {
    pages::alloc(&ctx)
}

#[raw_tracepoint]
fn page_free(ctx: RawTracePointContext) -> i32 {
    pages::free(&ctx)
}

#[raw_tracepoint]
fn percpu_alloc(ctx: RawTracePointContext) -> i32 {
    slab::percpu_alloc(&ctx)
}

#[raw_tracepoint]
fn percpu_alloc_bare(ctx: RawTracePointContext) -> i32 {
    slab::percpu_alloc_bare(&ctx)
}

#[raw_tracepoint]
fn percpu_free(ctx: RawTracePointContext) -> i32 {
    slab::percpu_free(&ctx)
}

// --- The same by classic tracepoints.

#[tracepoint]
fn kmalloc_classic(ctx: TracePointContext) -> u32 {
    slab::kmalloc_classic(&ctx)
}

#[tracepoint]
fn cache_alloc_classic(ctx: TracePointContext) -> u32 {
    slab::cache_alloc_classic(&ctx)
}

#[tracepoint]
fn kfree_classic(ctx: TracePointContext) -> u32 {
    slab::free_classic(&ctx, Program::Kfree, FreePoint::Kfree)
}

#[tracepoint]
fn cache_free_classic(ctx: TracePointContext) -> u32 {
    slab::free_classic(&ctx, Program::CacheFree, FreePoint::CacheFree)
}

#[tracepoint]
fn page_alloc_classic(ctx: TracePointContext) -> u32 {
    pages::alloc_classic(&ctx)
}

#[tracepoint]
fn page_free_classic(ctx: TracePointContext) -> u32 {
    pages::free_classic(&ctx)
}

#[tracepoint]
fn percpu_alloc_classic(ctx: TracePointContext) -> u32 {
    slab::percpu_alloc_classic(&ctx)
}

#[tracepoint]
fn percpu_free_classic(ctx: TracePointContext) -> u32 {
    slab::percpu_free_classic(&ctx)
}

// --- Bulk calls, and frees that wait for a grace period in a sheaf of the cache.

#[fentry]
fn bulk_free_fentry(ctx: FEntryContext) -> i32 {
    bulk::free_fentry(&ctx)
}

#[kprobe]
fn bulk_free_kprobe(ctx: ProbeContext) -> u32 {
    bulk::free_kprobe(&ctx)
}

#[fexit]
fn bulk_alloc_fexit(ctx: FExitContext) -> i32 {
    bulk::alloc_fexit(&ctx)
}

#[kprobe]
fn bulk_alloc_kprobe(ctx: ProbeContext) -> u32 {
    bulk::alloc_kprobe(&ctx)
}

#[kretprobe]
fn bulk_alloc_kretprobe(ctx: RetProbeContext) -> u32 {
    bulk::alloc_kretprobe(&ctx)
}

#[fexit]
fn sheaf_free_fexit(ctx: FExitContext) -> i32 {
    bulk::sheaf_free_fexit(&ctx)
}

#[kprobe]
fn sheaf_free_kprobe(ctx: ProbeContext) -> u32 {
    bulk::sheaf_free_kprobe(&ctx)
}

#[kretprobe]
fn sheaf_free_kretprobe(ctx: RetProbeContext) -> u32 {
    bulk::sheaf_free_kretprobe(&ctx)
}

// The floor that `cargo xtask bench --kernel` compares with: the tracepoints alone.

#[raw_tracepoint]
fn kernel_floor(_ctx: RawTracePointContext) -> i32 {
    0
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The programs are compiled without a path that panics; a verifier would refuse this loop.
    loop {}
}

// bpf_probe_read_kernel and bpf_get_stack are offered to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

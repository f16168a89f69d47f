//! leakprobe's BPF programs. Each entry point is one line and names the function that does its work.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "atomic additions have no other spelling on this target")]

mod block;
mod cookie;
mod kin;
mod ledger;
mod lifecycle;
mod maps;
mod mismatch;
mod pair;
mod private_stack;
mod range;
mod registers;
mod stack;
mod string;
mod thread;
mod unwind;

use aya_ebpf::{
    macros::{raw_tracepoint, tracepoint, uprobe, uretprobe},
    programs::{ProbeContext, RawTracePointContext, RetProbeContext, TracePointContext},
};

#[uprobe]
fn allocate_enter(ctx: ProbeContext) -> u32 {
    pair::enter(&ctx)
}

#[uretprobe]
fn allocate_return(ctx: RetProbeContext) -> u32 {
    pair::leave(&ctx)
}

#[uretprobe]
fn allocate_looped(ctx: RetProbeContext) -> u32 {
    pair::leave_looped(&ctx)
}

#[uprobe]
fn allocate_leave(ctx: ProbeContext) -> u32 {
    pair::leave_at(&ctx)
}

#[uprobe]
fn leave_looped(ctx: ProbeContext) -> u32 {
    pair::leave_at_looped(&ctx)
}

#[uprobe]
fn free_enter(ctx: ProbeContext) -> u32 {
    block::free(&ctx)
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn process_exec(ctx: RawTracePointContext) -> i32 {
    lifecycle::exec(&ctx)
}

#[raw_tracepoint(tracepoint = "task_newtask")]
fn process_fork(ctx: RawTracePointContext) -> i32 {
    lifecycle::fork(&ctx)
}

#[tracepoint]
fn process_born(ctx: TracePointContext) -> u32 {
    lifecycle::born(&ctx)
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn thread_exit(ctx: RawTracePointContext) -> i32 {
    lifecycle::thread_exit(&ctx)
}

#[tracepoint]
fn mmap_enter(ctx: TracePointContext) -> u32 {
    range::mmap_enter(&ctx)
}

#[tracepoint]
fn mmap_looped(ctx: TracePointContext) -> u32 {
    range::mmap_looped(&ctx)
}

#[tracepoint]
fn mremap_enter(ctx: TracePointContext) -> u32 {
    range::mremap_enter(&ctx)
}

#[tracepoint]
fn mremap_looped(ctx: TracePointContext) -> u32 {
    range::mremap_looped(&ctx)
}

#[tracepoint]
fn munmap_enter(ctx: TracePointContext) -> u32 {
    range::munmap_enter(&ctx)
}

#[tracepoint]
fn brk_enter(ctx: TracePointContext) -> u32 {
    range::brk_enter(&ctx)
}

#[tracepoint]
fn brk_looped(ctx: TracePointContext) -> u32 {
    range::brk_looped(&ctx)
}

#[tracepoint]
fn range_exit(ctx: TracePointContext) -> u32 {
    range::exit(&ctx)
}

// The floor that `cargo xtask bench` compares with: the traps alone.

#[uprobe]
fn floor_enter(_ctx: ProbeContext) -> u32 {
    0
}

#[uretprobe]
fn floor_return(_ctx: RetProbeContext) -> u32 {
    0
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The programs are compiled without a path that panics; a verifier would refuse this loop.
    loop {}
}

// bpf_probe_read_user and bpf_get_stack are offered to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

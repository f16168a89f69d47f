//! What a tracepoint, or a probed function, was called with.

use aya_ebpf::{
    EbpfContext,
    bindings::pt_regs,
    helpers::generated,
    programs::{ProbeContext, RawTracePointContext, TracePointContext},
};

/// An argument of a raw tracepoint; `index` constant.
#[inline(always)]
pub fn argument(ctx: &RawTracePointContext, index: usize) -> u64 {
    // SAFETY: the context of a raw tracepoint is its arguments, 64 bits each; the verifier checks the index.
    unsafe { *ctx.as_ptr().cast::<u64>().add(index) }
}

/// The field of a classic tracepoint's record at an offset; 0 where there is none.
#[inline(always)]
pub fn field(ctx: &TracePointContext, offset: u64) -> u64 {
    if offset == 0 { 0 } else { read(ctx.as_ptr() as u64 + offset) }
}

/// A field of 32 bits.
#[inline(always)]
pub fn field32(ctx: &TracePointContext, offset: u64) -> u32 {
    if offset == 0 { 0 } else { read32(ctx.as_ptr() as u64 + offset) }
}

/// Arguments of a patched function, and its result behind them. Not read from the context itself: the verifier gives
/// those types, and refuses pointers to pointers up to some kernel.
#[inline(always)]
pub fn arguments<const N: usize>(ctx: &impl EbpfContext) -> [u64; N] {
    let mut values = [0; N];
    // SAFETY: as long as is said; the context is an array of at least that many.
    unsafe {
        generated::bpf_probe_read_kernel(values.as_mut_ptr().cast(), (N * 8) as u32, ctx.as_ptr());
    }
    values
}

/// An argument of a function at whose entry there is a breakpoint; `index` constant.
#[inline(always)]
pub fn parameter(ctx: &ProbeContext, index: usize) -> u64 {
    ctx.arg(index).unwrap_or(0)
}

/// Bytes that a return pops from the stack.
#[cfg(bpf_target_arch = "x86_64")]
pub const RETURN_ADDRESS_BYTES: u64 = 8;
/// The return address is in a register.
#[cfg(bpf_target_arch = "aarch64")]
pub const RETURN_ADDRESS_BYTES: u64 = 0;

/// The stack pointer at a breakpoint.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
pub fn stack_pointer(registers: *mut pt_regs) -> u64 {
    // SAFETY: the context of the program; the verifier checks the access.
    unsafe { (*registers).rsp }
}

/// As above.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn stack_pointer(registers: *mut pt_regs) -> u64 {
    // SAFETY: the context of the program begins with its user_pt_regs; the verifier checks the access.
    unsafe { (*registers.cast::<aya_ebpf::bindings::user_pt_regs>()).sp }
}

/// A word of the kernel's memory; 0 where it cannot be read.
#[inline(always)]
pub fn read(address: u64) -> u64 {
    let mut value = 0u64;
    // SAFETY: the helper checks the address; a fault is an error and leaves 0.
    unsafe { generated::bpf_probe_read_kernel((&raw mut value).cast(), 8, address as *const _) };
    value
}

/// A half word of it.
#[inline(always)]
pub fn read32(address: u64) -> u32 {
    let mut value = 0u32;
    // SAFETY: as above.
    unsafe { generated::bpf_probe_read_kernel((&raw mut value).cast(), 4, address as *const _) };
    value
}

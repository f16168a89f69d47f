//! What user space has told the probe that was hit.

use aya_ebpf::{
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid},
    programs::ProbeContext,
};
use leakprobe_common::{Cookie, PAGE_OFFSET, ProbeKey};

use crate::{
    maps::{COOKIES, COOKIES_BY_ADDRESS},
    registers::Registers,
};

/// The probe's cookie; `None` when user space has not said yet what is probed at this address.
///
/// The verifier knows the global's value and drops the branch that is not taken, before it asks whether the
/// kernel has the helper in it (5.15).
#[inline(always)]
pub fn of(ctx: &ProbeContext) -> Option<Cookie> {
    if COOKIES_BY_ADDRESS.load() == 0 {
        // SAFETY: the context is the program's own.
        return Some(Cookie(unsafe { bpf_get_attach_cookie(ctx.regs.cast()) }));
    }
    let address = Registers::new(ctx.regs).instruction_pointer();
    match find(address & PAGE_OFFSET)? {
        Cookie::AMBIGUOUS => find(address),
        cookie => Some(cookie),
    }
}

#[inline(always)]
fn find(address: u64) -> Option<Cookie> {
    let key = ProbeKey { address, tgid: (bpf_get_current_pid_tgid() >> 32) as u32, _pad: 0 };
    // SAFETY: entries are never removed, and user space replaces a value (8 bytes, aligned) at once.
    unsafe { COOKIES.get(key) }.map(|&cookie| Cookie(cookie))
}

//! What user space has told the probe that was hit.

use aya_ebpf::{
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid},
    programs::ProbeContext,
};
use leakprobe_common::{Cookie, PAGE_BITS_OF_PROBES, PAGE_OFFSET, ProbeKey};

use crate::{
    maps::{COOKIES, COOKIES_BY_ADDRESS, FOLLOW, TARGETS},
    registers::Registers,
};

/// The probe's cookie; `None` when user space has not said yet what is probed at this address.
///
/// The verifier knows the globals' values and drops the branches that are not taken, before it asks whether the
/// kernel has the helper in them (5.15).
#[inline(always)]
pub fn of(ctx: &ProbeContext) -> Option<Cookie> {
    if COOKIES_BY_ADDRESS.load() == 0 && FOLLOW.load() == 0 {
        // SAFETY: the context is the program's own.
        return Some(Cookie(unsafe { bpf_get_attach_cookie(ctx.regs.cast()) }));
    }
    let address = Registers::new(ctx.regs).instruction_pointer();
    if COOKIES_BY_ADDRESS.load() == 0 {
        // SAFETY: as above.
        let event = unsafe { bpf_get_attach_cookie(ctx.regs.cast()) };
        return find(event << PAGE_BITS_OF_PROBES | address & PAGE_OFFSET, 0);
    }
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let book = if FOLLOW.load() == 0 {
        tgid
    } else {
        // SAFETY: entries are removed only when a target is dropped; this field of a target never changes.
        unsafe { TARGETS.get(tgid) }?.book
    };
    match find(address & PAGE_OFFSET, book)? {
        Cookie::AMBIGUOUS => find(address, book),
        cookie => Some(cookie),
    }
}

#[inline(always)]
fn find(address: u64, tgid: u32) -> Option<Cookie> {
    let key = ProbeKey { address, tgid, _pad: 0 };
    // SAFETY: entries are never removed, and user space replaces a value (8 bytes, aligned) at once.
    unsafe { COOKIES.get(key) }.map(|&cookie| Cookie(cookie))
}

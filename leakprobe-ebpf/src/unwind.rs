//! Stacks by the tables that user space has made of each object's call frame information.
//!
//! A step looks up the rule of a frame's address, and finds its caller's stack pointer, frame pointer and address by it.
//! What costs is the search for a row; return addresses repeat, so the rules of those that were looked up are
//! remembered. Code that has no tables is walked by frame pointers, which is a guess, and is marked.

use core::arch::asm;

use aya_ebpf::helpers::{bpf_probe_read_user, generated};
use leakprobe_common::{
    CACHE_RULE_BITS, CHUNK_BITS, CHUNK_ROWS, FRAME_POINTERS, MAX_FRAMES, MAX_RANGES, MAX_RULES, NO_RULE,
    NO_SPACE, NO_TABLE, PAGE_BITS, RANGE_BITS, RULE_STAYS, Rule, STACK_WINDOW, STAYS, Space, StackEnd,
    Thread, UNDESCRIBED, Unwinding, Walk, cache_index, cfa, guess, mix, saved, variant_hash,
};

use crate::{
    maps::{EPOCHS, PAGES, ROWS, RULES, SPACE_OF, SPACES, TARGETS, UNWINDING},
    registers::{Caller, Registers},
    stack::{self, WINDOW_BYTES},
};

/// A walk's result.
pub struct Walked {
    /// Hash of the frames.
    pub hash: u64,
    /// Whether a return address is the kernel's trampoline: another tracer has a return probe on a function of the
    /// target's that has not returned.
    pub hijacked: bool,
    /// Whether it came through code that is not described yet.
    pub undescribed: bool,
}

/// Chooses the space that describes the code of a process's present program: the empty one, in which no code is known,
/// where it has not been described, or is not to be. `None` for a process that is no target any more.
#[inline(always)]
fn choose_space(thread: &mut Thread) -> Option<()> {
    // SAFETY: entries are removed only when a target is dropped; a stale read gives a wrong stack for one call at worst.
    let target = unsafe { TARGETS.get(thread.tgid) }?;
    thread.walk.trampoline = target.trampoline;
    thread.walk.target = target.number;
    let index = used(target.number);
    // SAFETY: a live element of an array.
    let space = unsafe { &*SPACES.get_ptr(index)? };
    thread.walk.serial = serial(index);
    // A space that is used is not written.
    let is_whole = used(target.number) == index;
    let is_for_this = is_whole && space.generation == target.image;
    thread.walk.space = if is_for_this { index } else { NO_SPACE };
    thread.walk.stale = (index != NO_SPACE && space.epoch != epoch(target.number)) as u32;
    Some(())
}

/// Index of the space that describes a target.
#[inline(always)]
fn used(target: u32) -> u32 {
    // SAFETY: an aligned word, which user space writes as a whole; volatile, because it is read twice.
    SPACE_OF.get_ptr(target).map_or(NO_SPACE, |index| unsafe { core::ptr::read_volatile(index) })
}

/// Number of what was written to a space last.
#[inline(always)]
fn serial(space: u32) -> u32 {
    // SAFETY: an aligned word of a live element, which user space may write meanwhile; volatile, because it is read twice.
    SPACES.get_ptr(space).map_or(0, |space| unsafe { core::ptr::read_volatile(&raw const (*space).serial) })
}

/// Epoch of a target's code.
#[inline(always)]
pub fn epoch(target: u32) -> u32 {
    // SAFETY: an aligned word, which the programs write as a whole; volatile, because they do so meanwhile.
    EPOCHS.get_ptr(target).map_or(0, |epoch| unsafe { core::ptr::read_volatile(epoch) })
}

/// Walks from the caller's registers into `thread.stack`; `None` for a process that is no target any more.
///
/// `LOOPED`: the kernel calls each step (`bpf_loop`, from 5.17 on), so that its verifier goes through one alone.
#[inline(always)]
pub fn walk<const LOOPED: bool>(thread: &mut Thread, caller: &Caller, seed: u64) -> Option<Walked> {
    thread.walk = Walk {
        ip: caller.ip,
        sp: caller.sp,
        fp: caller.fp,
        link: caller.link,
        back: 1,
        window: u64::MAX,
        hash: seed,
        mask: caller.mask,
        ..Walk::default()
    };
    choose_space(thread)?;
    thread.stack.len = 0;
    thread.stack.end = StackEnd::Truncated as u32;
    if LOOPED {
        // The helper takes nothing but a pointer into the stack.
        let mut pointer: *mut Thread = &raw mut *thread;
        // SAFETY: the helper calls `next` at most so often, with that context, before it returns.
        unsafe { generated::bpf_loop(MAX_FRAMES as u32, next as *mut _, (&raw mut pointer).cast(), 0) };
    } else {
        for _ in 0..MAX_FRAMES {
            if !take(thread) {
                break;
            }
        }
    }
    // It may have been written anew meanwhile: that begins as soon as another one is used, and that has been described too.
    if thread.walk.space != NO_SPACE && serial(thread.walk.space) != thread.walk.serial {
        thread.stack.end = LOST;
    }
    let variant = SPACES.get_ptr(thread.walk.space).map_or(0, |space| {
        // SAFETY: a live element of an array; an aligned word.
        unsafe { core::ptr::read_volatile(&raw const (*space).variant) }
    });
    let guessed = thread.walk.guessed;
    thread.stack.guessed = guessed as u32 & guess::FRAME_POINTER as u32;
    let undescribed = guessed & guess::UNDESCRIBED as u64 != 0;
    // Nothing takes the place of code that stays, and what is not described is known of nothing.
    let tells = guessed & guess::PASSING as u64 != 0 && !undescribed;
    Some(Walked {
        hash: if tells { variant_hash(thread.walk.hash, variant) } else { thread.walk.hash },
        hijacked: thread.walk.hijacked != 0,
        undescribed,
    })
}

/// Takes one step; whether there is another. How far the walk got is in `thread.stack` alone: what comes behind it would
/// else be verified once for each length.
#[inline(always)]
fn take(thread: &mut Thread) -> bool {
    match step(thread) {
        GO_ON => true,
        ended => {
            // SAFETY: a field of a live map value.
            unsafe { core::ptr::write_volatile(&raw mut thread.stack.end, ended) };
            false
        }
    }
}

/// One step, as `bpf_loop` calls it; 1 ends the loop.
unsafe extern "C" fn next(_: u32, thread: *mut *mut Thread) -> u64 {
    // SAFETY: what `walk` has handed to the helper, which calls this function alone.
    let thread = unsafe { &mut **thread };
    if take(thread) { 0 } else { 1 }
}

/// What [`step`] says when there is a caller; else it is a [`StackEnd`].
const GO_ON: u32 = u32::MAX;
const BASE: u32 = StackEnd::Base as u32;
const LOST: u32 = StackEnd::Lost as u32;

/// A field of the walk, read anew.
macro_rules! get {
    ($thread:ident.$field:ident) => {
        // SAFETY: a field of a live map value; volatile, so that the verifier meets a number that it knows nothing of.
        unsafe { core::ptr::read_volatile(&raw const $thread.walk.$field) }
    };
}

macro_rules! set {
    ($thread:ident.$field:ident, $value:expr) => {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut $thread.walk.$field, $value) }
    };
}

/// Keeps a frame, and goes to its caller.
#[inline(always)]
fn step(thread: &mut Thread) -> u32 {
    let ip = get!(thread.ip);
    // SAFETY: fields of a live map value; volatile as above.
    let len = unsafe { core::ptr::read_volatile(&raw const thread.stack.len) };
    thread.stack.frames[len as usize & (MAX_FRAMES - 1)] = ip;
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&raw mut thread.stack.len, len + 1) };
    let hash = mix(get!(thread.hash), ip);
    set!(thread.hash, hash);
    // Of a walk that has gone by guesses it says nothing: what they have met may be left from a call before.
    let is_told = get!(thread.guessed) & guess::UNDESCRIBED as u64 == 0;
    if is_told && is_trampoline(get!(thread.trampoline), ip) {
        set!(thread.hijacked, 1);
    }
    if UNWINDING.load() == Unwinding::Caller as u32 {
        return LOST;
    }
    let number = rule_of(thread, ip.wrapping_sub(get!(thread.back)));
    let passes = (number & RULE_STAYS as u32 == 0) as u64;
    let guessed = get!(thread.guessed) | passes * guess::PASSING as u64;
    set!(thread.guessed, guessed);
    let is_unmapped = passes as u32 & get!(thread.stale) != 0;
    let number = if is_unmapped { UNDESCRIBED as u32 } else { number & (MAX_RULES as u32 - 1) };
    set!(thread.rule, number as u64);
    let Some(rule) = RULES.get(get!(thread.rule) as u32) else { return LOST };
    if rule.ra == saved::NOWHERE {
        return BASE;
    }
    if rule.is_guess != 0 {
        let guessed = get!(thread.guessed) | rule.is_guess as u64;
        set!(thread.guessed, guessed);
        if rule.is_guess & guess::FRAME_POINTER != 0 && get!(thread.fp) == 0 {
            return BASE;
        }
    }
    if !find_frame(thread, rule) {
        return LOST;
    }
    // Frames lie one above the other, but where a signal has come in between, which may have a stack of its own.
    let (frame, sp) = (get!(thread.frame), get!(thread.sp));
    let least = sp + (rule.ra != saved::SAME) as u64;
    if frame & 7 != 0 || (frame < least && rule.is_signal == 0) {
        return LOST;
    }
    climb(thread, rule)
}

/// Finds the caller's stack pointer.
#[inline(always)]
fn find_frame(thread: &mut Thread, rule: &Rule) -> bool {
    let offset = rule.cfa_offset as i64 as u64;
    let mut from = if rule.cfa & 1 != 0 { get!(thread.sp) } else { get!(thread.fp) };
    if rule.cfa >= cfa::INTERRUPTED {
        if rule.cfa == cfa::INTERRUPTED && get!(thread.back) != 0 {
            return false;
        }
        // 0 where no signal has been met; nothing can be read there.
        from = get!(thread.interrupted);
    }
    set!(thread.frame, from.wrapping_add(offset));
    if rule.cfa <= cfa::FRAME_POINTER {
        return rule.cfa != cfa::UNKNOWN;
    }
    let frame = if rule.cfa == cfa::LINKAGE_TABLE {
        let pushed = get!(thread.ip) & 15 >= offset;
        get!(thread.sp).wrapping_add(if pushed { 16 } else { 8 })
    } else {
        match word(get!(thread.frame)) {
            Some(frame) => frame.wrapping_add(rule.cfa_addend as i64 as u64),
            None => return false,
        }
    };
    set!(thread.frame, frame);
    true
}

/// Goes to the caller, whose stack pointer is known.
#[inline(always)]
fn climb(thread: &mut Thread, rule: &Rule) -> u32 {
    let fp_at = place(thread, rule.fp, rule.fp_offset);
    let ra_at = place(thread, rule.ra, rule.ra_offset);
    // A frame pointer is saved below the return address. 0 is the place of what is not saved.
    let first = if fp_at != 0 { fp_at } else { ra_at };
    if first != 0 && !see(thread, first) {
        return LOST;
    }
    if rule.is_signal != 0 {
        set!(thread.interrupted, ra_at);
    }
    if rule.is_signal != 0
        && let Some(below) = Registers::LINK_BELOW_INTERRUPTED
    {
        // What was interrupted may have its return address in its register still.
        let Some(link) = word(ra_at.wrapping_sub(below)) else { return LOST };
        set!(thread.link, link);
    }
    let ip = if ra_at == 0 {
        // Used once: a caller's is on its stack.
        let link = get!(thread.link);
        set!(thread.link, 0);
        link
    } else {
        match seen(thread, ra_at) {
            Some(ip) => ip,
            None => return LOST,
        }
    };
    if fp_at != 0 {
        match seen(thread, fp_at) {
            Some(fp) => set!(thread.fp, fp),
            None => return LOST,
        }
    }
    let ip = ip & get!(thread.mask);
    set!(thread.ip, ip);
    let sp = get!(thread.frame);
    set!(thread.sp, sp);
    set!(thread.back, 1 - rule.is_signal as u64);
    if ip != 0 {
        return GO_ON;
    }
    // The last frame of some stacks, or one that is no frame: only call frame information says for sure.
    let guessed = get!(thread.guessed) | guess::FRAME_POINTER as u64;
    set!(thread.guessed, guessed);
    BASE
}

/// Where a register is saved; 0 when it is not.
#[inline(always)]
fn place(thread: &Thread, place: u8, offset: i16) -> u64 {
    let from = match place {
        saved::AT_CFA => get!(thread.frame),
        saved::AT_STACK_POINTER => get!(thread.sp),
        saved::AT_FRAME_POINTER => get!(thread.fp),
        _ => return 0,
    };
    from.wrapping_add(offset as i64 as u64)
}

/// Sees to it that a word is in the copy of the stack, and with it what is above.
#[inline(always)]
fn see(thread: &mut Thread, address: u64) -> bool {
    if address.wrapping_sub(get!(thread.window)) <= get!(thread.reach) {
        return true;
    }
    set!(thread.window, address);
    if stack::copy(&mut thread.window, address, WINDOW_BYTES as u32) {
        set!(thread.reach, WINDOW_BYTES - 8);
        true
    } else {
        // Less than a window was left of the stack, or its next page is not in memory.
        set!(thread.reach, 0);
        stack::copy(&mut thread.window, address, 8)
    }
}

/// A word of the stack, from the copy where it is in there.
#[inline(always)]
fn seen(thread: &Thread, address: u64) -> Option<u64> {
    let above = address.wrapping_sub(get!(thread.window));
    if above & 7 != 0 {
        return None;
    }
    if above > get!(thread.reach) {
        return word(address);
    }
    Some(thread.window[(above >> 3) as usize & (STACK_WINDOW - 1)])
}

/// A word of the target's memory.
#[inline(always)]
fn word(address: u64) -> Option<u64> {
    // SAFETY: the helper checks the address; a fault is an error, not a crash.
    unsafe { bpf_probe_read_user(address as *const u64) }.ok()
}

/// Whether an address is that of the page that pending return probes lead to; while that is not known, any page's start is
/// taken for it.
#[inline(always)]
fn is_trampoline(trampoline: u64, address: u64) -> bool {
    if trampoline != 0 { address == trampoline } else { address & 0xfff == 0 }
}

/// The number of an address's rule, remembered or found, with [`RULE_STAYS`].
#[inline(always)]
fn rule_of(thread: &Thread, address: u64) -> u32 {
    if UNWINDING.load() == Unwinding::FramePointers as u32 {
        return FRAME_POINTERS as u32;
    }
    let Some(space) = SPACES.get_ptr_mut(get!(thread.space)) else { return NO_RULE as u32 };
    // SAFETY: a live element of an array. User space writes those that are not used; the programs write their cache, by
    // words.
    let slot = unsafe { &raw mut (*space).cache[cache_index(address)] };
    // SAFETY: an aligned word, which other threads write as a whole; volatile, so that it is read once.
    let remembered = unsafe { core::ptr::read_volatile(slot) };
    if remembered >> CACHE_RULE_BITS == address {
        return (remembered & ((1 << CACHE_RULE_BITS) - 1)) as u32;
    }
    // SAFETY: as above.
    let number = find(unsafe { &*space }, address) as u32;
    // SAFETY: as above. An address of more than 48 bits is remembered as another one, which there is not.
    unsafe { core::ptr::write_volatile(slot, address << CACHE_RULE_BITS | number as u64) };
    number
}

/// 1 where `a` is less than `b`, else 0, of numbers below 2^63. In assembly, because the compiler makes a branch of it,
/// and the verifier follows both ways of each.
#[inline(always)]
fn is_less(a: u64, b: u64) -> u64 {
    let mut difference = a;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!(
            "{difference} -= {b}",
            "{difference} >>= 63",
            difference = inout(reg) difference,
            b = in(reg) b,
            options(pure, nomem, nostack),
        );
    }
    difference
}

#[inline(always)]
fn find(space: &Space, address: u64) -> u16 {
    // How many ranges begin at or below the address; those that are not in use begin above all.
    let mut below = 0usize;
    for bit in (0..RANGE_BITS).rev() {
        let next = below + (1 << bit);
        let start = space.ranges[(next - 1) & (MAX_RANGES - 1)].start;
        below += (is_less(start, address + 1) << bit) as usize;
    }
    let range = &space.ranges[below.wrapping_sub(1) & (MAX_RANGES - 1)];
    if below == 0 || address >= range.end {
        return UNDESCRIBED;
    }
    let stays = (range.pages >> 31) as u16 * RULE_STAYS;
    let pages = range.pages & !STAYS;
    if pages == NO_TABLE {
        return FRAME_POINTERS | stays;
    }
    let offset = (address - range.start) + range.offset as u64;
    let Some(page) = PAGES.get(pages.wrapping_add((offset >> PAGE_BITS) as u32)) else {
        return NO_RULE | stays;
    };
    let Some(chunk) = ROWS.get(page.chunk) else { return NO_RULE | stays };
    let wanted = offset << 16 & 0xffff_0000 | 0xffff;
    let (first, count) = (page.first as u64, page.rows as u64);
    let mut before = 0u64;
    for bit in (0..=CHUNK_BITS).rev() {
        let next = before + (1 << bit);
        let row = chunk.rows[(first + next - 1) as usize & (CHUNK_ROWS - 1)];
        // Within the page, and not above the address.
        before += (is_less(next, count + 1) & is_less(row as u64, wanted + 1)) << bit;
    }
    if before == 0 {
        return NO_RULE | stays;
    }
    chunk.rows[(first + before - 1) as usize & (CHUNK_ROWS - 1)] as u16 | stays
}

const _: () = assert!(MAX_FRAMES.is_power_of_two());

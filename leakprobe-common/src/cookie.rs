//! What user space tells a probe about the function that it sits in.

use crate::Block;

/// What a probed function does with a block, in the terms that pairing needs.
///
/// Which of its arguments is the size, the count or the pointer is not part of this: it differs from
/// function to function, and after a moved probe also in register, so the [`Cookie`] names registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Call {
    /// `malloc`, `calloc`, `aligned_alloc`, ...: returns a new block, or NULL.
    Allocate = 1,
    /// `realloc`, `reallocarray`: gives a block back and returns its successor, or NULL and changes nothing.
    Reallocate = 2,
    /// `posix_memalign`: returns 0 and stores the new block through its pointer argument.
    AllocateOut = 3,
    /// `free` and its kin: gives a block back.
    Free = 4,
    /// `xallocx`: changes a block's size where it is, if it can to the sum of two arguments, and returns the size that it has
    /// then; less than the first of them says that nothing has changed.
    Resize = 5,
    /// `_dl_debug_state`: the dynamic linker has mapped objects, or is about to unmap some.
    CodeChange = 6,
    /// No function, but a return instruction, by which one of those ends whose [`Cookie::ends_at_instructions`].
    Leave = 7,
    /// `mi_strdup`, `mi_realpath`: returns a new block, which holds a string and is as large as that with its end. One that
    /// has a pointer argument returns that instead where it is not null.
    Duplicate = 8,
    /// `reallocarr`: returns 0, gives back the block to which its argument points, and stores that block's successor there.
    ReallocateOut = 9,
    /// `mi_heap_destroy`: gives all blocks of a heap back at once. Which those are is not known.
    DestroyHeap = 10,
    /// `reallocf`: as `realloc`, but gives the block back where there is no successor too.
    ReallocateOrFree = 11,
}

impl Call {
    /// The call for its number in a cookie; `None` for a number that stands for none.
    #[inline(always)]
    pub const fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            1 => Some(Self::Allocate),
            2 => Some(Self::Reallocate),
            3 => Some(Self::AllocateOut),
            4 => Some(Self::Free),
            5 => Some(Self::Resize),
            6 => Some(Self::CodeChange),
            7 => Some(Self::Leave),
            8 => Some(Self::Duplicate),
            9 => Some(Self::ReallocateOut),
            10 => Some(Self::DestroyHeap),
            11 => Some(Self::ReallocateOrFree),
            _ => None,
        }
    }

    /// Whether what it comes to is known when it returns, so that its return is probed too.
    #[inline(always)]
    pub const fn returns(self) -> bool {
        !matches!(self, Self::Free | Self::CodeChange | Self::Leave | Self::DestroyHeap)
    }

    /// Whether it gives a block back and returns one.
    #[inline(always)]
    pub const fn replaces(self) -> bool {
        matches!(self, Self::Reallocate | Self::ReallocateOrFree | Self::ReallocateOut | Self::Resize)
    }
}

/// The register number that stands for "this function has no such argument".
pub const NO_REGISTER: u8 = 0xff;

/// The bits of an address that are the same wherever a file is mapped: whole pages are, of 4 KiB at least.
pub const PAGE_OFFSET: u64 = 0xfff;

/// How many they are. With `--follow` a probe carries the number of its event, which stands above them in a
/// [`ProbeKey`] of no process: one of the same event has another offset, wherever the file is mapped.
pub const PAGE_BITS_OF_PROBES: u32 = 12;

/// Key of a probe's cookie where the kernel hands out none (before 5.15).
///
/// First asked for with the page offset of the probed instruction alone ([`PAGE_OFFSET`]), which holds after an exec
/// or another dlopen too, before user space has seen the new mappings. [`Cookie::AMBIGUOUS`] there says that
/// several probes of the process have that offset; then the whole address is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ProbeKey {
    /// Address of the probed instruction, or its page offset.
    pub address: u64,
    /// Process (thread group) as the initial PID namespace numbers it.
    pub tgid: u32,
    /// Always 0: keys are compared as bytes.
    pub _pad: u32,
}

const _: () = assert!(core::mem::size_of::<ProbeKey>() == 16 && core::mem::offset_of!(ProbeKey, tgid) == 8);

/// A probe's constant, read in BPF by `bpf_get_attach_cookie`: one byte each, from the lowest, for the
/// call, the registers of size, count and pointer (at the probed instruction), the allocator family and
/// flags; then two for [`Cookie::extent`]. Register numbers are the machine's own: 0-15 for rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8-r15
/// on x86_64, 0-30 for x0-x30 on aarch64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Cookie(pub u64);

impl Cookie {
    /// No cookie: several probes of a process share a page offset. See [`ProbeKey`].
    pub const AMBIGUOUS: Self = Self(0);

    const ZERO_FREES: u8 = 1;
    const FREED_ELSEWHERE: u8 = 2;
    const RETURN_DISPLACED: u8 = 4;
    const ENDS_AT_INSTRUCTIONS: u8 = 8;

    /// Of a probe on a return instruction.
    pub const LEAVE: Self = Self(Call::Leave as u64);

    /// Packs what a probe needs to know. `zero_frees`: whether `realloc(p, 0)` frees `p` and returns NULL,
    /// the rule of this allocator.
    pub const fn new(call: Call, size: u8, count: u8, pointer: u8, family: u8, zero_frees: bool) -> Self {
        let flags = if zero_frees { Self::ZERO_FREES } else { 0 };
        Self(u64::from_le_bytes([call as u8, size, count, pointer, family, flags, 0, 0]))
    }

    /// The same of an allocator that has its blocks given back by another one's functions: that says nothing.
    pub const fn freed_elsewhere(self) -> Self {
        self.with(Self::FREED_ELSEWHERE)
    }

    /// The same of a probe where the return address is not any more where a call has put it.
    pub const fn return_displaced(self) -> Self {
        self.with(Self::RETURN_DISPLACED)
    }

    /// The same of a function whose returns are probed at its return instructions, for no return probe must stand in
    /// the way of its exceptions. `extent`: how many bytes of its code follow the probed instruction; more than fit are cut.
    pub const fn ending_at_instructions(self, extent: u64) -> Self {
        let extent = if extent > u16::MAX as u64 { u16::MAX as u64 } else { extent };
        Self(self.with(Self::ENDS_AT_INSTRUCTIONS).0 | extent << 48)
    }

    /// Whether its returns are probed at its return instructions.
    #[inline(always)]
    pub const fn ends_at_instructions(self) -> bool {
        self.has(Self::ENDS_AT_INSTRUCTIONS)
    }

    /// How many bytes of the function's code follow the probed instruction, where it ends at instructions.
    #[inline(always)]
    pub const fn extent(self) -> u64 {
        self.0 >> 48
    }

    const fn with(self, flag: u8) -> Self {
        Self(self.0 | (flag as u64) << 40)
    }

    #[inline(always)]
    const fn has(self, flag: u8) -> bool {
        (self.0 >> 40) as u8 & flag != 0
    }

    /// Whether the return address is where a call has put it.
    #[inline(always)]
    pub const fn has_return_address(self) -> bool {
        !self.has(Self::RETURN_DISPLACED)
    }

    /// What a block is recorded as: [`Cookie::family`], and whether others' functions may give it back.
    #[inline(always)]
    pub const fn owner(self) -> u32 {
        let family = self.family() as u32;
        if self.has(Self::FREED_ELSEWHERE) { family | Block::FREED_ELSEWHERE } else { family }
    }

    /// Of a probe in the dynamic linker: how far behind the probed instruction its state is, bytes.
    pub const fn code_change(state: i32) -> Self {
        Self(Call::CodeChange as u64 | (state as u32 as u64) << 8)
    }

    /// See [`Cookie::code_change`].
    #[inline(always)]
    pub const fn state(self) -> i32 {
        (self.0 >> 8) as i32
    }

    /// The call, or `None` when this is no cookie of ours.
    #[inline(always)]
    pub const fn call(self) -> Option<Call> {
        Call::from_raw(self.0 as u8)
    }

    /// Register of the size in bytes (of one element, where there is a count), or [`NO_REGISTER`].
    #[inline(always)]
    pub const fn size(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Register of the number of elements, or [`NO_REGISTER`].
    #[inline(always)]
    pub const fn count(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// Register of the block given back, or of the out pointer; or [`NO_REGISTER`].
    #[inline(always)]
    pub const fn pointer(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// Index of the allocator family in user space's table.
    #[inline(always)]
    pub const fn family(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// Whether `realloc(p, 0)` frees.
    #[inline(always)]
    pub const fn zero_frees(self) -> bool {
        self.has(Self::ZERO_FREES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_that_is_too_long_is_cut() {
        let cookie = Cookie::new(Call::Allocate, 7, NO_REGISTER, NO_REGISTER, 3, true);
        assert!(!cookie.ends_at_instructions() && cookie.extent() == 0);
        let ending = cookie.ending_at_instructions(0x142);
        assert!(ending.ends_at_instructions() && ending.zero_frees() && ending.has_return_address());
        assert_eq!((ending.extent(), ending.family(), ending.call()), (0x142, 3, Some(Call::Allocate)));
        assert_eq!(cookie.ending_at_instructions(1 << 20).extent(), 0xffff);
        assert_eq!((Cookie::LEAVE.call(), Cookie::LEAVE.ends_at_instructions()), (Some(Call::Leave), false));
    }
}

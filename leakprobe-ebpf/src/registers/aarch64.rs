//! aarch64. Register numbers 0-30 are x0-x30.

use core::{arch::asm, mem::offset_of};

use aya_ebpf::{
    bindings::user_pt_regs,
    helpers::{bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_task_pt_regs},
};

use super::Caller;

/// A return pops nothing.
pub const RETURN_ADDRESS_BYTES: u64 = 0;
/// The return address is in x30 at a call; where the callee saves it is its own business.
pub const RETURN_ADDRESS_ON_STACK: bool = false;

/// A view of the registers at a probe.
pub struct Registers(*const user_pt_regs);

macro_rules! read {
    ($self:ident, $field:ident $(, $index:literal)?) => {{
        let value: u64;
        // In assembly, because the compiler otherwise merges the loads of several arms into one at a
        // computed offset, which the verifier refuses for the context.
        // SAFETY: the context of a uprobe program is the kernel's user_pt_regs; the verifier checks the access.
        unsafe {
            asm!(
                "{value} = *(u64 *)({context} + {offset})",
                value = out(reg) value,
                context = in(reg) $self.0,
                offset = const offset_of!(user_pt_regs, $field) $(+ 8 * $index)?,
                options(nostack, readonly, preserves_flags),
            );
        }
        value
    }};
}

impl Registers {
    /// In a signal frame, how far below the interrupted address (`pc`) the link register (`regs[30]`) is, bytes.
    pub const LINK_BELOW_INTERRUPTED: Option<u64> = Some(16);

    #[inline(always)]
    pub fn new<T>(regs: *mut T) -> Self {
        Self(regs.cast())
    }

    /// A register by its number in a cookie; 0 for a number that the planner never names. A chain of
    /// compares, because the verifier refuses a context access at a variable offset.
    #[inline(always)]
    pub fn get(&self, number: u8) -> u64 {
        match number {
            0 => read!(self, regs, 0),
            1 => read!(self, regs, 1),
            2 => read!(self, regs, 2),
            3 => read!(self, regs, 3),
            4 => read!(self, regs, 4),
            5 => read!(self, regs, 5),
            6 => read!(self, regs, 6),
            7 => read!(self, regs, 7),
            8 => read!(self, regs, 8),
            9 => read!(self, regs, 9),
            10 => read!(self, regs, 10),
            11 => read!(self, regs, 11),
            12 => read!(self, regs, 12),
            13 => read!(self, regs, 13),
            14 => read!(self, regs, 14),
            15 => read!(self, regs, 15),
            16 => read!(self, regs, 16),
            17 => read!(self, regs, 17),
            18 => read!(self, regs, 18),
            19 => read!(self, regs, 19),
            20 => read!(self, regs, 20),
            21 => read!(self, regs, 21),
            22 => read!(self, regs, 22),
            23 => read!(self, regs, 23),
            24 => read!(self, regs, 24),
            25 => read!(self, regs, 25),
            26 => read!(self, regs, 26),
            27 => read!(self, regs, 27),
            28 => read!(self, regs, 28),
            29 => read!(self, regs, 29),
            30 => read!(self, regs, 30),
            _ => 0,
        }
    }

    /// The registers that a walk begins with, of the system call that the thread is in. From Linux 5.15 on, where it has BTF.
    #[inline(always)]
    pub fn system_caller() -> Option<Caller> {
        // SAFETY: the helpers have no preconditions; a kernel that has no such one must not see the program. What is
        // read is memory of the kernel's, and a fault is an error.
        unsafe {
            let registers = bpf_task_pt_regs(bpf_get_current_task_btf()) as *const user_pt_regs;
            let (ip, sp) = (
                bpf_probe_read_kernel(&raw const (*registers).pc).ok()?,
                bpf_probe_read_kernel(&raw const (*registers).sp).ok()?,
            );
            Some(Caller {
                ip,
                sp,
                fp: bpf_probe_read_kernel(&raw const (*registers).regs[29]).ok()?,
                link: bpf_probe_read_kernel(&raw const (*registers).regs[30]).ok()?,
                mask: code_mask(sp, ip),
            })
        }
    }

    #[inline(always)]
    pub fn stack_pointer(&self) -> u64 {
        read!(self, sp)
    }

    #[inline(always)]
    pub fn frame_pointer(&self) -> u64 {
        read!(self, regs, 29)
    }

    #[inline(always)]
    pub fn instruction_pointer(&self) -> u64 {
        read!(self, pc)
    }

    /// At a function's entry.
    #[inline(always)]
    pub fn return_address(&self) -> u64 {
        read!(self, regs, 30)
    }

    /// The bits of a code address.
    #[inline(always)]
    pub fn code_mask(&self) -> u64 {
        code_mask(self.stack_pointer(), self.instruction_pointer())
    }

    #[inline(always)]
    pub fn result(&self) -> u64 {
        read!(self, regs, 0)
    }
}

/// The bits of a code address. The others of one that a function has saved hold its signature, where the
/// program signs return addresses (`paciasp`) and the processor can; the kernel's own walk strips them,
/// too. How many there are is the kernel's choice (36 to 52). Stacks and code lie at the top of the address
/// space, unless the program is at a fixed low address and has made a stack of its own down there: then
/// those that most kernels have.
#[inline(always)]
fn code_mask(stack_pointer: u64, instruction_pointer: u64) -> u64 {
    let mut bits = stack_pointer | instruction_pointer;
    bits |= bits >> 1;
    bits |= bits >> 2;
    bits |= bits >> 4;
    bits |= bits >> 8;
    bits |= bits >> 16;
    bits |= bits >> 32;
    if bits < (1 << 36) - 1 { (1 << 48) - 1 } else { bits }
}

//! x86_64. Register numbers are the instruction encoding's: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8-r15.

use core::{arch::asm, mem::offset_of};

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_task_pt_regs},
};

use super::Caller;

/// Bytes that a return pops from the stack.
pub const RETURN_ADDRESS_BYTES: u64 = 8;
/// A pending return probe can be seen at the entry's stack pointer.
pub const RETURN_ADDRESS_ON_STACK: bool = true;

/// A view of the registers at a probe.
pub struct Registers(*const pt_regs);

macro_rules! read {
    ($self:ident, $field:ident) => {{
        let value: u64;
        // In assembly, because the compiler otherwise merges the loads of several arms into one at a
        // computed offset, which the verifier refuses for the context.
        // SAFETY: the context of a uprobe program is the kernel's pt_regs; the verifier checks the access.
        unsafe {
            asm!(
                "{value} = *(u64 *)({context} + {offset})",
                value = out(reg) value,
                context = in(reg) $self.0,
                offset = const offset_of!(pt_regs, $field),
                options(nostack, readonly, preserves_flags),
            );
        }
        value
    }};
}

impl Registers {
    /// Return addresses are in no register: no signal frame has one apart.
    pub const LINK_BELOW_INTERRUPTED: Option<u64> = None;

    #[inline(always)]
    pub fn new(regs: *mut pt_regs) -> Self {
        Self(regs)
    }

    /// A register by its number in a cookie; 0 for a number that is none. A chain of compares, because
    /// the verifier refuses a context access at a variable offset; the usual argument registers first.
    #[inline(always)]
    pub fn get(&self, number: u8) -> u64 {
        match number {
            7 => read!(self, rdi),
            6 => read!(self, rsi),
            2 => read!(self, rdx),
            0 => read!(self, rax),
            1 => read!(self, rcx),
            3 => read!(self, rbx),
            4 => read!(self, rsp),
            5 => read!(self, rbp),
            8 => read!(self, r8),
            9 => read!(self, r9),
            10 => read!(self, r10),
            11 => read!(self, r11),
            12 => read!(self, r12),
            13 => read!(self, r13),
            14 => read!(self, r14),
            15 => read!(self, r15),
            _ => 0,
        }
    }

    /// The registers that a walk begins with, of the system call that the thread is in. From Linux 5.15 on, where it has BTF.
    #[inline(always)]
    pub fn system_caller() -> Option<Caller> {
        // SAFETY: the helpers have no preconditions; a kernel that has no such one must not see the program. What is
        // read is memory of the kernel's, and a fault is an error.
        unsafe {
            let registers = bpf_task_pt_regs(bpf_get_current_task_btf()) as *const pt_regs;
            Some(Caller {
                ip: bpf_probe_read_kernel(&raw const (*registers).rip).ok()?,
                sp: bpf_probe_read_kernel(&raw const (*registers).rsp).ok()?,
                fp: bpf_probe_read_kernel(&raw const (*registers).rbp).ok()?,
                link: 0,
                mask: u64::MAX,
            })
        }
    }

    #[inline(always)]
    pub fn stack_pointer(&self) -> u64 {
        read!(self, rsp)
    }

    #[inline(always)]
    pub fn frame_pointer(&self) -> u64 {
        read!(self, rbp)
    }

    #[inline(always)]
    pub fn instruction_pointer(&self) -> u64 {
        read!(self, rip)
    }

    /// In no register: see [`RETURN_ADDRESS_ON_STACK`].
    #[inline(always)]
    pub fn return_address(&self) -> u64 {
        0
    }

    /// The bits of a saved code address: nothing else is in it.
    #[inline(always)]
    pub fn code_mask(&self) -> u64 {
        u64::MAX
    }

    #[inline(always)]
    pub fn result(&self) -> u64 {
        read!(self, rax)
    }
}

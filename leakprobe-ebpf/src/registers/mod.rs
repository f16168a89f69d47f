//! The machine's registers as a probe finds them: the only code that differs between architectures.

#[cfg_attr(bpf_target_arch = "aarch64", path = "aarch64.rs")]
#[cfg_attr(not(bpf_target_arch = "aarch64"), path = "x86_64.rs")]
mod machine;

pub use machine::{RETURN_ADDRESS_BYTES, RETURN_ADDRESS_ON_STACK, Registers};

use aya_ebpf::helpers::bpf_probe_read_user;

/// The registers that a walk begins with.
#[derive(Clone, Copy)]
pub struct Caller {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub fp: u64,
    /// Where return addresses are in a register, what is in there.
    pub link: u64,
    /// The bits of a saved code address.
    pub mask: u64,
}

impl Registers {
    /// The registers that a walk begins with, at a probe.
    #[inline(always)]
    pub fn caller(&self) -> Caller {
        Caller {
            ip: self.instruction_pointer(),
            sp: self.stack_pointer(),
            fp: self.frame_pointer(),
            link: self.return_address(),
            mask: self.code_mask(),
        }
    }

    /// The registers that the caller will have when a function returns, at that function's entry. `None` where the return
    /// address cannot be read.
    #[inline(always)]
    pub fn called_from(&self) -> Option<Caller> {
        let sp = self.stack_pointer();
        let ip = if RETURN_ADDRESS_ON_STACK {
            // SAFETY: the helper checks the address; a fault is an error, not a crash.
            unsafe { bpf_probe_read_user(sp as *const u64) }.ok()?
        } else {
            self.return_address()
        };
        let mask = self.code_mask();
        Some(Caller { ip: ip & mask, sp: sp + RETURN_ADDRESS_BYTES, fp: self.frame_pointer(), link: 0, mask })
    }

    /// The same, where the return address is known: at a function's entry, or at the instruction by which it returns.
    #[inline(always)]
    pub fn called_by(&self, return_address: u64) -> Caller {
        let mask = self.code_mask();
        let sp = self.stack_pointer() + RETURN_ADDRESS_BYTES;
        Caller { ip: return_address & mask, sp, fp: self.frame_pointer(), link: 0, mask }
    }

    /// The return address, where a call has put it; 0 where it cannot be read. (Not an `Option`: the compiler would spill
    /// the value of one that has none, which the verifier refuses.)
    #[inline(always)]
    pub fn returns_to(&self) -> u64 {
        if RETURN_ADDRESS_ON_STACK {
            // SAFETY: the helper checks the address; a fault is an error, not a crash.
            unsafe { bpf_probe_read_user(self.stack_pointer() as *const u64) }.unwrap_or(0)
        } else {
            self.return_address()
        }
    }
}

//! The breakpoint at the program's entry point.
//!
//! Written through ptrace, which gives the child a private copy of that page of code; the kernel's own uprobes
//! in the same page live on in it. Only the instruction's own bytes are touched and put back, because
//! between the two moments a uprobe may have been set beside them.

use std::{
    fs::File,
    io::{self, Read},
};

use libc::{c_int, pid_t};
use nix::{
    errno::Errno,
    sys::ptrace::{self, AddressType},
    unistd::Pid,
};

/// The machine's breakpoint instruction, and how far behind its address the program counter then stands.
#[cfg(target_arch = "x86_64")]
const INSTRUCTION: (&[u8], u64) = (&[0xcc], 1); // int3
/// The machine's breakpoint instruction, and how far behind its address the program counter then stands.
#[cfg(target_arch = "aarch64")]
const INSTRUCTION: (&[u8], u64) = (&0xd420_0000_u32.to_le_bytes(), 0); // brk #0

/// A breakpoint in the child's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Breakpoint {
    address: u64,
    /// The aligned word around `address` as it was.
    original: u64,
}

impl Breakpoint {
    /// Writes a breakpoint at `address` of the stopped child.
    ///
    /// # Errors
    /// ptrace's; `EBUSY` when a breakpoint is there already: a uprobe that some other tool has set for all
    /// processes on this very instruction. The kernel would take ours for it, and the child would never be let go.
    pub(super) fn plant(pid: pid_t, address: u64) -> nix::Result<Self> {
        let original = peek(pid, address)?;
        if replace(original, address, INSTRUCTION.0) == original {
            return Err(Errno::EBUSY);
        }
        poke(pid, address, replace(original, address, INSTRUCTION.0))?;
        Ok(Self { address, original })
    }

    /// Puts the original instruction back, in the child or in a copy that `fork` has made of it.
    pub(super) fn remove(&self, pid: pid_t) -> nix::Result<()> {
        let start = (self.address % 8) as usize;
        let bytes = &self.original.to_le_bytes()[start..start + INSTRUCTION.0.len()];
        poke(pid, self.address, replace(peek(pid, self.address)?, self.address, bytes))
    }

    /// Whether the child, about to receive `signal`, has run into this breakpoint. A `SIGTRAP` that somebody
    /// sent has a code of 0 or less.
    pub(super) fn is_hit(&self, pid: pid_t, signal: c_int) -> nix::Result<bool> {
        Ok(signal == libc::SIGTRAP
            && ptrace::syscall_info(Pid::from_raw(pid))?.instruction_pointer
                == self.address.wrapping_add(INSTRUCTION.1)
            && ptrace::getsiginfo(Pid::from_raw(pid))?.si_code > 0)
    }

    /// Makes the child that has hit this breakpoint go on with the instruction at its address.
    pub(super) fn rewind(&self, pid: pid_t) -> nix::Result<()> {
        #[cfg(target_arch = "x86_64")]
        {
            let mut registers = ptrace::getregs(Pid::from_raw(pid))?;
            registers.rip = self.address;
            ptrace::setregs(Pid::from_raw(pid), registers)?;
        }
        // aarch64 leaves the program counter at the brk.
        #[cfg(target_arch = "aarch64")]
        let _ = pid;
        Ok(())
    }
}

/// The word with `bytes` at the place of `address` in it. Aligned words never cross the end of a mapping.
fn replace(word: u64, address: u64, bytes: &[u8]) -> u64 {
    let start = (address % 8) as usize;
    let mut patched = word.to_le_bytes();
    for (old, new) in patched[start..].iter_mut().zip(bytes) {
        *old = *new;
    }
    u64::from_le_bytes(patched)
}

fn peek(pid: pid_t, address: u64) -> nix::Result<u64> {
    ptrace::read(Pid::from_raw(pid), (address & !7) as AddressType).map(|word| word as u64)
}

fn poke(pid: pid_t, address: u64, word: u64) -> nix::Result<()> {
    ptrace::write(Pid::from_raw(pid), (address & !7) as AddressType, word as i64)
}

/// The entry point of the program that `pid` runs, as the kernel computed it for the loader.
///
/// # Errors
/// The auxiliary vector cannot be read, or has no entry point (a 32-bit program's cannot be read as pairs
/// of 64-bit words).
pub(super) fn entry_point(pid: pid_t) -> io::Result<u64> {
    let mut auxv = Vec::new();
    // The kernel writes about 20 pairs; 4 KiB bounds what is believed.
    File::open(format!("/proc/{pid}/auxv"))?.take(4096).read_to_end(&mut auxv)?;
    find_entry(&auxv).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "no AT_ENTRY in the auxiliary vector (a 32-bit program?)")
    })
}

fn find_entry(auxv: &[u8]) -> Option<u64> {
    auxv.as_chunks::<8>()
        .0
        .chunks_exact(2)
        .map(|pair| (u64::from_ne_bytes(pair[0]), u64::from_ne_bytes(pair[1])))
        .take_while(|(key, _)| *key != libc::AT_NULL)
        .find(|(key, _)| *key == libc::AT_ENTRY)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_instruction_is_replaced() {
        let word = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(replace(word, 0x1007, &[0xcc]).to_le_bytes(), [0, 1, 2, 3, 4, 5, 6, 0xcc]);
        assert_eq!(replace(word, 0x1004, &[9, 9, 9, 9]).to_le_bytes(), [0, 1, 2, 3, 9, 9, 9, 9]);
    }

    #[test]
    fn the_entry_point_is_found_among_pairs_only() {
        let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
        let auxv = bytes(&[6, libc::AT_ENTRY, libc::AT_ENTRY, 0x401000, 0, 0]);
        assert_eq!(find_entry(&auxv), Some(0x401000));
        assert_eq!(find_entry(&auxv[..24]), None, "cut in the middle of the pair");
        assert_eq!(find_entry(&bytes(&[0, 0, libc::AT_ENTRY, 1])), None, "behind the end");
    }
}

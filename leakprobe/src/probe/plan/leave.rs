//! Where a function returns: the return instructions of its own code and of all that it goes on in by a jump.
//!
//! A return probe replaces the return address, and an exception finds no way past that. A probe on a return instruction
//! stands in nobody's way. That takes all of them: the code is followed from the symbol along every branch, and behind
//! every call, whether it comes back or not: an instruction too many costs a trap, one too few loses calls. What cannot be
//! followed (a jump through a register, say) is an error, and then none is good enough.

use std::collections::{BTreeSet, HashSet};

use iced_x86::{Code as Opcode, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};

use super::Arch;

/// Instructions followed from one symbol; that of Debian's tcmalloc that goes through the most of them has 600.
const MAX_INSTRUCTIONS: usize = 4096;
/// Return instructions of one function; the same has 20.
const MAX_LEAVES: usize = 128;
/// Bytes of the longest instruction.
const LONGEST: usize = 15;

/// What an object has at its addresses.
pub trait Image {
    /// Where the function, or the part of one, ends that an address is in.
    fn end(&self, address: u64) -> u64;
    /// Some of the code from an address on, and no more than up to `end`: less than 15 bytes only there; none where there is
    /// no code.
    fn code(&self, address: u64, end: u64) -> Vec<u8>;
    /// The function to which the pointer at an address leads, in this object.
    fn pointer(&self, address: u64) -> Option<u64>;
    /// Whether the return of the function at this address is probed as such: one that goes on there ends there.
    fn has_return_probe(&self, address: u64) -> bool;
}

/// Addresses of the instructions by which the function at `entry` returns, ascending.
///
/// # Errors
/// Why they cannot be known, in words that follow "because".
pub fn leaves(arch: Arch, entry: u64, image: &impl Image) -> Result<Vec<u64>, String> {
    match arch {
        Arch::X86_64 => Search::new(image).run(entry),
        Arch::Aarch64 => Err("return instructions are probed on x86_64 only".to_owned()),
    }
}

struct Search<'a, I> {
    image: &'a I,
    /// Where code is still to be followed.
    open: Vec<u64>,
    /// Instructions that were.
    seen: HashSet<u64>,
    leaves: BTreeSet<u64>,
}

impl<'a, I: Image> Search<'a, I> {
    fn new(image: &'a I) -> Self {
        Self { image, open: Vec::new(), seen: HashSet::new(), leaves: BTreeSet::new() }
    }

    fn run(mut self, entry: u64) -> Result<Vec<u64>, String> {
        self.open.push(entry);
        while let Some(address) = self.open.pop() {
            self.follow(address)?;
        }
        Ok(self.leaves.into_iter().collect())
    }

    /// Follows one straight line to its end.
    fn follow(&mut self, start: u64) -> Result<(), String> {
        let end = self.image.end(start);
        let (mut address, mut code, mut at) = (start, Vec::new(), 0);
        // What follows a call that does not come back may be no code at all.
        let mut behind_call = false;
        while self.seen.insert(address) {
            if self.seen.len() > MAX_INSTRUCTIONS {
                return Err(format!("it has more than {MAX_INSTRUCTIONS} instructions"));
            }
            if code.len() - at < LONGEST {
                (code, at) = (self.image.code(address, end), 0);
            }
            let instruction = Decoder::with_ip(64, &code[at..], address, DecoderOptions::NONE).decode();
            if instruction.is_invalid() {
                return if behind_call {
                    Ok(())
                } else {
                    Err(format!("its code is not known at {address:#x}"))
                };
            }
            let bytes = &code[at..at + instruction.len()];
            match instruction.flow_control() {
                FlowControl::Next => {}
                FlowControl::Call | FlowControl::IndirectCall => behind_call = true,
                FlowControl::ConditionalBranch => self.open.push(near(&instruction)?),
                FlowControl::UnconditionalBranch => {
                    self.go_on(near(&instruction)?);
                    return Ok(());
                }
                FlowControl::IndirectBranch => {
                    let target = self.pointed_to(&instruction);
                    self.go_on(target.ok_or_else(|| leads_on("an indirect jump", address))?);
                    return Ok(());
                }
                FlowControl::Return if is_return(bytes) => {
                    self.leaves.insert(address);
                    if self.leaves.len() > MAX_LEAVES {
                        return Err(format!("it has more than {MAX_LEAVES} return instructions"));
                    }
                    return Ok(());
                }
                FlowControl::Return => return Err(leads_on("an unusual return", address)),
                // Traps, which end the process: `ud2`, `int3`.
                FlowControl::Exception | FlowControl::Interrupt => return Ok(()),
                FlowControl::XbeginXabortXend => return Err(leads_on("a transaction", address)),
            }
            at += instruction.len();
            address = instruction.next_ip();
        }
        Ok(())
    }

    fn go_on(&mut self, target: u64) {
        if !self.image.has_return_probe(target) {
            self.open.push(target);
        }
    }

    /// Where a jump goes by a pointer at a fixed address, as those of a procedure linkage table do.
    fn pointed_to(&self, instruction: &Instruction) -> Option<u64> {
        let is_fixed = instruction.op0_kind() == OpKind::Memory
            && instruction.memory_base() == Register::RIP
            && instruction.segment_prefix() == Register::None;
        is_fixed.then(|| self.image.pointer(instruction.ip_rel_memory_address())).flatten()
    }
}

fn near(instruction: &Instruction) -> Result<u64, String> {
    // Others hold 16 bits of the address, and some processors take all 64.
    let is_usual = instruction.op0_kind() == OpKind::NearBranch64 && instruction.code() != Opcode::INVALID;
    if is_usual {
        Ok(instruction.near_branch_target())
    } else {
        Err(leads_on("an unusual jump", instruction.ip()))
    }
}

fn leads_on(what: &str, address: u64) -> String {
    format!("{what} at {address:#x} cannot be followed")
}

/// Whether every kernel from 5.10 on puts a probe there and steps over it: a near return, also with what is left of older
/// processors' and of MPX's prefixes (`default_post_xol_op` in arch/x86/kernel/uprobes.c leaves the address alone that it
/// leads to).
fn is_return(bytes: &[u8]) -> bool {
    matches!(bytes, [0xc3] | [0xf2 | 0xf3, 0xc3] | [0xc2, _, _])
}

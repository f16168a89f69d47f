//! The instructions of call frame information: a function's, run to the rules of its addresses.

use leakprobe_common::{Rule, cfa, saved};

use super::{Damaged, entries::Common, expression, reader::Reader};
use crate::probe::plan::Arch;

/// States that an entry may remember at a time; compilers nest two.
const DEPTH: usize = 32;

/// How the canonical frame address is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame<'a> {
    /// From a register, plus bytes.
    Register(u64, i64),
    /// By an expression.
    Expression(&'a [u8]),
    /// Not said.
    Unset,
}

/// Where a register of the caller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place<'a> {
    /// Nothing was said of it.
    Unset,
    /// It has its value still.
    Same,
    /// It has none any more.
    Nowhere,
    /// At the canonical frame address, plus bytes.
    Offset(i64),
    /// At the address that an expression gives.
    At(&'a [u8]),
    /// In a way that no rule can say.
    Other,
}

/// What is known at one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State<'a> {
    frame: Frame<'a>,
    /// Of the frame pointer.
    fp: Place<'a>,
    /// Of the return address.
    ra: Place<'a>,
    /// Of the stack pointer: the canonical frame address, where nothing is said of it.
    sp: Place<'a>,
}

/// Numbers of registers.
#[derive(Clone, Copy)]
struct Names {
    fp: u64,
    sp: u64,
}

fn names(arch: Arch) -> Names {
    match arch {
        Arch::X86_64 => Names { fp: 6, sp: 7 },
        Arch::Aarch64 => Names { fp: 29, sp: 31 },
    }
}

/// The state that a function's instructions start from: what those of its [`Common`] say.
///
/// # Errors
/// When they are damaged.
pub fn initial<'a>(common: &Common<'a>, arch: Arch) -> Result<State<'a>, Damaged> {
    let blank = State { frame: Frame::Unset, fp: Place::Unset, ra: Place::Unset, sp: Place::Unset };
    let mut machine = Machine::new(common, arch, blank, 0);
    machine.run(common.instructions, |_, _| ())?;
    Ok(machine.state)
}

/// Runs a function's instructions from `start`, and calls `each(address, rule)` for each rule, by rising address.
///
/// # Errors
/// When they are damaged; the rules up to there have been handed out.
pub fn run<'a>(
    common: &Common<'a>,
    arch: Arch,
    initial: State<'a>,
    start: u64,
    instructions: &'a [u8],
    mut each: impl FnMut(u64, Rule),
) -> Result<(), Damaged> {
    let mut machine = Machine::new(common, arch, initial, start);
    machine.run(instructions, |address, state| each(address, rule(state, common, arch)))?;
    each(machine.address, rule(&machine.state, common, arch));
    Ok(())
}

struct Machine<'a, 'b> {
    common: &'b Common<'a>,
    names: Names,
    initial: State<'a>,
    state: State<'a>,
    kept: Vec<State<'a>>,
    address: u64,
}

impl<'a, 'b> Machine<'a, 'b> {
    fn new(common: &'b Common<'a>, arch: Arch, state: State<'a>, address: u64) -> Self {
        Self { common, names: names(arch), initial: state, state, kept: Vec::new(), address }
    }

    /// Runs instructions; `before` is called with each address that is left, and what held from it on.
    fn run(
        &mut self,
        instructions: &'a [u8],
        mut before: impl FnMut(u64, &State<'a>),
    ) -> Result<(), Damaged> {
        let mut reader = Reader::new(instructions);
        while !reader.is_empty() {
            let opcode = reader.byte()?;
            let low = u64::from(opcode & 0x3f);
            match opcode >> 6 {
                1 => self.advance(low, &mut before)?,
                2 => {
                    let offset = self.factored(reader.unsigned()?)?;
                    self.set(low, Place::Offset(offset));
                }
                3 => self.restore(low),
                _ => self.extended(opcode, &mut reader, &mut before)?,
            }
        }
        Ok(())
    }

    fn extended(
        &mut self,
        opcode: u8,
        reader: &mut Reader<'a>,
        before: &mut impl FnMut(u64, &State<'a>),
    ) -> Result<(), Damaged> {
        match opcode {
            0x00 => {}
            0x02 => self.advance(reader.number(1)?, before)?,
            0x03 => self.advance(reader.number(2)?, before)?,
            0x04 => self.advance(reader.number(4)?, before)?,
            0x05 => {
                let register = reader.unsigned()?;
                let offset = self.factored(reader.unsigned()?)?;
                self.set(register, Place::Offset(offset));
            }
            0x06 => {
                let register = reader.unsigned()?;
                self.restore(register);
            }
            0x07 => self.set_read(reader, Place::Nowhere)?,
            0x08 => self.set_read(reader, Place::Same)?,
            0x09 => {
                let (register, _other) = (reader.unsigned()?, reader.unsigned()?);
                self.set(register, Place::Other);
            }
            0x0a => {
                if self.kept.len() >= DEPTH {
                    return Err(Damaged);
                }
                self.kept.push(self.state);
            }
            0x0b => self.state = self.kept.pop().ok_or(Damaged)?,
            0x0c => {
                let register = reader.unsigned()?;
                let offset = reader.unsigned()?.try_into().map_err(|_| Damaged)?;
                self.state.frame = Frame::Register(register, offset);
            }
            0x0d => {
                let register = reader.unsigned()?;
                let Frame::Register(_, offset) = self.state.frame else { return Err(Damaged) };
                self.state.frame = Frame::Register(register, offset);
            }
            0x0e => {
                let offset = reader.unsigned()?.try_into().map_err(|_| Damaged)?;
                self.set_frame_offset(offset)?;
            }
            0x0f => self.state.frame = Frame::Expression(block(reader)?),
            0x10 => {
                let register = reader.unsigned()?;
                let expression = block(reader)?;
                self.set(register, Place::At(expression));
            }
            0x11 => {
                let register = reader.unsigned()?;
                let offset = self.signed_factored(reader.signed()?)?;
                self.set(register, Place::Offset(offset));
            }
            0x12 => {
                let register = reader.unsigned()?;
                let offset = self.signed_factored(reader.signed()?)?;
                self.state.frame = Frame::Register(register, offset);
            }
            0x13 => {
                let offset = self.signed_factored(reader.signed()?)?;
                self.set_frame_offset(offset)?;
            }
            0x14 | 0x15 => {
                let register = reader.unsigned()?;
                let is_frame = reader.unsigned()? == 0 && register == self.names.sp;
                self.set(register, if is_frame { Place::Unset } else { Place::Other });
            }
            0x16 => {
                let register = reader.unsigned()?;
                block(reader)?;
                self.set(register, Place::Other);
            }
            // aarch64: the return address is signed from here on, or no longer. The bits of it that are no address are
            // taken off wherever one is read.
            0x2d => {}
            // Bytes of arguments on the stack: nothing that unwinding needs.
            0x2e => {
                reader.unsigned()?;
            }
            0x2f => {
                let register = reader.unsigned()?;
                let offset = self.factored(reader.unsigned()?)?;
                self.set(register, Place::Offset(offset.checked_neg().ok_or(Damaged)?));
            }
            _ => return Err(Damaged),
        }
        Ok(())
    }

    fn advance(&mut self, by: u64, before: &mut impl FnMut(u64, &State<'a>)) -> Result<(), Damaged> {
        let by = by.checked_mul(self.common.code_alignment).ok_or(Damaged)?;
        let next = self.address.checked_add(by).ok_or(Damaged)?;
        if next != self.address {
            before(self.address, &self.state);
        }
        self.address = next;
        Ok(())
    }

    fn factored(&self, offset: u64) -> Result<i64, Damaged> {
        self.signed_factored(offset.try_into().map_err(|_| Damaged)?)
    }

    fn signed_factored(&self, offset: i64) -> Result<i64, Damaged> {
        offset.checked_mul(self.common.data_alignment).ok_or(Damaged)
    }

    fn set_frame_offset(&mut self, offset: i64) -> Result<(), Damaged> {
        let Frame::Register(register, _) = self.state.frame else { return Err(Damaged) };
        self.state.frame = Frame::Register(register, offset);
        Ok(())
    }

    fn set_read(&mut self, reader: &mut Reader<'a>, place: Place<'a>) -> Result<(), Damaged> {
        let register = reader.unsigned()?;
        self.set(register, place);
        Ok(())
    }

    fn set(&mut self, register: u64, place: Place<'a>) {
        if register == self.names.fp {
            self.state.fp = place;
        } else if register == self.common.return_register {
            self.state.ra = place;
        } else if register == self.names.sp {
            self.state.sp = place;
        }
    }

    fn restore(&mut self, register: u64) {
        if register == self.names.fp {
            self.state.fp = self.initial.fp;
        } else if register == self.common.return_register {
            self.state.ra = self.initial.ra;
        } else if register == self.names.sp {
            self.state.sp = self.initial.sp;
        }
    }
}

fn block<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Damaged> {
    let len = usize::try_from(reader.unsigned()?).map_err(|_| Damaged)?;
    reader.take(len)
}

/// Where a signal frame has a register (by its number in call frame information), from where it has the interrupted
/// address on, bytes: the order of `gregs` in x86_64's sys/ucontext.h, and of aarch64's `struct sigcontext`.
fn in_signal_frame(register: u64, arch: Arch) -> Option<i64> {
    let words = match (arch, register) {
        (Arch::X86_64, 8..=15) => register as i64 - 8 - 16,
        (Arch::X86_64, 0..=5) => [13, 12, 14, 11, 9, 8][register as usize] - 16,
        (Arch::Aarch64, 0..=30) => register as i64 - 32,
        _ => return None,
    };
    Some(words * 8)
}

/// Whether a function that is called hands back a register as it was (by its number in call frame information), which it
/// may have saved meanwhile: as the psABI of x86_64 and the procedure call standard of aarch64 have it.
fn is_preserved(register: u64, arch: Arch) -> bool {
    match arch {
        Arch::X86_64 => register == 3 || (12..=15).contains(&register),
        Arch::Aarch64 => (19..=28).contains(&register),
    }
}

/// What a state says, as a rule; [`Rule::default`], that nothing is known, where no rule can say it.
fn rule(state: &State<'_>, common: &Common<'_>, arch: Arch) -> Rule {
    let outermost = Rule { cfa: cfa::STACK_POINTER, ra: saved::NOWHERE, ..Rule::default() };
    if state.ra == Place::Nowhere {
        return outermost;
    }
    express(state, common, arch).unwrap_or_default()
}

fn express(state: &State<'_>, common: &Common<'_>, arch: Arch) -> Option<Rule> {
    let names = names(arch);
    let (from, cfa_offset, addend) = match state.frame {
        Frame::Register(register, offset) if register == names.sp => (cfa::STACK_POINTER, offset, 0),
        Frame::Register(register, offset) if register == names.fp => (cfa::FRAME_POINTER, offset, 0),
        Frame::Expression(bytes) => match expression::frame(bytes, names.sp, names.fp)? {
            expression::Frame::AtStackPointer(offset, addend) => (cfa::AT_STACK_POINTER, offset, addend),
            expression::Frame::AtFramePointer(offset, addend) => (cfa::AT_FRAME_POINTER, offset, addend),
            expression::Frame::LinkageTable(from) => (cfa::LINKAGE_TABLE, from, 0),
        },
        Frame::Register(register, offset) => {
            let from = if is_preserved(register, arch) { cfa::INTERRUPTED } else { cfa::UNTOUCHED };
            (from, in_signal_frame(register, arch)?, offset.try_into().ok()?)
        }
        Frame::Unset => return None,
    };
    // glibc's setcontext has its frame address in what it switches to, which is no stack.
    let is_frame_address = match state.sp {
        Place::Unset => true,
        Place::At(bytes) => match (expression::address(bytes, names.sp, names.fp)?, from, addend) {
            (expression::Address::StackPointer(at), cfa::AT_STACK_POINTER, 0)
            | (expression::Address::FramePointer(at), cfa::AT_FRAME_POINTER, 0) => at == cfa_offset,
            _ => false,
        },
        Place::Same | Place::Nowhere | Place::Offset(_) | Place::Other => false,
    };
    if !is_frame_address {
        return None;
    }
    let place = |place: Place<'_>| match place {
        Place::Unset | Place::Same => Some((saved::SAME, 0)),
        Place::Nowhere => Some((saved::NOWHERE, 0)),
        Place::Offset(offset) => Some((saved::AT_CFA, offset)),
        Place::At(bytes) => match expression::address(bytes, names.sp, names.fp)? {
            expression::Address::StackPointer(offset) => Some((saved::AT_STACK_POINTER, offset)),
            expression::Address::FramePointer(offset) => Some((saved::AT_FRAME_POINTER, offset)),
        },
        Place::Other => None,
    };
    let (fp, fp_offset) = place(state.fp)?;
    let (ra, ra_offset) = place(state.ra)?;
    // x86_64 has no register for it.
    if ra == saved::SAME && arch == Arch::X86_64 {
        return None;
    }
    Some(Rule {
        cfa_offset: cfa_offset.try_into().ok()?,
        cfa_addend: addend.try_into().ok()?,
        fp_offset: fp_offset.try_into().ok()?,
        ra_offset: ra_offset.try_into().ok()?,
        cfa: from,
        fp,
        ra,
        is_signal: common.is_signal.into(),
        ..Rule::default()
    })
}

//! The search along the straight line from a function's symbol, the same for every instruction set.
//!
//! A place on the line is as good as the symbol when
//!
//! * each argument that the probe needs is still in a register that we know. A copy of all 64 bits counts,
//!   and any other write to a register ends what it held;
//! * for a return probe, the return address is still where the kernel exchanges it, and so is the stack
//!   pointer: the kernel drops pending return probes whose recorded stack pointer is not above the current
//!   one, so one that was taken below a frame may be dropped while the function is still running;
//! * nothing leads there but the line: no jump in the function ends behind the symbol and at or before the
//!   place, which would hit the probe twice for one call, or with other values in the registers. A jump to
//!   the symbol itself (a tail call of itself) is a new call, and hits a probe at the symbol as well;
//! * nothing leaves the line before it, except where a call with a null pointer may be missed and the
//!   branch is taken for that alone. A branch that leaves for calls which can only fail would be harmless
//!   too, but nothing in the code proves it; and it is not needed, for the branch itself is executed by
//!   every call and emulated, so it is the place.
//!
//! Indirect jumps may go anywhere, and only their table would tell. They are judged not to lead back into
//! the line: its instructions are those before the function's first branch, and for a case of a `switch` to
//! be there, the function would have to begin with the loop around that `switch`, before anything is saved.
//! Tail calls through a pointer, which are what allocators have, leave the function.

use leakprobe_common::NO_REGISTER;

use super::{Execution, Placement, Request};

/// How far from the symbol to look, in bytes and in instructions. What is found later than this is mostly
/// the allocator's fast path, where a register seldom holds an argument; the recorded allocators need 48.
const LINE_BYTES: usize = 64;
const LINE_INSTRUCTIONS: usize = 16;

/// Registers are numbered below 32 on both machines, so a set of them is a word.
pub(super) type Registers = u32;

/// What the search must know about one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Length in bytes.
    pub length: usize,
    /// Whether every supported kernel emulates it.
    pub emulated: bool,
    /// Whether a probe may be moved to it, given that it is emulated.
    pub movable: bool,
    /// Where execution goes on.
    pub flow: Flow,
    /// A copy of a whole register, `(to, from)`.
    pub copy: Option<(u8, u8)>,
    /// The registers written, the target of `copy` among them.
    pub writes: Registers,
    /// What becomes of the flags.
    pub flags: Flags,
    /// Whether, after it, the return address or the stack pointer is not where a return probe needs it.
    pub displaces_return: bool,
}

/// Where execution goes on after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// At the next instruction.
    Next,
    /// There or elsewhere.
    Branch(Taken),
    /// Elsewhere, or there only after other code has run.
    Leaves,
}

/// When a conditional branch is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// When this whole register is zero.
    Zero(u8),
    /// When the flags say "equal" or "zero".
    Equal,
    /// In other cases.
    Otherwise,
}

/// What an instruction does with the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flags {
    /// Leaves them alone.
    Kept,
    /// Sets them, "equal" exactly when this whole register is zero.
    Zero(u8),
    /// Sets them, or may.
    Other,
}

/// A function's code, in terms of one instruction set.
pub(super) trait Code {
    /// The registers in which integer arguments are passed, in order.
    const ARGUMENTS: &'static [u8];
    /// What ends the search when [`Step::displaces_return`] is set, for the report.
    const DISPLACES: &'static str;

    /// The instruction at an offset; `None` when there is none, or none that is known well enough.
    fn step(&self, offset: usize) -> Option<Step>;
    /// The least offset behind the symbol at which a jump or call from anywhere in the code ends.
    fn first_target(&self) -> Option<usize>;
    /// The instruction at an offset, disassembled; says so when there is none.
    fn text(&self, offset: usize) -> String;
}

/// What is known of the registers when execution has come this far along the line.
struct State {
    /// For each argument, the registers that hold it.
    holders: Vec<Registers>,
    /// Whether the flags say "equal" exactly when the first argument is zero.
    flags_test_first: bool,
    return_displaced: bool,
}

impl State {
    fn at_symbol(arguments: &[u8]) -> Self {
        Self {
            holders: arguments.iter().map(|register| bit(*register)).collect(),
            flags_test_first: false,
            return_displaced: false,
        }
    }

    fn first_is_in(&self, register: u8) -> bool {
        self.holders.first().is_some_and(|held| held & bit(register) != 0)
    }

    /// Whether a branch is taken for a first argument of zero and for nothing else.
    fn leaves_for_null(&self, taken: Taken) -> bool {
        match taken {
            Taken::Zero(register) => self.first_is_in(register),
            Taken::Equal => self.flags_test_first,
            Taken::Otherwise => false,
        }
    }

    fn run(&mut self, step: &Step) {
        match step.flags {
            Flags::Kept => {}
            Flags::Zero(register) => self.flags_test_first = self.first_is_in(register),
            Flags::Other => self.flags_test_first = false,
        }
        for held in &mut self.holders {
            let copied = step.copy.is_some_and(|(_, from)| *held & bit(from) != 0);
            *held &= !step.writes;
            if let Some((to, _)) = step.copy.filter(|_| copied) {
                *held |= bit(to);
            }
        }
        self.return_displaced |= step.displaces_return;
    }

    /// The registers of the requested arguments, each the one it was passed in while that still holds it;
    /// or the first argument that is lost.
    fn registers(&self, passed_in: &[u8], arguments: &[u8]) -> Result<Vec<u8>, u8> {
        let register = |argument: &u8| {
            let index = usize::from(*argument);
            let (Some(original), Some(held)) = (passed_in.get(index), self.holders.get(index)) else {
                return Ok(NO_REGISTER);
            };
            match held {
                0 => Err(*argument),
                held if held & bit(*original) != 0 => Ok(*original),
                held => Ok(held.trailing_zeros() as u8),
            }
        };
        arguments.iter().map(register).collect()
    }
}

/// See [`super::place`].
pub(super) fn search<C: Code>(code: &C, request: &Request) -> Placement {
    match walk(code, request) {
        Ok(place) => place,
        Err(reason) => at_symbol(code, request, reason),
    }
}

/// Follows the line to the first good place; an error says in plain words why there is none.
fn walk<C: Code>(code: &C, request: &Request) -> Result<Placement, String> {
    let target = code.first_target();
    let mut state = State::at_symbol(C::ARGUMENTS);
    let mut offset = 0;
    // Emulated, and passed by every call; but with a place behind it that calls with NULL never reach,
    // those calls cost nothing.
    let mut null_branch = None;
    let mut last = 0;
    for _ in 0..LINE_INSTRUCTIONS {
        let stopped = |reason: String| null_branch.clone().ok_or(reason);
        if offset >= LINE_BYTES {
            break;
        }
        if target.is_some_and(|target| target <= offset) {
            return stopped(format!("a jump leads back to +{} before {SOUGHT}", target.unwrap_or(0)));
        }
        // Behind the branch for NULL a place must be as good as the branch for walking the stack, too.
        if state.return_displaced && (request.returns || null_branch.is_some()) {
            return stopped(format!("`{}` {} before {SOUGHT}", code.text(last), C::DISPLACES));
        }
        let registers = match state.registers(C::ARGUMENTS, request.arguments) {
            Ok(registers) => registers,
            Err(lost) => {
                let text = code.text(last);
                return stopped(format!("`{text}` overwrites argument {} before {SOUGHT}", lost + 1));
            }
        };
        let Some(step) = code.step(offset) else {
            return stopped(format!("`{}` at +{offset} cannot be followed to {SOUGHT}", code.text(offset)));
        };
        let place = (step.emulated && step.movable).then(|| Placement {
            offset: offset as u64,
            registers,
            execution: Execution::Emulated,
            return_displaced: state.return_displaced,
            instruction: code.text(offset),
        });
        match (step.flow, place) {
            (Flow::Branch(taken), place) if request.null_may_leave && state.leaves_for_null(taken) => {
                null_branch = null_branch.or(place);
            }
            (_, Some(place)) => return Ok(place),
            (Flow::Next, None) => {}
            (Flow::Branch(_) | Flow::Leaves, None) => {
                return stopped(format!("`{}` leaves before {SOUGHT}", code.text(offset)));
            }
        }
        state.run(&step);
        last = offset;
        offset += step.length;
    }
    null_branch.ok_or_else(|| format!("its first {offset} bytes hold no {}", &SOUGHT["any ".len()..]))
}

const SOUGHT: &str = "any instruction that the kernel emulates";

/// The probe at the symbol; `reason` says why, where it is single-stepped there.
pub(super) fn at_symbol<C: Code>(code: &C, request: &Request, reason: String) -> Placement {
    let emulated = code.step(0).is_some_and(|step| step.emulated);
    let passed_in = |argument: &u8| C::ARGUMENTS.get(usize::from(*argument)).copied().unwrap_or(NO_REGISTER);
    Placement {
        offset: 0,
        registers: request.arguments.iter().map(passed_in).collect(),
        execution: if emulated { Execution::Emulated } else { Execution::SingleStepped(reason) },
        return_displaced: false,
        instruction: code.text(0),
    }
}

/// The set of one register.
pub(super) fn bit(register: u8) -> Registers {
    1u32.checked_shl(u32::from(register)).unwrap_or(0)
}

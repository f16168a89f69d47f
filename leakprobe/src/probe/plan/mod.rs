//! Where inside an allocator function to put a probe: a pure function from code bytes to a [`Placement`].
//!
//! The kernel emulates some instructions under a probe, in the trap itself, and single-steps all others out
//! of line, which takes a second trap: 2 to 3 times slower on bare metal, 30 times and more in a virtual
//! machine. So [`place`] looks a few instructions into the function for one that is emulated and where a
//! probe still sees what it would have seen at the symbol. The search itself is in [`line`]; what depends on
//! the instruction set, in [`x86_64`] and [`aarch64`].

mod aarch64;
pub mod leave;
mod line;
mod x86_64;

#[cfg(test)]
mod tests;

/// Instruction set of the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

/// A function that is to be probed, and what its probe must be able to read.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Instruction set of `code`.
    pub arch: Arch,
    /// The function's bytes from its symbol on; as many as are known to belong to it, at most a few KiB.
    /// A jump that lies beyond them is not seen, so leave none out.
    pub code: &'a [u8],
    /// Virtual address of `code[0]`.
    pub address: u64,
    /// Which integer arguments the probe needs, counted from 0: at most 5 on x86_64, 7 on aarch64.
    pub arguments: &'a [u8],
    /// Whether a return probe will sit at the same place, which needs the return address where the
    /// architecture puts it at a call: at the stack pointer on x86_64, in x30 on aarch64.
    pub returns: bool,
    /// Whether a call with a null first argument may be missed without harm (`free(NULL)`).
    pub null_may_leave: bool,
}

/// How the kernel runs the probed instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Execution {
    /// In the trap itself.
    Emulated,
    /// Out of line, with a second trap, 2 to 30 times slower; holds why no better place was found.
    SingleStepped(String),
}

/// Where to put the probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Bytes from the symbol.
    pub offset: u64,
    /// The machine's numbers of the registers that hold the requested arguments there, in order of the
    /// request (see `leakprobe_common::Cookie` for the numbering). `leakprobe_common::NO_REGISTER` for an
    /// argument that is not passed in a register.
    pub registers: Vec<u8>,
    /// How the kernel will run the probed instruction.
    pub execution: Execution,
    /// Whether the return address and the stack pointer are not any more where a call has put them.
    pub return_displaced: bool,
    /// The probed instruction, disassembled, for the verbose report.
    pub instruction: String,
}

/// Chooses the place of a probe: the first instruction on the straight line from the symbol that every
/// kernel since 5.10 emulates and that is as good as the symbol (the rules are in [`line`]),
/// or else the symbol itself. Any bytes will do: what cannot be decoded ends the search.
pub fn place(request: &Request) -> Placement {
    match request.arch {
        Arch::X86_64 => line::search(&x86_64::Code::new(request.code, request.address), request),
        Arch::Aarch64 => line::search(&aarch64::Code::new(request.code, request.address), request),
    }
}

/// The probe at the symbol, whatever that costs: for comparison.
pub fn at_symbol(request: &Request) -> Placement {
    let reason = || "it was asked for at the symbol".to_owned();
    match request.arch {
        Arch::X86_64 => line::at_symbol(&x86_64::Code::new(request.code, request.address), request, reason()),
        Arch::Aarch64 => {
            line::at_symbol(&aarch64::Code::new(request.code, request.address), request, reason())
        }
    }
}

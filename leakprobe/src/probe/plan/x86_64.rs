//! x86_64: what the kernel emulates, and what each instruction does to registers, flags and stack.

use iced_x86::{
    Code as Opcode, Decoder, DecoderOptions, FlowControl, Formatter, GasFormatter, Instruction,
    InstructionInfoFactory, OpAccess, OpKind, Register,
};

use super::line::{self, Flags, Flow, Registers, Step, Taken, bit};

/// A function's code.
pub(super) struct Code<'a> {
    bytes: &'a [u8],
    address: u64,
}

impl<'a> Code<'a> {
    pub(super) fn new(bytes: &'a [u8], address: u64) -> Self {
        Self { bytes, address }
    }

    /// The instruction at an offset and its bytes, if it is valid and lies in the code as a whole.
    fn decode(&self, offset: usize) -> Option<(Instruction, &'a [u8])> {
        let rest = self.bytes.get(offset..)?;
        let address = self.address.wrapping_add(offset as u64);
        let instruction = Decoder::with_ip(64, rest, address, DecoderOptions::NONE).decode();
        let bytes = rest.get(..instruction.len())?;
        (!instruction.is_invalid() && !bytes.is_empty()).then_some((instruction, bytes))
    }
}

impl line::Code for Code<'_> {
    /// rdi, rsi, rdx, rcx, r8, r9 (System V psABI, 3.2.3).
    const ARGUMENTS: &'static [u8] = &[7, 6, 2, 1, 8, 9];
    const DISPLACES: &'static str = "moves the stack pointer";

    fn step(&self, offset: usize) -> Option<Step> {
        let (instruction, bytes) = self.decode(offset)?;
        let writes = written(&instruction);
        Some(Step {
            length: bytes.len(),
            emulated: is_emulated(bytes),
            // The kernel's emulation of a call pushes the return address on the stack, but not on the
            // shadow stack, where the target has one: its return would be fatal (so in the source of 5.10, and
            // still in that of 7.0). At the symbol a call is as it is; no probe is moved to one.
            movable: instruction.flow_control() != FlowControl::Call,
            flow: flow(&instruction),
            copy: copy(&instruction),
            writes,
            flags: flags(&instruction),
            displaces_return: writes & bit(number(Register::RSP)) != 0,
        })
    }

    fn first_target(&self) -> Option<usize> {
        let mut first = None;
        let mut offset = 0;
        while offset < self.bytes.len() {
            // Past bytes that are no instruction (a jump table, say) decoding falls into step again within
            // a few instructions, wherever it starts.
            let Some((instruction, bytes)) = self.decode(offset) else {
                offset += 1;
                continue;
            };
            offset += bytes.len();
            if is_near(instruction.op0_kind()) {
                let target = instruction.near_branch_target().wrapping_sub(self.address);
                let inside =
                    usize::try_from(target).ok().filter(|target| (1..self.bytes.len()).contains(target));
                first = first.into_iter().chain(inside).min();
            }
        }
        first
    }

    fn text(&self, offset: usize) -> String {
        let Some((instruction, _)) = self.decode(offset) else {
            return no_instruction(self.bytes.get(offset..).unwrap_or_default());
        };
        let mut formatter = GasFormatter::new();
        formatter.options_mut().set_branch_leading_zeros(false);
        formatter.options_mut().set_uppercase_hex(false);
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        text
    }
}

fn no_instruction(bytes: &[u8]) -> String {
    match bytes.first() {
        Some(byte) => format!("(no instruction: {byte:#04x})"),
        None => "(end of the code)".to_owned(),
    }
}

/// Whether every kernel from 5.10 on emulates it: push of a register, jmp, jcc, call and nop, each without
/// any prefix but the 0x41 that pushes r8 to r15 (`push_setup_xol_ops` and `branch_setup_xol_ops` in
/// arch/x86/kernel/uprobes.c). Prefixes make a difference there: a push with another one is stepped, a
/// branch with 0x66 cannot be probed at all, nor can 66 90 on older kernels, while 41 90, which is no nop, is
/// emulated as one. Branches with 0xf2 or 0xf3 would be emulated, but stand in no such place. Longer nops
/// are emulated from 6.18 on.
fn is_emulated(bytes: &[u8]) -> bool {
    let push = matches!(bytes, [0x50..=0x57] | [0x41, 0x50..=0x57]);
    let jmp = matches!(bytes, [0xeb, _] | [0xe9, _, _, _, _]);
    let jcc = matches!(bytes, [0x70..=0x7f, _] | [0x0f, 0x80..=0x8f, _, _, _, _]);
    let call = matches!(bytes, [0xe8, _, _, _, _]);
    push || jmp || jcc || call || bytes == [0x90]
}

fn flow(instruction: &Instruction) -> Flow {
    match instruction.flow_control() {
        FlowControl::Next => Flow::Next,
        FlowControl::ConditionalBranch => match instruction.code() {
            Opcode::Je_rel8_64 | Opcode::Je_rel32_64 => Flow::Branch(Taken::Equal),
            _ => Flow::Branch(Taken::Otherwise),
        },
        // System calls and traps, too: what the kernel or a handler changes is not seen here.
        _ => Flow::Leaves,
    }
}

/// All 64 bits of one register to another. `mov %edi,%edi` is none: it clears the upper half.
fn copy(instruction: &Instruction) -> Option<(u8, u8)> {
    let registers = instruction.op0_kind() == OpKind::Register && instruction.op1_kind() == OpKind::Register;
    let copies = matches!(instruction.code(), Opcode::Mov_rm64_r64 | Opcode::Mov_r64_rm64) && registers;
    copies.then(|| (number(instruction.op0_register()), number(instruction.op1_register())))
}

fn flags(instruction: &Instruction) -> Flags {
    let whole = instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_gpr64();
    let zero = match instruction.code() {
        Opcode::Test_rm64_r64 => whole && instruction.op0_register() == instruction.op1_register(),
        Opcode::Cmp_rm64_imm8 | Opcode::Cmp_rm64_imm32 | Opcode::Cmp_RAX_imm32 => {
            whole && instruction.immediate(1) == 0
        }
        _ => false,
    };
    if zero {
        Flags::Zero(number(instruction.op0_register()))
    } else if instruction.rflags_modified() == 0 {
        Flags::Kept
    } else {
        Flags::Other
    }
}

/// The general registers that an instruction writes, in whole or in part, always or sometimes.
fn written(instruction: &Instruction) -> Registers {
    let mut factory = InstructionInfoFactory::new();
    let used = factory.info(instruction).used_registers();
    let writes = used
        .iter()
        .filter(|used| !matches!(used.access(), OpAccess::None | OpAccess::Read | OpAccess::CondRead));
    writes.filter(|used| used.register().is_gpr()).fold(0, |set, used| set | bit(number(used.register())))
}

/// The machine's number of a general register, of any width.
fn number(register: Register) -> u8 {
    register.full_register().number() as u8
}

fn is_near(kind: OpKind) -> bool {
    matches!(kind, OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
}

//! aarch64: what the kernel simulates, and what each instruction does to registers and flags.
//!
//! No whole decoder: a table of the instructions that stand at the beginning of functions. Any other one
//! ends the line, and so do, on purpose, exclusive loads and stores: a trap between them clears the
//! reservation, and a program that tries again would never get through.
//!
//! The return address is in x30. A return probe exchanges it *there*, so a copy that the function has
//! already stored, which is the one it will return to, would never be seen; and once `paciasp` has signed
//! it, the exchanged one would not pass the check at the end. So whatever reads or writes x30 displaces it.

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

    fn word(&self, offset: usize) -> Option<u32> {
        let bytes = self.bytes.get(offset..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    }
}

/// What an instruction is, in terms of the search.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing but its registers matters.
    Plain,
    /// As `Plain`, and sets the flags.
    SetsFlags,
    /// `subs rd, rn, #0`, of which `cmp rn, #0` is one.
    ComparesZero,
    /// `mov xd, xm`.
    Copy,
    /// Signs or checks x30 without naming it.
    Link,
    /// `adr`, `adrp`: simulated.
    Address,
    /// `b`, `bl`: simulated, with a 26-bit target.
    Jump,
    /// `b.cond`, `cbz`, `cbnz`: simulated, with a 19-bit target.
    Branch,
    /// `tbz`, `tbnz`: simulated, with a 14-bit target.
    BitBranch,
    /// `br`, `blr`, `ret`: simulated.
    Indirect,
}

/// One row of the table: the instructions whose bits under `mask` are `bits`.
struct Row {
    mask: u32,
    bits: u32,
    name: &'static str,
    kind: Kind,
    /// The register fields it has.
    fields: u8,
    /// Those of them that it writes.
    writes: u8,
}

/// Fields: D in bits 0-4, N in 5-9, A in 10-14, M in 16-20, each register 31 being zero except where SP says
/// that it is the stack pointer. A base address in N always is.
const D: u8 = 1;
const N: u8 = 2;
const A: u8 = 4;
const M: u8 = 8;
const SP: u8 = 16;

const fn row(mask: u32, bits: u32, name: &'static str, kind: Kind, fields: u8, writes: u8) -> Row {
    Row { mask, bits, name, kind, fields, writes }
}

/// The first row that fits counts. Encodings: Arm Architecture Reference Manual, C4.1. The simulated ones
/// are those of `arm_probe_decode_insn` in arch/arm64/kernel/probes/decode-insn.c, the same from 5.10 on but
/// for two: nop, which is simulated from 6.13 on only, and literal loads, which must never be probed:
/// their simulation read the target's memory by a kernel pointer, and later kernels refuse the probe.
#[rustfmt::skip]
static TABLE: &[Row] = &[
    row(0xfc00_0000, 0x1400_0000, "b", Kind::Jump, 0, 0),
    row(0xfc00_0000, 0x9400_0000, "bl", Kind::Jump, 0, 0),
    row(0xff00_0010, 0x5400_0000, "b.", Kind::Branch, 0, 0),
    row(0x7f00_0000, 0x3400_0000, "cbz", Kind::Branch, D, 0),
    row(0x7f00_0000, 0x3500_0000, "cbnz", Kind::Branch, D, 0),
    row(0x7f00_0000, 0x3600_0000, "tbz", Kind::BitBranch, D, 0),
    row(0x7f00_0000, 0x3700_0000, "tbnz", Kind::BitBranch, D, 0),
    row(0xffff_fc1f, 0xd61f_0000, "br", Kind::Indirect, N, 0),
    row(0xffff_fc1f, 0xd63f_0000, "blr", Kind::Indirect, N, 0),
    row(0xffff_fc1f, 0xd65f_0000, "ret", Kind::Indirect, N, 0),
    row(0x9f00_0000, 0x1000_0000, "adr", Kind::Address, D, D),
    row(0x9f00_0000, 0x9000_0000, "adrp", Kind::Address, D, D),
    // Hints and system registers.
    row(0xffff_ffff, 0xd503_201f, "nop", Kind::Plain, 0, 0),
    row(0xffff_ff3f, 0xd503_241f, "bti", Kind::Plain, 0, 0),
    row(0xffff_ffbf, 0xd503_233f, "pacsp", Kind::Link, 0, 0),
    row(0xffff_ffe0, 0xd53b_d040, "mrs tpidr_el0", Kind::Plain, D, D),
    // Data processing with an immediate.
    row(0xffff_fc00, 0xf100_0000, "subs", Kind::ComparesZero, D | N, D),
    row(0x3f80_0000, 0x3100_0000, "adds/subs", Kind::SetsFlags, D | N, D),
    row(0x3f80_0000, 0x1100_0000, "add/sub", Kind::Plain, D | N, D | SP),
    row(0x7f80_0000, 0x7200_0000, "ands", Kind::SetsFlags, D | N, D),
    row(0x1f80_0000, 0x1200_0000, "and/orr/eor", Kind::Plain, D | N, D | SP),
    row(0x1f80_0000, 0x1280_0000, "movz/movn/movk", Kind::Plain, D, D),
    row(0x1f80_0000, 0x1300_0000, "bfm", Kind::Plain, D | N, D),
    row(0x1f80_0000, 0x1380_0000, "extr", Kind::Plain, D | N | M, D),
    // Data processing with registers.
    row(0xffe0_ffe0, 0xaa00_03e0, "mov", Kind::Copy, D | M, D),
    row(0x7f00_0000, 0x6a00_0000, "ands/bics", Kind::SetsFlags, D | N | M, D),
    row(0x1f00_0000, 0x0a00_0000, "and/orr/eor", Kind::Plain, D | N | M, D),
    row(0x3f00_0000, 0x2b00_0000, "adds/subs", Kind::SetsFlags, D | N | M, D),
    row(0x1f00_0000, 0x0b00_0000, "add/sub", Kind::Plain, D | N | M, D | SP),
    row(0x1fe0_0000, 0x1a40_0000, "ccmp/ccmn", Kind::SetsFlags, N | M, 0),
    row(0x1fe0_0000, 0x1a80_0000, "csel", Kind::Plain, D | N | M, D),
    row(0x1f00_0000, 0x1b00_0000, "madd/umulh", Kind::Plain, D | N | M | A, D),
    row(0x7fe0_0000, 0x1ac0_0000, "udiv/lslv", Kind::Plain, D | N | M, D),
    row(0x7fe0_0000, 0x5ac0_0000, "clz/rbit", Kind::Plain, D | N, D),
    // Pairs: without and with write-back; then of vector registers.
    row(0x3ec0_0000, 0x2800_0000, "stp", Kind::Plain, D | N | A, 0),
    row(0x3ec0_0000, 0x2840_0000, "ldp", Kind::Plain, D | N | A, D | A),
    row(0x3ec0_0000, 0x2880_0000, "stp", Kind::Plain, D | N | A, N),
    row(0x3ec0_0000, 0x28c0_0000, "ldp", Kind::Plain, D | N | A, D | A | N),
    row(0x3e80_0000, 0x2c00_0000, "stp/ldp", Kind::Plain, N, 0),
    row(0x3e80_0000, 0x2c80_0000, "stp/ldp", Kind::Plain, N, N),
    // Single registers: scaled offset, other offset, write-back, register offset; then vector registers.
    row(0x3fc0_0000, 0x3900_0000, "str", Kind::Plain, D | N, 0),
    row(0x3f00_0000, 0x3900_0000, "ldr", Kind::Plain, D | N, D),
    row(0x3fe0_0400, 0x3800_0000, "str", Kind::Plain, D | N, 0),
    row(0x3f20_0400, 0x3800_0000, "ldr", Kind::Plain, D | N, D),
    row(0x3fe0_0400, 0x3800_0400, "str", Kind::Plain, D | N, N),
    row(0x3f20_0400, 0x3800_0400, "ldr", Kind::Plain, D | N, D | N),
    row(0x3fe0_0c00, 0x3820_0800, "str", Kind::Plain, D | N | M, 0),
    row(0x3f20_0c00, 0x3820_0800, "ldr", Kind::Plain, D | N | M, D),
    row(0x3f00_0000, 0x3d00_0000, "str/ldr", Kind::Plain, N, 0),
    row(0x3f20_0400, 0x3c00_0000, "str/ldr", Kind::Plain, N, 0),
    row(0x3f20_0400, 0x3c00_0400, "str/ldr", Kind::Plain, N, N),
    row(0x3f20_0c00, 0x3c20_0800, "str/ldr", Kind::Plain, N | M, 0),
    row(0x3f00_0000, 0x1800_0000, "ldr literal", Kind::Plain, D, D),
];

/// Number of the link register, and the bit that stands for the stack pointer: 31, which names no register
/// that holds a value.
const X30: u8 = 30;
const STACK: u8 = 31;

impl Row {
    fn of(word: u32) -> Option<&'static Row> {
        TABLE.iter().find(|row| word & row.mask == row.bits)
    }

    fn registers(word: u32, fields: u8) -> Registers {
        let each = [(D, 0), (N, 5), (A, 10), (M, 16)];
        let named = each.into_iter().filter(|(field, _)| fields & field != 0);
        named.fold(0, |set, (_, shift)| set | bit((word >> shift & 31) as u8))
    }

    fn is_simulated(&self) -> bool {
        match self.kind {
            Kind::Address | Kind::Jump | Kind::Branch | Kind::BitBranch | Kind::Indirect => true,
            Kind::Plain | Kind::SetsFlags | Kind::ComparesZero | Kind::Copy | Kind::Link => false,
        }
    }

    /// The registers written; the stack pointer where register 31 stands for it.
    fn written(&self, word: u32) -> Registers {
        let base = Self::registers(word, self.writes & N);
        let others = Self::registers(word, self.writes & !N);
        base | if self.writes & SP == 0 { others & !bit(STACK) } else { others }
    }

    /// A copy to register 31 goes nowhere.
    fn copy(&self, word: u32) -> Option<(u8, u8)> {
        let (to, from) = ((word & 31) as u8, (word >> 16 & 31) as u8);
        (self.kind == Kind::Copy && to != STACK).then_some((to, from))
    }

    fn flow(&self, word: u32) -> Flow {
        match self.kind {
            Kind::Jump | Kind::Indirect => Flow::Leaves,
            Kind::BitBranch => Flow::Branch(Taken::Otherwise),
            // b.eq; and cbz of all 64 bits.
            Kind::Branch if word & 0xff00_001f == 0x5400_0000 => Flow::Branch(Taken::Equal),
            Kind::Branch if word & 0xff00_0000 == 0xb400_0000 => Flow::Branch(Taken::Zero((word & 31) as u8)),
            Kind::Branch => Flow::Branch(Taken::Otherwise),
            Kind::Plain | Kind::SetsFlags | Kind::ComparesZero | Kind::Copy | Kind::Link | Kind::Address => {
                Flow::Next
            }
        }
    }

    /// How far from the instruction its target is, in bytes.
    fn distance(&self, word: u32) -> Option<i32> {
        let (shift, width) = match self.kind {
            Kind::Jump => (0, 26),
            Kind::Branch => (5, 19),
            Kind::BitBranch => (5, 14),
            _ => return None,
        };
        // The field's highest bit is its sign.
        let field = (word >> shift) << (32 - width);
        Some((field as i32) >> (32 - width) << 2)
    }
}

impl line::Code for Code<'_> {
    /// x0 to x7 (AAPCS64, 6.8.2).
    const ARGUMENTS: &'static [u8] = &[0, 1, 2, 3, 4, 5, 6, 7];
    const DISPLACES: &'static str = "saves the return address or moves the stack pointer";

    fn step(&self, offset: usize) -> Option<Step> {
        let word = self.word(offset)?;
        let row = Row::of(word)?;
        let writes = row.written(word);
        Some(Step {
            length: 4,
            emulated: row.is_simulated(),
            movable: true,
            flow: row.flow(word),
            copy: row.copy(word),
            writes,
            flags: match row.kind {
                Kind::ComparesZero => Flags::Zero((word >> 5 & 31) as u8),
                Kind::SetsFlags => Flags::Other,
                _ => Flags::Kept,
            },
            displaces_return: row.kind == Kind::Link
                || Row::registers(word, row.fields) & bit(X30) != 0
                || writes & bit(STACK) != 0,
        })
    }

    fn first_target(&self) -> Option<usize> {
        let targets = (0..self.bytes.len()).step_by(4).filter_map(|offset| {
            let word = self.word(offset)?;
            let target = offset.checked_add_signed(Row::of(word)?.distance(word)? as isize)?;
            (1..self.bytes.len()).contains(&target).then_some(target)
        });
        targets.min()
    }

    fn text(&self, offset: usize) -> String {
        let Some(word) = self.word(offset) else {
            return "(end of the code)".to_owned();
        };
        let Some(row) = Row::of(word) else {
            return format!(".inst {word:#010x}");
        };
        let name = row.name;
        let width = if word >> 31 == 0 { 'w' } else { 'x' };
        let d = word & 31;
        let here = self.address.wrapping_add(offset as u64);
        let target = here.wrapping_add_signed(i64::from(row.distance(word).unwrap_or(0)));
        match row.kind {
            Kind::Jump => format!("{name} {target:#x}"),
            Kind::Branch if row.fields == 0 => {
                format!("{name}{} {target:#x}", CONDITIONS[(word & 15) as usize])
            }
            Kind::Branch => format!("{name} {width}{d}, {target:#x}"),
            Kind::BitBranch => {
                format!("{name} {width}{d}, #{}, {target:#x}", (word >> 26 & 32) | (word >> 19 & 31))
            }
            Kind::Indirect => format!("{name} x{}", word >> 5 & 31),
            Kind::Address => {
                let distance = ((word >> 5 & 0x7_ffff) << 2 | word >> 29 & 3) as i32;
                let distance = i64::from(distance << 11 >> 11);
                let page = word >> 31 != 0;
                let target = match page {
                    true => (here & !0xfff).wrapping_add_signed(distance << 12),
                    false => here.wrapping_add_signed(distance),
                };
                format!("{name} x{d}, {target:#x}")
            }
            _ => format!("{name} ({word:#010x})"),
        }
    }
}

const CONDITIONS: [&str; 16] =
    ["eq", "ne", "hs", "lo", "mi", "pl", "vs", "vc", "hi", "ls", "ge", "lt", "gt", "le", "al", "nv"];

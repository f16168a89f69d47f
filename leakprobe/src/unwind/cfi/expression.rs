//! The few expressions that occur in call frame information, told by their form.

use super::reader::Reader;

const DW_OP_DEREF: u8 = 0x06;
const DW_OP_AND: u8 = 0x1a;
const DW_OP_PLUS: u8 = 0x22;
const DW_OP_PLUS_UCONST: u8 = 0x23;
const DW_OP_SHL: u8 = 0x24;
const DW_OP_GE: u8 = 0x2a;
const DW_OP_LIT0: u8 = 0x30;
const DW_OP_LIT31: u8 = 0x4f;
const DW_OP_BREG0: u8 = 0x70;
const DW_OP_BREG31: u8 = 0x8f;
const DW_OP_BREGX: u8 = 0x92;

/// What an expression for the canonical frame address gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The word at the stack pointer plus bytes, and bytes added to that word.
    AtStackPointer(i64, u64),
    /// The same at the frame pointer.
    AtFramePointer(i64, u64),
    /// That of an entry of a procedure linkage table, which has pushed one more word from this byte of each 16 on.
    LinkageTable(i64),
}

/// What an expression for a register's place gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// The stack pointer plus bytes.
    StackPointer(i64),
    /// The frame pointer plus bytes.
    FramePointer(i64),
}

/// Reads an expression for the canonical frame address; `None` for a form that is not known.
pub fn frame(bytes: &[u8], sp: u64, fp: u64) -> Option<Frame> {
    let mut reader = Reader::new(bytes);
    let (register, offset) = base(&mut reader)?;
    let rest = &bytes[reader.position()..];
    if let [DW_OP_DEREF, more @ ..] = rest {
        let addend = addend(more)?;
        return match register {
            it if it == sp => Some(Frame::AtStackPointer(offset, addend)),
            it if it == fp => Some(Frame::AtFramePointer(offset, addend)),
            _ => None,
        };
    }
    linkage_table(rest).filter(|_| (register, offset) == (sp, 8)).map(Frame::LinkageTable)
}

/// What is added to a word: nothing, or a number, as assembly functions write that keep their caller's stack pointer (those
/// of cryptographic libraries).
fn addend(rest: &[u8]) -> Option<u64> {
    let mut reader = Reader::new(rest);
    if reader.is_empty() {
        return Some(0);
    }
    let number = (reader.byte().ok()? == DW_OP_PLUS_UCONST).then(|| reader.unsigned().ok())??;
    reader.is_empty().then_some(number)
}

/// `(ip & 15) >= N) << 3` added: what x86_64 linkers write for .plt.
fn linkage_table(rest: &[u8]) -> Option<i64> {
    const IP: u8 = DW_OP_BREG0 + 16;
    let [IP, 0, mask, DW_OP_AND, from, DW_OP_GE, shift, DW_OP_SHL, DW_OP_PLUS] = *rest else { return None };
    let from = literal(from)?;
    (literal(mask)? == 15 && literal(shift)? == 3 && from < 16).then_some(from)
}

fn literal(opcode: u8) -> Option<i64> {
    (DW_OP_LIT0..=DW_OP_LIT31).contains(&opcode).then(|| i64::from(opcode - DW_OP_LIT0))
}

/// Reads an expression for a register's place; `None` for a form that is not known.
pub fn address(bytes: &[u8], sp: u64, fp: u64) -> Option<Address> {
    let mut reader = Reader::new(bytes);
    let (register, offset) = base(&mut reader)?;
    match register {
        _ if !reader.is_empty() => None,
        it if it == sp => Some(Address::StackPointer(offset)),
        it if it == fp => Some(Address::FramePointer(offset)),
        _ => None,
    }
}

/// A register plus bytes, which all of them begin with.
fn base(reader: &mut Reader<'_>) -> Option<(u64, i64)> {
    let register = match reader.byte().ok()? {
        opcode @ DW_OP_BREG0..=DW_OP_BREG31 => u64::from(opcode - DW_OP_BREG0),
        DW_OP_BREGX => reader.unsigned().ok()?,
        _ => return None,
    };
    Some((register, reader.signed().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_that_occur_are_known_and_no_others() {
        // glibc's __restore_rt, a function that aligns its stack, and .plt.
        assert_eq!(frame(&[0x77, 0xa0, 0x01, 0x06], 7, 6), Some(Frame::AtStackPointer(160, 0)));
        assert_eq!(frame(&[0x76, 0x78, 0x06], 7, 6), Some(Frame::AtFramePointer(-8, 0)));
        // OpenSSL's hash functions.
        let kept = [0x77, 0x98, 0x01, 0x06, 0x23, 0x08];
        assert_eq!(frame(&kept, 7, 6), Some(Frame::AtStackPointer(152, 8)));
        assert_eq!(frame(&kept[..5], 7, 6), None);
        assert_eq!(frame(&[&kept[..], &[0x06]].concat(), 7, 6), None);
        let plt = [0x77, 0x08, 0x80, 0x00, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22];
        assert_eq!(frame(&plt, 7, 6), Some(Frame::LinkageTable(11)));
        for len in 0..plt.len() {
            assert_eq!(frame(&plt[..len], 7, 6), None, "{len}");
        }
        assert_eq!(frame(&[0x73, 0x00, 0x06], 7, 6), None, "another register");
        assert_eq!(address(&[0x76, 0x00], 7, 6), Some(Address::FramePointer(0)));
        assert_eq!(address(&[0x92, 0x1f, 0x08], 31, 29), Some(Address::StackPointer(8)));
        assert_eq!(address(&[0x76, 0x00, 0x06], 7, 6), None);
    }
}

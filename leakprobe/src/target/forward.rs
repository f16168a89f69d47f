//! Functions that are nothing but a jump to another one: `operator delete[]` to `free`, most often.

use crate::probe::plan::Arch;

/// Where a function goes on whose first instruction is an unconditional jump, as an address; `None` for others. `code`
/// begins at `address`.
pub fn target(arch: Arch, address: u64, code: &[u8]) -> Option<u64> {
    match arch {
        Arch::X86_64 => {
            let (code, address) = after(code, address, ENDBR64);
            // bnd, which means nothing any more.
            let (code, address) = after(code, address, &[0xf2]);
            match code {
                [0xe9, a, b, c, d, ..] => Some(
                    address.wrapping_add(5).wrapping_add_signed(i32::from_le_bytes([*a, *b, *c, *d]).into()),
                ),
                [0xeb, near, ..] => {
                    Some(address.wrapping_add(2).wrapping_add_signed(near.cast_signed().into()))
                }
                _ => None,
            }
        }
        Arch::Aarch64 => {
            let (code, address) = after(code, address, BTI_C);
            let instruction = u32::from_le_bytes(code.get(..4)?.try_into().ok()?);
            // b: 26 bits, counted in instructions.
            let words = i64::from(instruction.cast_signed() << 6 >> 6);
            (instruction >> 26 == 0b00_0101).then(|| address.wrapping_add_signed(words * 4))
        }
    }
}

/// Whether code is that of an entry of a procedure linkage table: it goes on in a function that the dynamic linker has
/// found by its name.
pub fn is_linkage_table(arch: Arch, code: &[u8]) -> bool {
    match arch {
        Arch::X86_64 => {
            let (code, _) = after(code, 0, ENDBR64);
            let (code, _) = after(code, 0, &[0xf2]);
            // jmp *slot(%rip)
            code.starts_with(&[0xff, 0x25])
        }
        Arch::Aarch64 => {
            let (code, _) = after(code, 0, BTI_C);
            // adrp x16, slot
            let first = code.get(..4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes);
            first & 0x9f00_001f == 0x9000_0010
        }
    }
}

const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
const BTI_C: &[u8] = &[0x5f, 0x24, 0x03, 0xd5];

/// Code behind an instruction that it may begin with, and its address.
fn after<'a>(code: &'a [u8], address: u64, first: &[u8]) -> (&'a [u8], u64) {
    match code.strip_prefix(first) {
        Some(rest) => (rest, address + first.len() as u64),
        None => (code, address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_jump_is_followed() {
        let x86 = |code: &[u8]| target(Arch::X86_64, 0x1000, code);
        assert_eq!(x86(&[0xe9, 0xfb, 0xff, 0xff, 0xff]), Some(0x1000));
        assert_eq!(x86(&[0xf3, 0x0f, 0x1e, 0xfa, 0xe9, 0x07, 0x01, 0, 0]), Some(0x1110));
        assert_eq!(x86(&[0xf3, 0x0f, 0x1e, 0xfa, 0xf2, 0xe9, 0, 0, 0, 0]), Some(0x100a));
        assert_eq!(x86(&[0xeb, 0xfe, 0x90]), Some(0x1000));
        assert_eq!(x86(&[0x48, 0x85, 0xff, 0xe9, 0, 0, 0, 0]), None);
        assert_eq!(x86(&[0xe9, 0, 0]), None);
        let arm = |words: &[u32]| {
            let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            target(Arch::Aarch64, 0x1000, &code)
        };
        assert_eq!(arm(&[0x1400_0002]), Some(0x1008));
        assert_eq!(arm(&[0xd503_245f, 0x17ff_ffff]), Some(0x1000));
        assert_eq!(arm(&[0x9400_0002]), None, "a call");
        assert_eq!(arm(&[]), None);
    }

    #[test]
    fn entries_of_linkage_tables_are_told_by_their_jump() {
        assert!(is_linkage_table(Arch::X86_64, &[0xff, 0x25, 1, 2, 3, 4]));
        assert!(is_linkage_table(Arch::X86_64, &[0xf3, 0x0f, 0x1e, 0xfa, 0xf2, 0xff, 0x25, 1, 2, 3, 4]));
        assert!(!is_linkage_table(Arch::X86_64, &[0x55, 0xff, 0x25]));
        assert!(is_linkage_table(Arch::Aarch64, &0xb000_00b0_u32.to_le_bytes()));
        assert!(!is_linkage_table(Arch::Aarch64, &0xb000_00b1_u32.to_le_bytes()));
    }
}

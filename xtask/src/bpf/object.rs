//! What is done to an object after the linker: DWARF goes, and instructions that old kernels lack are refused.

use anyhow::{Context as _, bail};
use object::{
    build::elf::{Builder, SectionData},
    elf::{SHF_EXECINSTR, SHT_STRTAB},
};

/// Removes DWARF, which the kernel does not read and which is nine tenths of the file, and keeps BTF.
///
/// # Errors
/// When the file is no ELF file, or has no BTF: without it the maps have no types and verifier logs no lines.
pub fn strip(file: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut builder = Builder::read(file).context("failed to read the linked BPF object")?;
    let mut has_btf = false;
    let mut has_own_names = false;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
        has_btf |= name == b".BTF";
        has_own_names |= matches!(section.data, SectionData::SectionString);
    }
    if !has_btf {
        bail!("failed to find .BTF in the linked BPF object; bpf-linker makes it of debug = 2 with --btf");
    }
    if !has_own_names {
        // LLVM keeps the names of sections and symbols in one table; the writer wants two.
        let names = builder.sections.add();
        names.name = b".shstrtab"[..].into();
        names.sh_type = SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("failed to write the BPF object without DWARF")?;
    Ok(stripped)
}

/// Refuses atomic instructions other than a plain add, which kernels before 5.12 do not know: cpu v3, which
/// everything else here needs, lets the compiler emit them (an atomic add whose old value is used is enough).
///
/// # Errors
/// When there is one: with its section and offset.
pub fn refuse_new_atomics(file: &[u8]) -> anyhow::Result<()> {
    let builder = Builder::read(file).context("failed to read the BPF object")?;
    for section in &builder.sections {
        if section.sh_flags & u64::from(SHF_EXECINSTR) == 0 {
            continue;
        }
        let SectionData::Data(code) = &section.data else { continue };
        if let Some(offset) = first_new_atomic(code.as_slice()) {
            bail!(
                "failed to accept the BPF object: {}+{offset:#x} is an atomic operation that returns a value or \
                 is no addition, which kernels before 5.12 refuse; use a plain atomic add, or a map update",
                String::from_utf8_lossy(section.name.as_slice()),
            );
        }
    }
    Ok(())
}

/// Class STX, mode ATOMIC; the immediate says which operation, 0 being the add of all kernels (the kernel's
/// Documentation/bpf/standardization/instruction-set.rst).
fn first_new_atomic(code: &[u8]) -> Option<usize> {
    const CLASS_AND_MODE: u8 = 0xe7;
    const STX_ATOMIC: u8 = 0xc3;
    const LOAD_64_BIT_IMMEDIATE: u8 = 0x18;
    let mut offset = 0;
    while let Some(instruction) = code.get(offset..offset + 8) {
        let immediate = &instruction[4..8];
        if instruction[0] & CLASS_AND_MODE == STX_ATOMIC && immediate != [0; 4] {
            return Some(offset);
        }
        // This one takes two slots, of which the second is data.
        offset += if instruction[0] == LOAD_64_BIT_IMMEDIATE { 16 } else { 8 };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADD: [u8; 8] = [0xdb, 0x10, 0, 0, 0, 0, 0, 0];
    const FETCH_ADD: [u8; 8] = [0xdb, 0x10, 0, 0, 1, 0, 0, 0];
    const FETCH_ADD_32: [u8; 8] = [0xc3, 0x10, 0, 0, 1, 0, 0, 0];
    const COMPARE_EXCHANGE: [u8; 8] = [0xdb, 0x12, 0, 0, 0xf1, 0, 0, 0];
    const LOAD_IMMEDIATE: [u8; 8] = [0x18, 0x01, 0, 0, 9, 0, 0, 0];

    #[test]
    fn a_plain_atomic_add_passes() {
        assert_eq!(first_new_atomic(&ADD), None);
    }

    #[test]
    fn atomics_of_newer_kernels_are_found() {
        assert_eq!(first_new_atomic(&[ADD, FETCH_ADD].concat()), Some(8));
        assert_eq!(first_new_atomic(&[ADD, ADD, FETCH_ADD_32].concat()), Some(16));
        assert_eq!(first_new_atomic(&COMPARE_EXCHANGE), Some(0));
    }

    #[test]
    fn the_data_of_a_wide_load_is_no_instruction() {
        assert_eq!(first_new_atomic(&[LOAD_IMMEDIATE, FETCH_ADD, ADD].concat()), None);
        assert_eq!(first_new_atomic(&[LOAD_IMMEDIATE, ADD, FETCH_ADD].concat()), Some(16));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(strip(b"no ELF file").is_err());
        assert!(refuse_new_atomics(b"no ELF file").is_err());
    }
}

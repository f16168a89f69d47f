//! An object's call frame information, found in its file and compiled.

use std::ops::Range;

use leakprobe_common::MAX_RULES;

use super::{
    cfi::{
        self, Limits, TooMuch,
        entries::{Form, Section},
    },
    table::{Table, Unfit},
};
use crate::target::elf::{CodeSegment, Elf, ObjectError, ReadAt, stream};

/// Bytes read of one object's call frame information. The largest browsers have 30 MB.
const MAX_BYTES: u64 = 256 << 20;
/// What an object may come to. A quarter of all rules, so that none takes the place of others.
const LIMITS: Limits = Limits { rows: 8 << 20, rules: MAX_RULES / 4 };

/// An object's tables.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Where its code is in the file and in the object.
    pub segments: Vec<CodeSegment>,
    /// Its rules.
    pub table: Table,
}

/// Why an object has no tables.
#[derive(Debug, thiserror::Error)]
pub enum NoTable {
    /// It has no call frame information.
    #[error("it has no call frame information")]
    Missing,
    /// More than is kept.
    #[error("{0}")]
    TooMuch(#[from] TooMuch),
    /// Not to be arranged.
    #[error("{0}")]
    Unfit(#[from] Unfit),
    /// Its file cannot be read.
    #[error("{0}")]
    Object(#[from] ObjectError),
    /// Larger than what is read.
    #[error("its call frame information is larger than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
}

/// Compiles the call frame information of a file.
///
/// # Errors
/// Why it has none, or none that can be used.
pub fn compile<R: ReadAt + ?Sized>(file: &R) -> Result<Compiled, NoTable> {
    let elf = Elf::parse(file)?;
    let segments = elf.code_segments();
    let code = span(&segments).ok_or(NoTable::Missing)?;
    let (bytes, address, form) = match eh_frame(&elf)? {
        Some((address, bytes)) => (bytes, address, Form::EhFrame),
        None => (debug_frame(&elf)?.ok_or(NoTable::Missing)?, 0, Form::DebugFrame),
    };
    let section = Section { bytes: &bytes, address, form };
    let functions = cfi::functions(section, elf.arch, LIMITS)?;
    if functions.stretches.is_empty() {
        return Err(NoTable::Missing);
    }
    let entry = Some(elf.entry()).filter(|&entry| entry != 0);
    Ok(Compiled { table: Table::new(&functions, &code, entry)?, segments })
}

/// From the first byte of code to the last.
fn span(segments: &[CodeSegment]) -> Option<Range<u64>> {
    let start = segments.iter().map(|segment| segment.address).min()?;
    let end = segments.iter().map(|segment| segment.address.saturating_add(segment.bytes)).max()?;
    Some(start..end)
}

/// The section that the program header's index points to, with its address: by names it would be lost when section
/// headers are stripped. Its length is not said; its end is marked.
fn eh_frame<R: ReadAt + ?Sized>(elf: &Elf<'_, R>) -> Result<Option<(u64, Vec<u8>)>, NoTable> {
    const VERSION: u8 = 1;
    const PCREL_SDATA4: u8 = 0x1b;
    let Some((index_address, index_offset)) = elf.frame_index() else { return Ok(None) };
    let mut head = [0; 8];
    if elf.file.read_at(&mut head, index_offset).map_err(ObjectError::from)? < head.len() {
        return Err(ObjectError::Damaged("an index of call frame information beyond the file's end").into());
    }
    let [VERSION, PCREL_SDATA4, _, _, offset @ ..] = head else { return Ok(None) };
    let offset = i64::from(i32::from_le_bytes(offset));
    let address = index_address.wrapping_add(4).wrapping_add_signed(offset);
    let Some((at, len)) = elf.file_offset(address) else { return Ok(None) };
    Ok(Some((address, read(elf.file, at, len.min(MAX_BYTES))?)))
}

/// The section that debuggers read, where it is plain.
fn debug_frame<R: ReadAt + ?Sized>(elf: &Elf<'_, R>) -> Result<Option<Vec<u8>>, NoTable> {
    let Some((offset, len)) = elf.section(".debug_frame")? else { return Ok(None) };
    if len > MAX_BYTES {
        return Err(NoTable::TooLarge);
    }
    Ok(Some(read(elf.file, offset, len)?))
}

fn read<R: ReadAt + ?Sized>(file: &R, offset: u64, len: u64) -> Result<Vec<u8>, NoTable> {
    let mut bytes = Vec::new();
    stream(file, offset, len, |chunk| {
        bytes.extend_from_slice(chunk);
        true
    })?;
    Ok(bytes)
}

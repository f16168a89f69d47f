//! An object's call frame information, found in its file and compiled.

use std::{
    io::{self, Read},
    ops::Range,
};

use flate2::bufread::ZlibDecoder;
use leakprobe_common::{MAX_RULES, Rule, cfa, saved};

use super::{
    cfi::{
        self, Functions, Limits, TooMuch,
        entries::{self, Form, Section},
    },
    table::{Table, Unfit},
};
use crate::probe::plan::Arch;
use crate::target::elf::{CodeSegment, Elf, ObjectError, ReadAt, stream};

/// Bytes read of one object's call frame information. The largest browsers have 30 MB. Two are read at a time.
const MAX_BYTES: u64 = 128 << 20;
/// Rules that an object may come to: a quarter of all, so that none takes the place of others.
const MAX_OBJECT_RULES: usize = MAX_RULES / 4;

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
    /// Compressed, and not to be expanded.
    #[error("its compressed call frame information cannot be expanded: {0}")]
    Compressed(String),
    /// Larger than what is read.
    #[error("its call frame information is larger than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
}

/// What tables are made of: equal ones make equal tables.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    arch: Arch,
    segments: Vec<CodeSegment>,
    entry: u64,
    /// What is in the first one goes before what is in the next.
    sections: Vec<Frames>,
    known: Option<Known>,
}

/// A section of call frame information.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Frames {
    bytes: Vec<u8>,
    address: u64,
    form: Form,
}

impl Source {
    /// Reads the call frame information of a file.
    ///
    /// # Errors
    /// Why it has none.
    pub fn read<R: ReadAt + ?Sized>(file: &R) -> Result<Self, NoTable> {
        let elf = Elf::parse(file)?;
        let mut sections = Vec::new();
        if let Some((address, bytes)) = eh_frame(&elf)? {
            sections.push(Frames { bytes, address, form: Form::EhFrame });
        }
        // Where functions come without the former, that may still describe startup files and linkage tables.
        let left = MAX_BYTES - sections.first().map_or(0, |section| section.bytes.len() as u64);
        match debug_frame(&elf, left) {
            Ok(Some(bytes)) => sections.push(Frames { bytes, address: 0, form: Form::DebugFrame }),
            Err(error) if sections.is_empty() => return Err(error),
            Ok(None) | Err(_) => {}
        }
        if sections.is_empty() {
            return Err(NoTable::Missing);
        }
        let (arch, segments, entry) = (elf.arch, elf.code_segments(), elf.entry());
        Ok(Self { arch, segments, entry, sections, known: None })
    }

    /// As [`Source::read`], of the vDSO. On aarch64 its signal trampoline has none since Linux 5.8.
    ///
    /// # Errors
    /// As there.
    pub fn read_vdso(bytes: &[u8]) -> Result<Self, NoTable> {
        let known = aarch64_trampoline(bytes);
        match Self::read(bytes) {
            // All of it was taken out together.
            Err(NoTable::Missing) if known.is_some() => {
                let elf = Elf::parse(bytes)?;
                let (arch, segments, entry) = (elf.arch, elf.code_segments(), 0);
                Ok(Self { arch, segments, entry, sections: Vec::new(), known })
            }
            source => Ok(Self { known, ..source? }),
        }
    }

    /// Compiles it, to `max_rows` rows at most.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn compile(&self, max_rows: usize) -> Result<Compiled, NoTable> {
        let limits = Limits { rows: max_rows, rules: MAX_OBJECT_RULES };
        let code = span(&self.segments).ok_or(NoTable::Missing)?;
        let mut functions = Functions::default();
        for Frames { bytes, address, form } in &self.sections {
            let section = Section { bytes, address: *address, form: *form };
            let more = cfi::functions(section, self.arch, limits)?;
            functions.merge(more, limits)?;
        }
        if let Some((code, rule)) = self.known.clone() {
            functions.add(code, rule);
        }
        if functions.stretches.is_empty() {
            return Err(NoTable::Missing);
        }
        let entry = Some(self.entry).filter(|&entry| entry != 0);
        Ok(Compiled { table: Table::new(&functions, &code, entry)?, segments: self.segments.clone() })
    }
}

/// Rows that a file's call frame information may come to where nothing else says so.
const MAX_ROWS: usize = 8 << 20;

/// Compiles the call frame information of a file.
///
/// # Errors
/// Why it has none, or none that can be used.
pub fn compile<R: ReadAt + ?Sized>(file: &R) -> Result<Compiled, NoTable> {
    Source::read(file)?.compile(MAX_ROWS)
}

/// A function that call frame information says nothing of: its code, and its rule.
type Known = (Range<u64>, Rule);

/// The signal trampoline of aarch64 in a vDSO, by its two instructions; a vDSO's addresses are offsets.
fn aarch64_trampoline(vdso: &[u8]) -> Option<Known> {
    // mov x8, #__NR_rt_sigreturn; svc #0
    const CODE: [u8; 8] = [0x68, 0x11, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4];
    // Of `struct rt_sigframe`, at the stack pointer: uc.uc_mcontext.regs[29], .sp and .pc.
    const FP: i16 = 544;
    const SP: i32 = 560;
    const PC: i16 = 568;
    if !cfg!(target_arch = "aarch64") {
        return None;
    }
    let start = vdso.windows(CODE.len()).step_by(4).position(|code| code == CODE)? as u64 * 4;
    let rule = Rule {
        cfa: cfa::AT_STACK_POINTER,
        cfa_offset: SP,
        fp: saved::AT_STACK_POINTER,
        fp_offset: FP,
        ra: saved::AT_STACK_POINTER,
        ra_offset: PC,
        is_signal: 1,
        ..Rule::default()
    };
    // From the instruction before on, which is there to be found: a handler returns to the trampoline's first one.
    Some((start.saturating_sub(4)..start + CODE.len() as u64, rule))
}

/// From the first byte of code to the last.
fn span(segments: &[CodeSegment]) -> Option<Range<u64>> {
    let start = segments.iter().map(|segment| segment.address).min()?;
    let end = segments.iter().map(|segment| segment.address.saturating_add(segment.bytes)).max()?;
    Some(start..end)
}

/// The section that the program header's index points to, with its address: by names it would be lost when section
/// headers are stripped. Its length is not said; its end is marked, and nothing behind it is read. Static programs have no
/// such index, and register the section when they start: there it is found by its name.
fn eh_frame<R: ReadAt + ?Sized>(elf: &Elf<'_, R>) -> Result<Option<(u64, Vec<u8>)>, NoTable> {
    const VERSION: u8 = 1;
    const PCREL_SDATA4: u8 = 0x1b;
    let Some((index_address, index_offset)) = elf.frame_index() else {
        let Some(section) =
            elf.section(".eh_frame")?.filter(|section| section.len > 0 && !section.compressed)
        else {
            return Ok(None);
        };
        if section.len > MAX_BYTES {
            return Err(NoTable::TooLarge);
        }
        return Ok(Some((section.address, read(elf.file, section.offset, section.len)?)));
    };
    let mut head = [0; 8];
    if elf.file.read_at(&mut head, index_offset).map_err(ObjectError::from)? < head.len() {
        return Err(ObjectError::Damaged("an index of call frame information beyond the file's end").into());
    }
    let [VERSION, PCREL_SDATA4, _, _, offset @ ..] = head else { return Ok(None) };
    let offset = i64::from(i32::from_le_bytes(offset));
    let address = index_address.wrapping_add(4).wrapping_add_signed(offset);
    let Some((at, len)) = elf.file_offset(address) else { return Ok(None) };
    // Up to the section's end, or that of what is read at most.
    let (mut bytes, mut next) = (Vec::new(), 0);
    stream(elf.file, at, len.min(MAX_BYTES), |chunk| {
        bytes.extend_from_slice(chunk);
        while let Some(len) = entries::record_len(bytes.get(next..).unwrap_or_default()) {
            next = usize::try_from(len).map_or(usize::MAX, |len| next.saturating_add(len));
            if len == entries::END_LEN {
                bytes.truncate(next);
                return false;
            }
        }
        true
    })?;
    Ok(Some((address, bytes)))
}

/// The section that debuggers read, no longer than `most` bytes.
fn debug_frame<R: ReadAt + ?Sized>(elf: &Elf<'_, R>, most: u64) -> Result<Option<Vec<u8>>, NoTable> {
    let Some(section) = elf.section(".debug_frame")? else { return Ok(None) };
    if section.len > most {
        return Err(NoTable::TooLarge);
    }
    let bytes = read(elf.file, section.offset, section.len)?;
    if !section.compressed {
        return Ok(Some(bytes));
    }
    match expand(&bytes, most) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) => Err(NoTable::Compressed(error.to_string())),
    }
}

/// Expands a compressed section, to `most` bytes at most: behind a head (`Elf64_Chdr`) of 24 bytes, which says how it is
/// compressed.
pub(super) fn expand(section: &[u8], most: u64) -> io::Result<Vec<u8>> {
    const HEAD: usize = 24;
    const ZLIB: [u8; 4] = [1, 0, 0, 0];
    const ZSTD: [u8; 4] = [2, 0, 0, 0];
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "its head is damaged");
    let (head, data) = section.split_at_checked(HEAD).ok_or_else(damaged)?;
    let mut bytes = Vec::new();
    let mut read = |data: &mut dyn Read| data.take(most + 1).read_to_end(&mut bytes).map(drop);
    match head[..4].try_into().map_err(|_| damaged())? {
        ZLIB => read(&mut ZlibDecoder::new(data))?,
        ZSTD => read(&mut zstd::stream::read::Decoder::with_buffer(data)?)?,
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "in a way that is not known")),
    }
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("to more than {most} bytes")));
    }
    Ok(bytes)
}

fn read<R: ReadAt + ?Sized>(file: &R, offset: u64, len: u64) -> Result<Vec<u8>, NoTable> {
    let mut bytes = Vec::new();
    stream(file, offset, len, |chunk| {
        bytes.extend_from_slice(chunk);
        true
    })?;
    Ok(bytes)
}

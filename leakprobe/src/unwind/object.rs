//! An object's call frame information, found in its file and compiled.

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use leakprobe_common::{MAX_RULES, Rule, cfa, saved};

use super::{
    allowance::Allowance,
    cfi::{self, Functions, Limits, entries::Section},
    sections::{self, Frames, Refused},
    table::{Table, Unfit},
};
use crate::probe::plan::Arch;
use crate::target::elf::{CodeSegment, Elf, ObjectError, ReadAt};

/// Rules that an object may come to: a quarter of all, so that none takes the place of others.
const MAX_OBJECT_RULES: usize = MAX_RULES / 4;

/// An object's tables.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Where its code is in the file and in the object.
    pub segments: Vec<CodeSegment>,
    /// Its rules.
    pub table: Table,
    /// What they are not made of, though it is there.
    pub refused: Vec<Refused>,
}

/// Why an object has no tables.
#[derive(Debug, thiserror::Error)]
pub enum NoTable {
    /// It has no call frame information.
    #[error("it has no call frame information")]
    Missing,
    /// It has some, none of which is used.
    #[error("{}", in_words(.0))]
    Refused(Vec<Refused>),
    /// Not to be arranged.
    #[error("{0}")]
    Unfit(#[from] Unfit),
    /// Its file cannot be read.
    #[error("{0}")]
    Object(#[from] ObjectError),
    /// It was not waited for.
    #[error("its tables were not made yet")]
    Stopped,
}

/// Why no section is used.
fn in_words(refused: &[Refused]) -> String {
    let sections: Vec<String> = refused.iter().map(Refused::to_string).collect();
    sections.join("; ")
}

/// What tables are made of: equal ones make equal tables.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    arch: Arch,
    segments: Vec<CodeSegment>,
    entry: u64,
    /// What is in the first one goes before what is in the next.
    sections: Vec<Frames>,
    refused: Vec<Refused>,
    known: Option<Known>,
}

impl Source {
    /// Reads the call frame information of a file.
    ///
    /// # Errors
    /// Why it has none.
    pub fn read<R: ReadAt + ?Sized>(file: &R, allowance: &mut Allowance<'_>) -> Result<Self, NoTable> {
        if allowance.is_stopped() {
            return Err(NoTable::Stopped);
        }
        let elf = Elf::parse(file)?;
        let (sections, refused) = sections::read(&elf, allowance);
        match (sections.is_empty(), refused.is_empty()) {
            (true, true) => return Err(NoTable::Missing),
            (true, false) => return Err(NoTable::Refused(refused)),
            (false, _) => {}
        }
        let (arch, segments, entry) = (elf.arch, elf.code_segments(), elf.entry());
        Ok(Self { arch, segments, entry, sections, refused, known: None })
    }

    /// As [`Source::read`], of the vDSO. On aarch64 its signal trampoline has none since Linux 5.8.
    ///
    /// # Errors
    /// As there.
    pub fn read_vdso(bytes: &[u8]) -> Result<Self, NoTable> {
        let known = aarch64_trampoline(bytes);
        match Self::read(bytes, &mut Allowance::new(bytes.len() as u64, &NEVER)) {
            // All of it was taken out together.
            Err(NoTable::Missing) if known.is_some() => {
                let elf = Elf::parse(bytes)?;
                let (arch, segments, entry) = (elf.arch, elf.code_segments(), 0);
                Ok(Self { arch, segments, entry, sections: Vec::new(), refused: Vec::new(), known })
            }
            source => Ok(Self { known, ..source? }),
        }
    }

    /// Compiles it, to `max_rows` rows at most, until `stop` is set. A section that cannot be used leaves the other one.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn compile(&self, max_rows: usize, stop: &AtomicBool) -> Result<Compiled, NoTable> {
        let limits = Limits { rows: max_rows, rules: MAX_OBJECT_RULES };
        let code = span(&self.segments).ok_or(NoTable::Missing)?;
        let mut functions = Functions::default();
        let mut refused = self.refused.clone();
        for Frames { bytes, address, form } in &self.sections {
            let section = Section { bytes, address: *address, form: *form };
            let more = cfi::functions(section, self.arch, &code, limits, stop);
            if let Err(unusable) = more.and_then(|more| functions.merge(more, limits)) {
                refused.push(Refused { form: *form, reason: unusable.to_string() });
            }
            if stop.load(Ordering::Relaxed) {
                return Err(NoTable::Stopped);
            }
        }
        if let Some((code, rule)) = self.known.clone() {
            functions.add(code, rule);
        }
        if functions.stretches.is_empty() {
            return Err(if refused.is_empty() { NoTable::Missing } else { NoTable::Refused(refused) });
        }
        let entry = Some(self.entry).filter(|&entry| entry != 0);
        let table = Table::new(&functions, &code, entry)?;
        Ok(Compiled { table, segments: self.segments.clone(), refused })
    }
}

/// Nobody waits.
static NEVER: AtomicBool = AtomicBool::new(false);

/// Compiles the call frame information of a file, whatever others may need.
///
/// # Errors
/// Why it has none, or none that can be used.
#[cfg(test)]
pub fn compile<R: ReadAt + ?Sized>(file: &R) -> Result<Compiled, NoTable> {
    Source::read(file, &mut Allowance::new(1 << 30, &NEVER))?.compile(8 << 20, &NEVER)
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

//! Where the parts of functions end: a function's code can be in several.

use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindSection as _};

use crate::target::elf::{Elf, ObjectError, ReadAt};

/// Bytes of call frame information that are read one by one; the largest static programs have some 20 MiB.
const MAX_BYTES: u64 = 64 << 20;

/// The parts of functions, sorted.
pub enum Parts {
    /// As the index of the call frame information has them.
    Index {
        /// Of the index, in the object.
        address: u64,
        /// Of its table, in the file.
        table: u64,
        /// Its pairs.
        count: u64,
    },
    /// Of a static program, which has no such index: first addresses and those behind, read one by one.
    Listed(Vec<(u64, u64)>),
}

impl Parts {
    /// `None` where there is no call frame information, or an index of an unusual form.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of<R: ReadAt + ?Sized>(elf: &Elf<'_, R>) -> Result<Option<Self>, ObjectError> {
        const HEAD: usize = 12;
        let Some((address, offset)) = elf.frame_index() else { return listed(elf) };
        let mut head = [0; HEAD];
        let read = elf.file.read_at(&mut head, offset)?;
        // Version 1; a pointer of 4 bytes to the information, from itself; a count of 4 bytes; pairs of 4 bytes each, from
        // the index's start (Linux Standard Base, 10.6.2).
        let is_usual = read == HEAD && head[..4] == [1, 0x1b, 0x03, 0x3b];
        let count = u64::from(u32::from_le_bytes([head[8], head[9], head[10], head[11]]));
        Ok(is_usual.then_some(Self::Index { address, table: offset + HEAD as u64, count }))
    }

    /// Where the part that an address is in ends; where it is in none, or that does not say how long it is, where the next one
    /// begins.
    pub fn end<R: ReadAt + ?Sized>(&self, elf: &Elf<'_, R>, address: u64) -> u64 {
        let (of_index, table, count) = match *self {
            Self::Index { address, table, count } => (address, table, count),
            Self::Listed(ref parts) => {
                let next = parts.partition_point(|&(start, _)| start <= address);
                let begins = parts.get(next).map_or(u64::MAX, |&(start, _)| start);
                let ends = next.checked_sub(1).map_or(0, |own| parts[own].1);
                return if ends > address { ends.min(begins) } else { begins };
            }
        };
        // The first address of a part, and that of its entry.
        let pair = |index: u64| {
            let mut words = [0; 8];
            let at = table.saturating_add(index * 8);
            let read = elf.file.read_at(&mut words, at).unwrap_or(0);
            let [a, b, c, d, e, f, g, h] = words;
            let at = |word| of_index.wrapping_add_signed(i32::from_le_bytes(word).into());
            (read == words.len()).then(|| (at([a, b, c, d]), at([e, f, g, h])))
        };
        let start = |index: u64| pair(index).map(|(start, _)| start);
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            match start(middle) {
                Some(start) if start <= address => low = middle + 1,
                Some(_) => high = middle,
                None => return address,
            }
        }
        let begins = if low < count { start(low).unwrap_or(address).max(address) } else { u64::MAX };
        let own = low.checked_sub(1).and_then(pair);
        match own.and_then(|(start, entry)| start.checked_add(len(elf, start, entry)?)) {
            Some(ends) if ends > address => ends.min(begins),
            _ => begins,
        }
    }
}

/// How long a part is, by its entry at that address: the entry's length, its way to what is common to several, the part's first
/// address, and this. `None` where the form is another than the usual one, as the first address shows.
fn len<R: ReadAt + ?Sized>(elf: &Elf<'_, R>, start: u64, entry: u64) -> Option<u64> {
    let (offset, _) = elf.file_offset(entry)?;
    let mut words = [0; 16];
    let read = elf.file.read_at(&mut words, offset).ok()?;
    let word = |at: usize| i32::from_le_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]);
    let is_usual = read == words.len() && entry.wrapping_add(8).wrapping_add_signed(word(8).into()) == start;
    is_usual.then(|| u64::from(word(12).cast_unsigned()))
}

/// Those of a static program.
fn listed<R: ReadAt + ?Sized>(elf: &Elf<'_, R>) -> Result<Option<Parts>, ObjectError> {
    let section = elf.section(".eh_frame")?;
    let Some(section) =
        section.filter(|section| !section.compressed && (1..=MAX_BYTES).contains(&section.len))
    else {
        return Ok(None);
    };
    let mut bytes = vec![0; usize::try_from(section.len).unwrap_or(0)];
    let read = elf.file.read_at(&mut bytes, section.offset)?;
    bytes.truncate(read);
    let frames = EhFrame::new(&bytes, LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(section.address);
    let (mut entries, mut parts) = (frames.entries(&bases), Vec::new());
    // What is damaged has told what comes before it: a part that seems to reach further ends at code that is followed no more.
    while let Ok(Some(entry)) = entries.next() {
        if let CieOrFde::Fde(partial) = entry
            && let Ok(function) = partial.parse(EhFrame::cie_from_offset)
        {
            parts.push((
                function.initial_address(),
                function.initial_address().saturating_add(function.len()),
            ));
        }
    }
    parts.sort_unstable();
    Ok((!parts.is_empty()).then_some(Parts::Listed(parts)))
}

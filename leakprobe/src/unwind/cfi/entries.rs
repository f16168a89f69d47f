//! The entries of a section of call frame information: what is common to several functions (CIE), and what each has
//! of its own (FDE).

use std::collections::HashMap;

use super::{Damaged, reader::Reader};

/// Which of the two forms a section has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `.eh_frame`, which is mapped.
    EhFrame,
    /// `.debug_frame`, which debuggers read.
    DebugFrame,
}

/// A section.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    /// Its bytes; what follows it may be among them, since its end is marked.
    pub bytes: &'a [u8],
    /// Its address in the object.
    pub address: u64,
    /// Its form.
    pub form: Form,
}

/// What is common to several functions.
#[derive(Clone, Copy, Debug)]
pub struct Common<'a> {
    /// Unit of advances in the code, bytes.
    pub code_alignment: u64,
    /// Unit of offsets on the stack, bytes.
    pub data_alignment: i64,
    /// Number of the register that stands for the return address.
    pub return_register: u64,
    /// Whether its functions are signal trampolines.
    pub is_signal: bool,
    /// Instructions that each function's begin with.
    pub instructions: &'a [u8],
    encoding: u8,
    has_augmentation: bool,
}

/// One function's.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Offset of its [`Common`] in the section.
    pub common_at: usize,
    /// What it shares with others.
    pub common: Common<'a>,
    /// First address, in the object.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Its instructions.
    pub instructions: &'a [u8],
}

const DW_EH_PE_ABSPTR: u8 = 0x00;
const DW_EH_PE_PCREL: u8 = 0x10;
const DW_EH_PE_OMIT: u8 = 0xff;

/// Entries that are common to functions and read, of one section; linkers leave dozens. And bytes of one's instructions, which
/// are run once: they can overlap in a file that was made to keep us busy.
const MAX_COMMONS: usize = 65_536;
const MAX_COMMON_BYTES: usize = 1024;
/// Bytes of the text that says what else it holds.
const MAX_AUGMENTATION: usize = 16;

/// Bytes of one function's entry; a compiler's come to a few thousand.
const MAX_FUNCTION_BYTES: usize = 1 << 20;

/// Every function's entry, in the order of the section; an error for one that is damaged or of an unknown kind.
pub struct Entries<'a> {
    section: Section<'a>,
    reader: Reader<'a>,
    commons: HashMap<usize, Option<Common<'a>>>,
    /// Bytes of their instructions. Where they do not overlap, these are fewer than the section has.
    common_bytes: usize,
}

impl<'a> Entries<'a> {
    /// Those of a section.
    pub fn new(section: Section<'a>) -> Self {
        Self { section, reader: Reader::new(section.bytes), commons: HashMap::new(), common_bytes: 0 }
    }

    /// What a function shares with others, by the offset in the section.
    fn common(&mut self, at: usize) -> Option<Common<'a>> {
        if let Some(&known) = self.commons.get(&at) {
            return known;
        }
        if self.commons.len() >= MAX_COMMONS || self.common_bytes > self.section.bytes.len() {
            return None;
        }
        let common = common(self.section, at);
        self.common_bytes += common.map_or(0, |common| common.instructions.len());
        self.commons.insert(at, common);
        common
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Record { id_at, id, is_64, body } = next_record(&mut self.reader, self.section.form)?;
            if is_common(id, self.section.form, is_64) {
                continue; // read when the first function names it
            }
            let common_at = match self.section.form {
                Form::EhFrame => usize::try_from(id).ok().and_then(|back| id_at.checked_sub(back)),
                Form::DebugFrame => usize::try_from(id).ok(),
            };
            let common = common_at.and_then(|at| Some((at, self.common(at)?)));
            let common = common.filter(|_| body.1.len() <= MAX_FUNCTION_BYTES).ok_or(Damaged);
            return Some(common.and_then(|(at, common)| function(self.section, at, common, body)));
        }
    }
}

/// Length of the mark of a section's end.
pub const END_LEN: u64 = 4;

/// Length of the record at the start of `bytes`, that of its length included; [`END_LEN`] of the mark of the section's
/// end, `None` where too little is there to tell.
pub fn record_len(bytes: &[u8]) -> Option<u64> {
    let mut reader = Reader::new(bytes);
    match reader.number(4).ok()? {
        0xffff_ffff => Some(reader.number(8).ok()?.saturating_add(12)),
        len => Some(len + 4),
    }
}

/// A record's head, and what follows it.
struct Record<'a> {
    /// Offset in the section of the ID.
    id_at: usize,
    id: u64,
    is_64: bool,
    /// From behind the ID, with its offset in the section.
    body: (usize, &'a [u8]),
}

/// The next record; `None` at the section's end, or where its length cannot be one.
fn next_record<'a>(reader: &mut Reader<'a>, form: Form) -> Option<Record<'a>> {
    let mut len = reader.number(4).ok()?;
    let is_64 = len == 0xffff_ffff;
    if is_64 {
        len = reader.number(8).ok()?;
    }
    if len == 0 {
        return None;
    }
    let start = reader.position();
    let bytes = reader.take(usize::try_from(len).ok()?).ok()?;
    let mut inside = Reader::new(bytes);
    let wide = is_64 && form == Form::DebugFrame;
    let id = inside.number(if wide { 8 } else { 4 }).ok()?;
    let behind = inside.position();
    Some(Record { id_at: start, id, is_64, body: (start + behind, &bytes[behind..]) })
}

fn is_common(id: u64, form: Form, is_64: bool) -> bool {
    match form {
        Form::EhFrame => id == 0,
        Form::DebugFrame => id == if is_64 { u64::MAX } else { 0xffff_ffff },
    }
}

/// Reads what is common at an offset of the section; `None` where there is no such thing, or one that is not understood.
fn common(section: Section<'_>, at: usize) -> Option<Common<'_>> {
    let mut reader = Reader::new(section.bytes.get(at..)?);
    let record = next_record(&mut reader, section.form)?;
    is_common(record.id, section.form, record.is_64).then_some(())?;
    parse_common(record.body.1, section.form).ok()
}

fn parse_common(body: &[u8], form: Form) -> Result<Common<'_>, Damaged> {
    let mut reader = Reader::new(body);
    let version = reader.byte()?;
    if !matches!(version, 1 | 3 | 4) {
        return Err(Damaged);
    }
    let augmentation = reader.text(MAX_AUGMENTATION)?;
    if version == 4 && (form == Form::EhFrame || reader.take(2)? != [8, 0]) {
        return Err(Damaged); // other than 8-byte addresses without segments
    }
    let code_alignment = reader.unsigned()?;
    let data_alignment = reader.signed()?;
    let return_register = if version == 1 { u64::from(reader.byte()?) } else { reader.unsigned()? };
    let (mut encoding, mut is_signal) = (DW_EH_PE_ABSPTR, false);
    let has_augmentation = augmentation.first() == Some(&b'z');
    if has_augmentation {
        let len = usize::try_from(reader.unsigned()?).map_err(|_| Damaged)?;
        let mut data = Reader::new(reader.take(len)?);
        for letter in &augmentation[1..] {
            match letter {
                b'R' => encoding = data.byte()?,
                b'S' => is_signal = true,
                b'L' => {
                    data.byte()?;
                }
                b'P' => {
                    let encoding = data.byte()?;
                    skip_pointer(&mut data, encoding)?;
                }
                // aarch64: keys of signed return addresses, and memory tags; neither changes where things lie.
                b'B' | b'G' => {}
                _ => return Err(Damaged),
            }
        }
    } else if !augmentation.is_empty() {
        return Err(Damaged);
    }
    let instructions = &body[reader.position()..];
    if instructions.len() > MAX_COMMON_BYTES {
        return Err(Damaged);
    }
    Ok(Common {
        code_alignment,
        data_alignment,
        return_register,
        is_signal,
        instructions,
        encoding,
        has_augmentation,
    })
}

fn function<'a>(
    section: Section<'a>,
    common_at: usize,
    common: Common<'a>,
    (body_at, body): (usize, &'a [u8]),
) -> Result<Entry<'a>, Damaged> {
    let mut reader = Reader::new(body);
    let here = section.address.wrapping_add(body_at as u64);
    let start = pointer(&mut reader, common.encoding, here)?;
    // A length, of the same size, but counted from nowhere.
    let len = pointer(&mut reader, common.encoding & 0x0f, 0)?;
    let end = start.checked_add(len).ok_or(Damaged)?;
    if common.has_augmentation {
        let len = usize::try_from(reader.unsigned()?).map_err(|_| Damaged)?;
        reader.take(len)?;
    }
    Ok(Entry { common_at, common, start, end, instructions: &body[reader.position()..] })
}

/// An encoded address; `base` is the address of `reader`'s start.
fn pointer(reader: &mut Reader<'_>, encoding: u8, base: u64) -> Result<u64, Damaged> {
    let here = base.wrapping_add(reader.position() as u64);
    let value = match encoding & 0x0f {
        0x00 | 0x04 | 0x0c => reader.number(8)?,
        0x01 => reader.unsigned()?,
        0x02 => reader.number(2)?,
        0x03 => reader.number(4)?,
        0x09 => reader.signed()?.cast_unsigned(),
        0x0a => (reader.number(2)? as i16 as i64).cast_unsigned(),
        0x0b => (reader.number(4)? as i32 as i64).cast_unsigned(),
        _ => return Err(Damaged),
    };
    match encoding & 0xf0 {
        0x00 => Ok(value),
        DW_EH_PE_PCREL => Ok(here.wrapping_add(value)),
        // Relative to a section, or behind one more pointer: nobody writes functions' addresses so.
        _ => Err(Damaged),
    }
}

/// Passes over an address of which only the size matters.
fn skip_pointer(reader: &mut Reader<'_>, encoding: u8) -> Result<(), Damaged> {
    if encoding != DW_EH_PE_OMIT {
        pointer(reader, encoding & 0x0f, 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_as_long_as_it_says_with_its_length() {
        assert_eq!((record_len(&[0; 4]), record_len(&[0; 3]), record_len(&[])), (Some(END_LEN), None, None));
        assert_eq!(record_len(&[20, 0, 0, 0, 9]), Some(24));
        let mut wide = [0xff; 12];
        assert_eq!((record_len(&wide[..11]), record_len(&wide)), (None, Some(u64::MAX)));
        wide[4..].copy_from_slice(&100u64.to_le_bytes());
        assert_eq!(record_len(&wide), Some(112));
    }
}

//! The sections of call frame information in an object's file: found, read, and expanded where they are compressed.

use std::{
    fmt,
    io::{self, Read},
};

use flate2::bufread::ZlibDecoder;

use super::{
    allowance::{Allowance, Over},
    cfi::entries::{self, Form},
};
use crate::target::elf::{Elf, ObjectError, ReadAt, stream};

/// A section of call frame information.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frames {
    /// Its bytes; of `.eh_frame` what follows it may be among them.
    pub bytes: Vec<u8>,
    /// Its address in the object.
    pub address: u64,
    /// Its form.
    pub form: Form,
}

/// A section that is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Refused {
    /// Which.
    pub form: Form,
    /// Why. Nothing of what the file says is in it.
    pub reason: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.form {
            Form::EhFrame => ".eh_frame",
            Form::DebugFrame => ".debug_frame",
        };
        write!(out, "its {name} is not used: {}", self.reason)
    }
}

/// Why a section is not used.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("{0}")]
    Over(#[from] Over),
    #[error("{0}")]
    Object(#[from] ObjectError),
    #[error("it is compressed, and cannot be expanded: {0}")]
    Compressed(io::Error),
    #[error("it is compressed, and so not what is mapped")]
    CompressedMapped,
    #[error("the index that leads to it has a form that is not read")]
    Index,
    #[error("the index that leads to it leads out of the file")]
    Nowhere,
}

/// The sections that an object has, in the order in which they count; and those that are not used.
pub fn read<R: ReadAt + ?Sized>(
    elf: &Elf<'_, R>,
    allowance: &mut Allowance<'_>,
) -> (Vec<Frames>, Vec<Refused>) {
    let code = elf.code_segments().iter().fold(0u64, |sum, segment| sum.saturating_add(segment.bytes));
    let (mut sections, mut refused) = (Vec::new(), Vec::new());
    // Where functions come without the former, that may still describe startup files and linkage tables.
    for form in [Form::EhFrame, Form::DebugFrame] {
        let read = match form {
            Form::EhFrame => eh_frame(elf, code, allowance),
            Form::DebugFrame => debug_frame(elf, code, allowance),
        };
        match read {
            Ok(Some((address, bytes))) => sections.push(Frames { bytes, address, form }),
            Ok(None) => {}
            Err(unread) => refused.push(Refused { form, reason: unread.to_string() }),
        }
    }
    (sections, refused)
}

type Found = Result<Option<(u64, Vec<u8>)>, Unread>;

/// The section that the program header's index points to, with its address: by names it would be lost when section
/// headers are stripped. Its length is not said; its end is marked, and nothing behind it is read. Static programs have no
/// such index, and register the section when they start: there it is found by its name.
fn eh_frame<R: ReadAt + ?Sized>(elf: &Elf<'_, R>, code: u64, allowance: &mut Allowance<'_>) -> Found {
    const VERSION: u8 = 1;
    const PCREL_SDATA4: u8 = 0x1b;
    let most = allowance.most(code);
    let Some((index_address, index_offset)) = elf.frame_index() else {
        let Some(section) = elf.section(".eh_frame")?.filter(|section| section.len > 0) else {
            return Ok(None);
        };
        if section.compressed {
            return Err(Unread::CompressedMapped);
        }
        if section.len > most {
            return Err(allowance.over(most, code).into());
        }
        allowance.spend(section.len);
        return Ok(Some((section.address, bytes(elf.file, section.offset, section.len)?)));
    };
    let mut head = [0; 8];
    if elf.file.read_at(&mut head, index_offset).map_err(ObjectError::from)? < head.len() {
        return Err(Unread::Nowhere);
    }
    let [VERSION, PCREL_SDATA4, _, _, offset @ ..] = head else { return Err(Unread::Index) };
    let offset = i64::from(i32::from_le_bytes(offset));
    let address = index_address.wrapping_add(4).wrapping_add_signed(offset);
    let (at, len) = elf.file_offset(address).ok_or(Unread::Nowhere)?;
    // Up to the section's end, or to where what follows is no record, or that of what is read at most.
    let (mut bytes, mut next, mut has_ended) = (Vec::new(), 0, false);
    let streamed = stream(elf.file, at, len.min(most), |chunk| {
        bytes.extend_from_slice(chunk);
        while let Some(record) = entries::record_len(bytes.get(next..).unwrap_or_default()) {
            let end = (next as u64).saturating_add(record);
            has_ended = record == entries::END_LEN || end > len;
            if record == entries::END_LEN || end <= len {
                next = usize::try_from(end).unwrap_or(usize::MAX);
            }
            if has_ended {
                bytes.truncate(next);
                return false;
            }
        }
        true
    });
    allowance.spend(bytes.len() as u64);
    streamed?;
    if len > most && !has_ended {
        return Err(allowance.over(most, code).into());
    }
    Ok(Some((address, bytes)))
}

/// The section that debuggers read.
fn debug_frame<R: ReadAt + ?Sized>(elf: &Elf<'_, R>, code: u64, allowance: &mut Allowance<'_>) -> Found {
    let Some(section) = elf.section(".debug_frame")?.filter(|section| section.len > 0) else {
        return Ok(None);
    };
    let most = allowance.most(code);
    if section.len > most {
        return Err(allowance.over(most, code).into());
    }
    allowance.spend(section.len);
    let read = bytes(elf.file, section.offset, section.len)?;
    if !section.compressed {
        return Ok(Some((0, read)));
    }
    let most = allowance.most(code);
    let expanded = expand(&read, most);
    // As much was expanded as is allowed, where it would have been more.
    allowance.spend(expanded.as_ref().map_or(most, |bytes| bytes.as_ref().map_or(most, |b| b.len() as u64)));
    match expanded {
        Ok(Some(bytes)) => Ok(Some((0, bytes))),
        Ok(None) => Err(allowance.over(most, code).into()),
        Err(error) => Err(Unread::Compressed(error)),
    }
}

/// Expands a compressed section, to `most` bytes at most, `None` where it has more: behind a head (`Elf64_Chdr`) of 24
/// bytes, which says how it is compressed.
pub(super) fn expand(section: &[u8], most: u64) -> io::Result<Option<Vec<u8>>> {
    const HEAD: usize = 24;
    const ZLIB: [u8; 4] = [1, 0, 0, 0];
    const ZSTD: [u8; 4] = [2, 0, 0, 0];
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "its head is damaged");
    let (head, data) = section.split_at_checked(HEAD).ok_or_else(damaged)?;
    let mut bytes = Vec::new();
    let mut read = |data: &mut dyn Read| data.take(most.saturating_add(1)).read_to_end(&mut bytes).map(drop);
    match head[..4].try_into().map_err(|_| damaged())? {
        ZLIB => read(&mut ZlibDecoder::new(data))?,
        ZSTD => read(&mut zstd::stream::read::Decoder::with_buffer(data)?)?,
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "in a way that is not known")),
    }
    Ok(Some(bytes).filter(|bytes| bytes.len() as u64 <= most))
}

fn bytes<R: ReadAt + ?Sized>(file: &R, offset: u64, len: u64) -> Result<Vec<u8>, ObjectError> {
    let mut bytes = Vec::new();
    stream(file, offset, len, |chunk| {
        bytes.extend_from_slice(chunk);
        true
    })?;
    Ok(bytes)
}

//! Reading untrusted call frame information: every read is checked, and an end that comes too early is an error.

use super::Damaged;

/// Most bytes of a LEB128 number: ten hold 70 bits.
const LEB_BYTES: u32 = 10;

/// A position in a section.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// At the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Damaged> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.bytes.len()).ok_or(Damaged)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A byte.
    pub fn byte(&mut self) -> Result<u8, Damaged> {
        Ok(self.take(1)?[0])
    }

    /// A little-endian number of `len` bytes, at most 8.
    pub fn number(&mut self, len: usize) -> Result<u64, Damaged> {
        let taken = self.take(len)?;
        let mut bytes = [0; 8];
        bytes.get_mut(..len).ok_or(Damaged)?.copy_from_slice(taken);
        Ok(u64::from_le_bytes(bytes))
    }

    /// An unsigned LEB128 number; bits beyond 64 are an error.
    pub fn unsigned(&mut self) -> Result<u64, Damaged> {
        let (mut value, mut shift) = (0u64, 0);
        for _ in 0..LEB_BYTES {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Damaged);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
            shift += 7;
        }
        Err(Damaged)
    }

    /// A signed LEB128 number.
    pub fn signed(&mut self) -> Result<i64, Damaged> {
        let (mut value, mut shift) = (0i64, 0);
        for _ in 0..LEB_BYTES {
            let byte = self.byte()?;
            value |= i64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                let is_negative = byte & 0x40 != 0 && shift < 64;
                return Ok(if is_negative { value | (-1 << shift) } else { value });
            }
        }
        Err(Damaged)
    }

    /// A text up to its zero byte, without it, of at most `most` bytes.
    pub fn text(&mut self, most: usize) -> Result<&'a [u8], Damaged> {
        let rest = &self.bytes[self.at..];
        let rest = &rest[..rest.len().min(most + 1)];
        let len = rest.iter().position(|&byte| byte == 0).ok_or(Damaged)?;
        self.at += len + 1;
        Ok(&rest[..len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_variable_length() {
        let unsigned = |bytes: &[u8]| Reader::new(bytes).unsigned().ok();
        assert_eq!(unsigned(&[0x7f]), Some(127));
        assert_eq!(unsigned(&[0xe5, 0x8e, 0x26]), Some(624_485));
        assert_eq!(unsigned(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), Some(u64::MAX));
        assert_eq!(unsigned(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]), None);
        assert_eq!(unsigned(&[0x80; 11]), None);
        assert_eq!(unsigned(&[0x80]), None);
        let signed = |bytes: &[u8]| Reader::new(bytes).signed().ok();
        assert_eq!((signed(&[0x78]), signed(&[0xc0, 0xbb, 0x78])), (Some(-8), Some(-123_456)));
        assert_eq!(signed(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x7f]), Some(i64::MIN));
        assert_eq!(signed(&[0x3f]), Some(63));
    }

    #[test]
    fn nothing_is_read_beyond_the_end() {
        let mut reader = Reader::new(&[1, 2, 3]);
        assert!(reader.number(4).is_err() && reader.number(9).is_err() && reader.take(usize::MAX).is_err());
        assert_eq!((reader.number(2), reader.byte(), reader.is_empty()), (Ok(0x201), Ok(3), true));
        assert!(reader.byte().is_err() && reader.text(9).is_err());
    }
}

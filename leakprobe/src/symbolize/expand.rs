//! How large compressed data really is.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
};

use flate2::bufread::ZlibDecoder;
use xz2::{read::XzDecoder, stream::Stream};

/// Memory that an xz decoder may ask for, bytes: the strongest preset, -9, needs 65 MiB.
const XZ_MEMORY: u64 = 128 << 20;

/// How data is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// ELFCOMPRESS_ZLIB.
    Zlib,
    /// ELFCOMPRESS_ZSTD.
    Zstd,
    /// The whole of `.gnu_debugdata`.
    Xz,
}

/// Expands `size` bytes at `offset` of `file`, keeps nothing, and returns how many bytes come out; the
/// error (words that follow the section's name) when they are damaged or more than `limit`.
///
/// This is done besides blazesym's own expansion, which knows no limit; it costs 0.3 s for 100 MB.
pub(super) fn size(file: &File, offset: u64, size: u64, format: Format, limit: u64) -> Result<u64, String> {
    let input = BufReader::with_capacity(64 << 10, Part { file, offset, left: size });
    let expanded = match format {
        Format::Zlib => count(ZlibDecoder::new(input), limit),
        Format::Zstd => zstd::stream::read::Decoder::with_buffer(input).and_then(|data| count(data, limit)),
        Format::Xz => Stream::new_stream_decoder(XZ_MEMORY, 0)
            .map_err(io::Error::from)
            .and_then(|stream| count(XzDecoder::new_stream(input, stream), limit)),
    };
    match expanded {
        Ok(expanded) if expanded > limit => Err(format!("expands to more than {limit} bytes")),
        Ok(expanded) => Ok(expanded),
        Err(error) => Err(format!("cannot be expanded: {error}")),
    }
}

fn count(data: impl Read, limit: u64) -> io::Result<u64> {
    io::copy(&mut data.take(limit.saturating_add(1)), &mut io::sink())
}

/// A range of a file, read by position: the file's own position stays where it is.
struct Part<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let got = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}

//! The records that `leakprobe --stack-copies` writes: `StackCopy` of leakprobe-common, each cut to its valid pages.

use std::{ffi::CString, fs, io::Read, mem::offset_of, os::unix::ffi::OsStrExt as _, path::Path};

use anyhow::{Context as _, bail, ensure};
use leakprobe_common::{COPY_PAGE_BYTES, COPY_PAGES, MAX_FRAMES, Stack, StackCopy, StackEnd};

/// How a walk ended: at the outermost frame, or at the most frames that there is room for.
pub const BASE: u32 = StackEnd::Base as u32;
/// See [`BASE`].
pub const TRUNCATED: u32 = StackEnd::Truncated as u32;

/// A stack as leakprobe has walked it, with what that was made from.
pub struct Copy {
    /// Code addresses, innermost first; the first one, too, is behind a call.
    pub frames: Vec<u64>,
    /// A [`StackEnd`].
    pub end: u32,
    /// Whether frame pointers were followed through code that may have none.
    pub guessed: bool,
    /// Whether it came through code that was not described yet.
    pub undescribed: bool,
    /// Whether it is of the sample.
    pub sampled: bool,
    /// Stack pointer and frame pointer where it begins.
    pub sp: u64,
    /// See `sp`.
    pub fp: u64,
    memory: Vec<u8>,
}

impl Copy {
    /// A word of the stack; `None` where the copy does not reach.
    pub fn word(&self, address: u64) -> Option<u64> {
        let base = self.sp & !(COPY_PAGE_BYTES as u64 - 1);
        let from = usize::try_from(address.checked_sub(base)?).ok()?;
        let bytes = self.memory.get(from..from.checked_add(8)?)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }
}

/// The records of a stream.
pub struct Copies<R>(R);

impl<R: Read> Copies<R> {
    /// Of this stream.
    pub fn new(stream: R) -> Self {
        Self(stream)
    }

    /// The next one; `None` at the end.
    pub fn next(&mut self) -> anyhow::Result<Option<Copy>> {
        const HEAD: usize = offset_of!(StackCopy, memory);
        let mut head = [0; HEAD];
        match self.0.read(&mut head[..1]).context("failed to read the copies")? {
            0 => return Ok(None),
            _ => self.0.read_exact(&mut head[1..]).context("failed to read a copy")?,
        }
        let word = |at: usize| head[at..][..8].try_into().map_or(0, u64::from_ne_bytes);
        let half = |at: usize| head[at..][..4].try_into().map_or(0, u32::from_ne_bytes);
        let in_stack = |at: usize| half(offset_of!(StackCopy, stack) + at);
        let (len, end) = (in_stack(offset_of!(Stack, len)) as usize, in_stack(offset_of!(Stack, end)));
        let guessed = in_stack(offset_of!(Stack, guessed)) != 0;
        let (sp, fp) = (word(offset_of!(StackCopy, sp)), word(offset_of!(StackCopy, fp)));
        let undescribed = word(offset_of!(StackCopy, undescribed)) != 0;
        let sampled = word(offset_of!(StackCopy, sampled)) != 0;
        let pages = word(offset_of!(StackCopy, pages));
        ensure!(len <= MAX_FRAMES && pages <= COPY_PAGES as u64, "a copy of {len} frames and {pages} pages");
        let first = offset_of!(StackCopy, stack) + offset_of!(Stack, frames);
        let frames = (0..len).map(|index| word(first + 8 * index)).collect();
        let mut memory = vec![0; pages as usize * COPY_PAGE_BYTES];
        self.0.read_exact(&mut memory).context("failed to read a copy")?;
        Ok(Some(Copy { frames, end, guessed, undescribed, sampled, sp, fp, memory }))
    }
}

/// Makes a pipe with a name, in the place of what is there.
pub fn make_pipe(path: &Path) -> anyhow::Result<()> {
    let _ = fs::remove_file(path);
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a string that ends with zero.
    if unsafe { libc::mkfifo(name.as_ptr(), 0o600) } != 0 {
        bail!("failed to make the pipe {}: {}", path.display(), std::io::Error::last_os_error());
    }
    Ok(())
}

//! The protocol of `victim.h`, for victims in Rust. Lines are formatted on the stack, and sent and received without buffers
//! of the library's own, so that every block is a row's.

use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Read as _, Write as _};
use std::os::fd::AsFd as _;

/// The test's end of the pipes.
pub struct Wire {
    input: File,
    output: File,
}

impl Wire {
    /// Standard input and output.
    pub fn open() -> io::Result<Wire> {
        let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Wire { input, output })
    }

    /// A line.
    pub fn say(&mut self, text: fmt::Arguments) -> io::Result<()> {
        let mut line = [0; 256];
        let mut cursor = Cursor::new(&mut line[..]);
        cursor.write_fmt(text)?;
        let length = usize::try_from(cursor.position()).map_err(io::Error::other)?;
        self.output.write_all(&line[..length])
    }

    /// What functions of a name that is like `pattern` hold.
    pub fn tell(&mut self, pattern: fmt::Arguments, blocks: usize, bytes: usize) -> io::Result<()> {
        self.say(format_args!("truth {pattern} blocks={blocks} bytes={bytes}\n"))
    }

    /// The next command; `None` for `quit` and at the end.
    pub fn next<'line>(&mut self, line: &'line mut [u8; 64]) -> io::Result<Option<&'line [u8]>> {
        let mut length = 0;
        let mut byte = [0];
        while self.input.read(&mut byte)? == 1 {
            if byte[0] == b'\n' {
                let command = &line[..length];
                return Ok((command != b"quit").then_some(command));
            }
            *line.get_mut(length).ok_or(io::ErrorKind::InvalidInput)? = byte[0];
            length += 1;
        }
        Ok(None)
    }
}

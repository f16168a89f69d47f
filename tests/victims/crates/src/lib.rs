//! What the victims share: the protocol of `victim.h`, and the ways in which Rust takes a block.
//!
//! Lines are formatted on the stack, and sent and received without buffers of the library's own, so that
//! every block is a row's. The compiler must not know how often a loop goes round: each is one site.

use std::ffi::c_void;
use std::fs::File;
use std::hint::black_box;
use std::io::{self, Cursor, Read as _, Write as _};
use std::mem;
use std::os::fd::AsFd as _;

unsafe extern "C" {
    /// glibc's: neither crate takes its name.
    fn malloc(bytes: usize) -> *mut c_void;
    fn free(block: *mut c_void);
}

/// The test's end of the pipes.
pub struct Wire {
    input: File,
    output: File,
}

impl Wire {
    fn open() -> io::Result<Wire> {
        let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Wire { input, output })
    }

    fn say(&mut self, text: std::fmt::Arguments) -> io::Result<()> {
        let mut line = [0; 256];
        let mut cursor = Cursor::new(&mut line[..]);
        cursor.write_fmt(text)?;
        let length = usize::try_from(cursor.position()).map_err(io::Error::other)?;
        self.output.write_all(&line[..length])
    }

    /// What the function `row` holds.
    pub fn tell(&mut self, row: &str, blocks: usize, bytes: usize) -> io::Result<()> {
        self.say(format_args!("truth *{row} blocks={blocks} bytes={bytes}\n"))
    }

    /// A number that is no truth about blocks.
    pub fn note(&mut self, name: &str, number: usize) -> io::Result<()> {
        self.say(format_args!("truth note {name}={number}\n"))
    }

    /// The next command; `None` for `quit` and at the end.
    fn next<'line>(&mut self, line: &'line mut [u8; 64]) -> io::Result<Option<&'line [u8]>> {
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

#[inline(never)]
fn leak_boxes() {
    for _ in 0..black_box(100) {
        mem::forget(black_box(Box::new([1_u8; 64])));
    }
}

/// Grows by doubling: 8, 16, ... 1,024 bytes, by realloc.
#[inline(never)]
fn grow_a_vector() {
    let mut bytes = Vec::new();
    for number in 0..1000_u16 {
        bytes.push(number.to_le_bytes()[0]);
    }
    assert_eq!(bytes.capacity(), 1024);
    mem::forget(black_box(bytes));
}

#[inline(never)]
fn leak_zeros() {
    for _ in 0..black_box(7) {
        mem::forget(black_box(vec![0_u8; 100_000]));
    }
}

/// Above the alignment that every block has.
#[inline(never)]
fn leak_aligned() {
    #[repr(align(64))]
    struct Line([u8; 128]);
    for _ in 0..black_box(9) {
        let line = Box::new(Line([3; 128]));
        black_box(line.0[5]);
        mem::forget(black_box(line));
    }
}

#[inline(never)]
fn drop_everything() {
    drop(black_box(Box::new([0_u8; 300])));
    drop(black_box("gone".repeat(20)));
}

/// As C code in the same program does.
#[inline(never)]
fn leak_from_the_c_library() {
    for _ in 0..black_box(30) {
        // SAFETY: malloc takes a number.
        black_box(unsafe { malloc(77) });
    }
    // SAFETY: the block was just given out, and nobody else has it.
    unsafe { free(black_box(malloc(78))) };
}

fn rows(wire: &mut Wire) -> io::Result<()> {
    leak_boxes();
    wire.tell("leak_boxes", 100, 6400)?;
    grow_a_vector();
    wire.tell("grow_a_vector", 1, 1024)?;
    leak_zeros();
    wire.tell("leak_zeros", 7, 700_000)?;
    leak_aligned();
    wire.tell("leak_aligned", 9, 9 * 128)?;
    drop_everything();
    wire.tell("drop_everything", 0, 0)?;
    leak_from_the_c_library();
    wire.tell("leak_from_the_c_library", 30, 30 * 77)
}

/// Speaks with the test until it says `quit`. `rows` takes a block in each way; anything else is `more`'s.
///
/// # Errors
/// When the test is gone, or asks for what there is not.
pub fn serve(more: impl Fn(&[u8], &mut Wire) -> io::Result<()>) -> io::Result<()> {
    let mut wire = Wire::open()?;
    wire.say(format_args!("ready {}\n", std::process::id()))?;
    let mut line = [0; 64];
    while let Some(command) = wire.next(&mut line)? {
        if command == b"rows" {
            rows(&mut wire)?
        } else {
            more(command, &mut wire)?
        }
        wire.say(format_args!("done\n"))?;
    }
    Ok(())
}

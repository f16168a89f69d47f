//! What the victims share: the ways in which Rust takes a block. The compiler must not know how often a loop goes round:
//! each is one site.

#[path = "../../wire.rs"]
mod wire;

use std::ffi::c_void;
use std::hint::black_box;
use std::io;
use std::mem;

pub use wire::Wire;

unsafe extern "C" {
    /// glibc's: neither crate takes its name.
    fn malloc(bytes: usize) -> *mut c_void;
    fn free(block: *mut c_void);
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
    wire.tell(format_args!("*leak_boxes"), 100, 6400)?;
    grow_a_vector();
    wire.tell(format_args!("*grow_a_vector"), 1, 1024)?;
    leak_zeros();
    wire.tell(format_args!("*leak_zeros"), 7, 700_000)?;
    leak_aligned();
    wire.tell(format_args!("*leak_aligned"), 9, 9 * 128)?;
    drop_everything();
    wire.tell(format_args!("*drop_everything"), 0, 0)?;
    leak_from_the_c_library();
    wire.tell(format_args!("*leak_from_the_c_library"), 30, 30 * 77)
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

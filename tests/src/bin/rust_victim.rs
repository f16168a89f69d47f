//! A Rust victim: every way in which Rust takes a block, with its truth.
//!
//! `rows` makes each call.

#[path = "../../victims/wire.rs"]
mod wire;

use std::hint::black_box;
use std::io;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;

use wire::Wire;

#[inline(never)]
fn leak_boxes() {
    for _ in 0..100 {
        mem::forget(black_box(Box::new([1_u8; 64])));
    }
}

#[inline(never)]
fn leak_vectors() {
    for _ in 0..10 {
        mem::forget(black_box(Vec::<u32>::with_capacity(250)));
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
fn shrink_a_vector() {
    let mut bytes = Vec::with_capacity(1000);
    bytes.extend_from_slice(b"ten bytes.");
    bytes.shrink_to_fit();
    assert_eq!(bytes.capacity(), 10);
    mem::forget(black_box(bytes));
}

/// Zeroed memory comes from calloc.
#[inline(never)]
fn leak_zeros() {
    mem::forget(black_box(vec![0_u8; 100_000]));
}

#[inline(never)]
fn leak_texts() {
    for length in 30..50 {
        mem::forget(black_box("x".repeat(length)));
    }
}

/// Two counts of 8 bytes, then the value.
#[inline(never)]
fn leak_arcs() {
    for _ in 0..8 {
        mem::forget(black_box(Arc::new([7_u64; 4])));
    }
}

/// A cycle of two that nothing reaches.
#[inline(never)]
fn leak_a_cycle() {
    struct Knot {
        other: std::cell::RefCell<Option<Rc<Knot>>>,
    }
    let one = Rc::new(Knot { other: None.into() });
    let two = Rc::new(Knot { other: Some(one.clone()).into() });
    *one.other.borrow_mut() = Some(two);
    black_box(&one);
}

#[inline(never)]
fn leak_closures() {
    for number in 0..5_u64 {
        let captured = [number; 3];
        let closure: Box<dyn Fn() -> u64> = Box::new(move || captured.iter().sum());
        mem::forget(black_box(closure));
    }
}

/// An alignment above malloc's own: posix_memalign or aligned_alloc.
#[inline(never)]
fn leak_aligned() {
    #[repr(align(64))]
    struct Line([u8; 128]);
    let line = Box::new(Line([3; 128]));
    black_box(line.0[5]);
    mem::forget(black_box(line));
}

#[inline(never)]
fn generic_leak<Element: Default>() {
    mem::forget(black_box(Box::new(Element::default())));
}

#[inline(never)]
fn drop_everything() {
    drop(black_box(Box::new([0_u8; 300])));
    drop(black_box(vec![Arc::new(1), Arc::new(2)]));
    drop(black_box("gone".repeat(20)));
}

fn rows(wire: &mut Wire) -> io::Result<()> {
    leak_boxes();
    wire.tell(format_args!("*rust_victim::leak_boxes*"), 100, 6400)?;
    leak_vectors();
    wire.tell(format_args!("*rust_victim::leak_vectors*"), 10, 10_000)?;
    grow_a_vector();
    wire.tell(format_args!("*rust_victim::grow_a_vector*"), 1, 1024)?;
    shrink_a_vector();
    wire.tell(format_args!("*rust_victim::shrink_a_vector*"), 1, 10)?;
    leak_zeros();
    wire.tell(format_args!("*rust_victim::leak_zeros*"), 1, 100_000)?;
    leak_texts();
    wire.tell(format_args!("*rust_victim::leak_texts*"), 20, (30..50).sum())?;
    leak_arcs();
    wire.tell(format_args!("*rust_victim::leak_arcs*"), 8, 8 * 48)?;
    leak_a_cycle();
    wire.tell(format_args!("*rust_victim::leak_a_cycle*"), 2, 2 * 32)?;
    leak_closures();
    wire.tell(format_args!("*rust_victim::leak_closures*"), 5, 5 * 24)?;
    leak_aligned();
    wire.tell(format_args!("*rust_victim::leak_aligned*"), 1, 128)?;
    generic_leak::<[u64; 16]>();
    wire.tell(format_args!("*rust_victim::generic_leak*"), 1, 128)?;
    drop_everything();
    wire.tell(format_args!("*rust_victim::drop_everything*"), 0, 0)
}

fn main() -> io::Result<()> {
    let mut wire = Wire::open()?;
    wire.say(format_args!("ready {}\n", std::process::id()))?;
    let mut line = [0; 64];
    while let Some(command) = wire.next(&mut line)? {
        if command != b"rows" {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        rows(&mut wire)?;
        wire.say(format_args!("done\n"))?;
    }
    Ok(())
}

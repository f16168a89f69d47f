//! A Rust program whose allocator is mimalloc.

use std::io;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> io::Result<()> {
    crate_victims::serve(|_, _| Err(io::ErrorKind::InvalidInput.into()))
}

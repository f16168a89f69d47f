//! Which process, which mapped objects, which allocator functions in them.
//!
//! The modules stand in reading order. Everything read here (names, paths, ELF files, `/proc`) was written
//! by programs that are not trusted: sizes are bounded, nothing is mapped into our own memory (a file cut
//! short by its owner would end us with SIGBUS), and no special file is ever opened.

pub mod discovery;
pub mod elf;
pub mod family;
mod forward;
pub mod group;
pub mod kernel;
pub mod leave;
pub mod maps;
pub mod near;
pub mod needed;
pub mod object;
pub mod process;
pub mod seccomp;
pub mod space;
pub mod symbols;
#[cfg(test)]
pub(crate) mod testing;
mod text;

//! Tests on real programs, compiled when the tests run.

mod debug_files;
mod hostile;
mod names;
mod unnamed;
mod victim;

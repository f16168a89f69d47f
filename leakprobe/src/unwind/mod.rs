//! How stacks are unwound: each mapped object's call frame information, compiled into tables that the BPF programs look
//! addresses up in.

pub mod allowance;
pub mod cfi;
pub mod object;
pub mod sections;
pub mod table;
pub mod walk;
#[cfg(test)]
mod tests;

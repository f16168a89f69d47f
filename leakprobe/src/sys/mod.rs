//! The kernel boundary that aya does not cover: a few operations of bpf(2) that it has no call for, and
//! signals. All of the tool's `unsafe` code is here, behind safe functions.

pub mod bpf;
pub mod clock;
pub mod ready;
pub mod signals;
pub mod tracepoint;

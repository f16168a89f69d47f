//! The kernel boundary that aya does not cover: a few operations of bpf(2) that it has no call for, and
//! signals. `unsafe` code is here, in `launch` (ptrace) and in `target` (pidfds), behind safe functions.

pub mod bpf;
pub mod clock;
pub mod limits;
pub mod pages;
pub mod perf;
pub mod ready;
pub mod signals;
pub mod tracepoint;

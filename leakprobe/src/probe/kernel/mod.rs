//! Probes on the kernel's own allocators (`--kernel`).

pub mod attach;
pub mod load;
pub mod maps;

//! Guests with other kernels and processors.

pub mod cross;

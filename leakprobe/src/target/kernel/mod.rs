//! The kernel as a target: which tracepoints it has and of what shape, its types, its symbols, its caches.

pub mod btf;
pub mod format;
pub mod kallsyms;
pub mod meminfo;
pub mod pattern;
pub mod shape;
pub mod slabinfo;

//! Groups of processes, whose members come and go.

pub mod cgroup;
pub mod names;
pub mod tree;

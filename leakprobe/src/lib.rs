//! A live leak profiler: records the outstanding allocations of a running process with eBPF, and names the
//! source lines that own the longest-lived survivors.
//!
//! The modules stand in the order in which the data flows; ARCHITECTURE.md is the map.

pub mod analysis;
pub mod cli;
pub mod drain;
pub mod lifetime;
pub mod probe;
pub mod report;
pub mod symbolize;
pub mod sys;
pub mod target;

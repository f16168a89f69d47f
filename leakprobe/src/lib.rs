//! A live leak profiler: records the outstanding allocations of a running process with eBPF, and names the
//! source lines that own the longest-lived survivors.
//!
//! The modules stand in the order in which the data flows; ARCHITECTURE.md is the map.

pub mod cli;
pub mod session;

pub mod target;
pub mod unwind;
pub mod probe;
pub mod launch;
pub mod drain;
pub mod lifetime;
pub mod analysis;
pub mod symbolize;
pub mod report;

pub mod demo;
pub mod doctor;
pub mod sys;

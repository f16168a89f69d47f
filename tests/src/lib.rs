//! What the live tests share: victims of known truth, leakprobe at work on them, and its reports.
//!
//! A live test starts a [`Victim`](victim::Victim), attaches a [`Probe`](probe::Probe), lets the victim go
//! through named phases, and compares what the victim says it did ([`Truth`](truth::Truth)) with what
//! leakprobe reports ([`Report`](report::Report)): to the block and to the byte. Whatever goes wrong panics,
//! with what was attempted and leakprobe's own words; nothing waits for ever.

pub mod cgroup;
pub mod compile;
pub mod container;
pub mod elf32;
pub mod pace;
pub mod skip;
pub mod victim;

pub mod probe;
pub mod report;
pub mod run;
pub mod terminal;
pub mod text;
pub mod kernel;
pub mod kobjects;
pub mod module;
pub mod tracer;

pub mod glob;
pub mod truth;
pub mod stacks;
pub mod hostile;

//! Live tests: leakprobe on real processes of known truth, compared to the block and to the byte.
//!
//! They need root and a built leakprobe: `sudo cargo xtask test`. They are made to run one at a time
//! (`--test-threads=1`): some measure nothing else than that leakprobe keeps up with a busy target.

mod allocators;
mod attach;
mod bad_input;
mod calls;
mod churn;
mod command;
mod containers;
mod daemons;
mod demo;
mod doctor;
mod events;
mod follow;
mod groups;
mod jumps;
mod kernel;
mod kernel_input;
mod kernel_leaks;
mod languages;
mod life;
mod limits;
mod mappings;
mod mismatches;
mod module;
mod objects;
mod operators;
mod rounds;
mod services;
mod terminal;
mod threads;
mod triggers;
mod unwind;

use leakprobe_tests::report::Report;

/// The last of a session's reports.
fn last(reports: &[Report]) -> &Report {
    reports.last().expect("a session ends with a report")
}

//! Which probes to put where, and putting them there.

pub mod plan;

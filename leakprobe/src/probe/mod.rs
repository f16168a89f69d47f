//! Which probes to put where, and putting them there.

pub mod assign;
pub mod attach;
pub mod cookies;
pub mod features;
pub mod inherited;
pub mod kernel;
pub mod load;
pub mod maps;
pub mod plan;
pub mod ranges;
pub mod tables;

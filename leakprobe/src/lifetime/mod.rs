//! How long blocks and ranges live. Pure: what time it is comes in as a number.

pub mod ages;
pub mod ranges;

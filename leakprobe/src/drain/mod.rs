//! Reading the maps, once an interval.

pub mod batch;
pub mod decode;
pub mod kernel;
pub mod snapshot;

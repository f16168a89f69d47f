//! From snapshots to sites with growth and ages. Pure: no I/O, no clock.

pub mod sites;

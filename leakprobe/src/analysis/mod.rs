//! From snapshots to sites with growth and ages, and to the ledger. Pure: no I/O, no clock.

pub mod balance;
pub mod caches;
pub mod sites;

//! The report, as plain data and as text or JSON.

pub mod model;

pub mod escape;
pub mod json;
pub mod ledger;
pub mod text;
pub mod units;

#[cfg(test)]
mod sample;
#[cfg(test)]
mod schema_tests;

//! The report, as plain data and as text or JSON.

pub mod model;

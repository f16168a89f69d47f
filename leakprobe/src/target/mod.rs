//! Which process, which mapped objects, which allocator functions in them.

pub mod space;

//! The snapshot: everything that `report` needs, in one file that explains itself.
//!
//! [`model`] is what a snapshot says; `write` and `read` turn it into a zstd file of versioned, checksummed sections
//! and back. Nothing in it refers to the machine that it was taken on but module paths and build-ids.

pub mod model;

pub use model::*;

//! From a cut of the table to a file: copied, built, named, written.

pub mod build;
pub mod cut;
pub mod groups;
pub mod names;
pub mod replaced;
mod threads;
pub mod write;

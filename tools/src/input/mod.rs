//! Snapshots as they are read: one process, or a tree of processes.

pub mod ages;
pub mod copies;
pub mod load;
pub mod moment;
pub mod past;
pub mod time;
pub mod tree;

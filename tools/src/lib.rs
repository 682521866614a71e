//! Library of `report`: turns snapshots into statistics, diffs and exports.
//!
//! - Offline: reads snapshot files, and the modules and debug files named in a snapshot if present.
//! - tracemalloc's terms with tracemalloc's meaning: grouping, cumulation, filters and sort orders
//!   are CPython's. The tests compare results with CPython's.
//! - Never changes a snapshot. No snapshot makes the library panic, or use memory out of
//!   proportion.
//!
//! Order of work:
//!
//! | Step | Modules |
//! | --- | --- |
//! | read a process, or a tree of processes | [`load`], [`tree`] |
//! | look at a domain | [`view`] |
//! | name the frames | [`symbols`], [`frames`] |
//! | filter | [`filter`] |
//! | group | [`statistics`], [`diff`] |
//! | show | [`render`], [`export`] |
#![forbid(unsafe_code)]

pub mod blame;
pub mod cli;
pub mod copies;
pub mod diff;
pub mod estimate;
pub mod export;
pub mod filter;
mod foreign;
pub mod frames;
pub mod glob;
pub mod load;
pub mod output;
pub mod render;
pub mod report;
pub mod statistics;
pub mod symbols;
pub mod tree;
pub mod view;

//! Library of `report`: turns snapshots into statistics, diffs and exports.
//!
//! - Offline: reads snapshot files, and the modules and debug files named in a snapshot if present.
//!   Only [`debuginfod`] uses the network, when asked to.
//! - tracemalloc's terms with tracemalloc's meaning: grouping, cumulation, filters and sort orders
//!   are CPython's. The tests compare results with CPython's.
//! - Never changes a snapshot. No snapshot makes the library panic, or use memory out of
//!   proportion.
//!
//! Order of work:
//!
//! | Step | Modules |
//! | --- | --- |
//! | read the user's settings | [`settings`] |
//! | read a process, or a tree of processes | [`input`] |
//! | look at a domain | [`query::view`] |
//! | name the frames | [`symbols`], [`frames`] |
//! | filter | [`query::filter`] |
//! | blame, group, compare | [`query::blame`], [`query::statistics`], [`query::diff`] |
//! | make a tree | [`query::tree`] |
//! | show | [`render`], [`export`] |
#![forbid(unsafe_code)]

pub mod cli;
pub mod debuginfod;
pub mod export;
pub mod frames;
pub mod input;
pub mod output;
pub mod query;
pub mod render;
pub mod settings;

pub use heapline_symbols as symbols;
pub use heapline_symbols::glob;

//! `report`'s library: what a snapshot says, as statistics, diffs and exports.
//!
//! Works offline: it reads snapshot files, and the modules and debug files that they name where those are there. It
//! speaks tracemalloc's words with tracemalloc's meaning: grouping, cumulation, filters and sort orders are CPython's,
//! and the tests compare them with CPython's. The order of work is that of the modules: read (one process, or
//! a [`tree`]), look at a domain
//! ([`view`]), name the frames ([`symbols`], [`frames`]), [`filter`], group ([`statistics`], [`diff`]), show ([`render`],
//! [`export`]).
//!
//! It never changes a snapshot, and nothing in one makes it panic or use memory out of proportion.
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

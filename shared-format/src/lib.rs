//! Formats and code shared by the two sides of Heapline.
//!
//! The target writes and the aggregator reads. Neither side trusts a byte of the other. This crate
//! holds the shared layouts, and the code needed in the same form on both sides:
//!
//! - [`arena`]: the memory file mapped by both sides: header, thread slots, segment pool.
//! - [`ring`]: a single-producer single-consumer ring for each thread, made of segments of the
//!   pool.
//! - [`inject`]: calls between the aggregator and a collector injected into a running process.
//! - [`event`]: the records in a ring. Parts of records: [`code`] describes a Python code object,
//!   [`query`] a question of the target, [`mapping`] a change of the address space.
//! - [`loader`]: the known loaders, and the command line of a program started through a loader.
//! - [`arch`]: what both sides know of the processor.
//! - [`tree`]: the message with which a child process reports to the aggregator.
//! - `snapshot` (feature `snapshot`): the file read by `report`.
//!
//! Guarantees:
//!
//! - Every layout is fixed (`repr(C)`, const assertions, golden bytes in the tests) and versioned.
//! - A decoder never reads outside of the given bytes, and refuses unknown content.
//! - With the `snapshot` feature off, the crate is `no_std` and allocates nothing, because the code
//!   then runs inside `malloc`.
//!
//! Not in this crate: system calls, files, threads. The caller decides who maps the arena and who
//! waits for whom.
#![cfg_attr(not(feature = "snapshot"), no_std)]

pub mod arch;
pub mod arena;
pub mod code;
pub mod event;
pub mod inject;
pub mod loader;
pub mod mapping;
pub mod query;
pub mod ring;
#[cfg(feature = "snapshot")]
pub mod snapshot;
#[cfg(feature = "snapshot")]
pub mod text;
pub mod tree;
pub mod word;

/// Atomics of the shared memory. Under `--cfg loom` these are loom's, so that the model test of the
/// ring runs the real code.
pub(crate) mod sync {
    #[cfg(not(loom))]
    pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
    #[cfg(loom)]
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}

//! What the two sides of Heapline share.
//!
//! The target writes, the aggregator reads, and neither trusts a byte of the other's. This crate holds the layouts
//! that they agree on and the code that must be the same on both sides:
//!
//! - [`arena`]: the memory file that both map: header, thread slots, segment pool;
//! - [`ring`]: one single-producer single-consumer ring per thread, made of segments of the pool;
//! - [`inject`]: what is said when a collector is brought into a running process;
//! - [`event`]: the records in a ring; [`code`]: what one of them says of a Python code object; [`query`]: what another asks;
//!   [`mapping`]: how another changed the address space;
//! - [`loader`]: what the command line of the loader says, where a program is started through that;
//! - [`tree`]: how a child process reports itself;
//! - `snapshot` (feature `snapshot`): the file that `report` reads.
//!
//! Guarantees: every layout is fixed (`repr(C)`, const assertions, golden bytes in the tests) and versioned; a
//! decoder never reads outside of what it was given, and refuses what it does not know; with the `snapshot` feature
//! off the crate is `no_std` and allocates nothing, since it then runs inside `malloc`.
//!
//! Not here: system calls, files, threads. Who maps the arena and who waits for whom is the caller's matter.
#![cfg_attr(not(feature = "snapshot"), no_std)]

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

/// The atomics of the shared memory; loom's under `--cfg loom`, so that the ring's model test runs the real code.
pub(crate) mod sync {
    #[cfg(not(loom))]
    pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
    #[cfg(loom)]
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}

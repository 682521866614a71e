//! The aggregator: all parts of Heapline outside of the target.
//!
//! ```text
//! arena ==> drain thread ==queue==> table thread: order -> table
//!                                       ^ questions, answered at a watermark
//!           control socket, run, attach +----> cut -> snapshot file
//! ```
//!
//! The table holds live blocks, totals, stacks, modules and threads.
//!
//! Guarantees:
//!
//! - Data from the arena, a socket or `/proc` is checked before use.
//! - Every loss and every contradiction is counted.
//! - The target waits only for room in the rings. Only a scan for leaks stops the target, on wish.
//!
//! Not here: statistics, and code that runs inside the target.

pub mod arch;
pub mod attach;
pub mod base;
pub mod cli;
pub mod control;
pub mod drain;
pub mod history;
pub mod job;
pub mod launch;
pub mod leaks;
pub mod names;
pub mod process;
pub mod questions;
pub mod session;
pub mod snapshot;
pub mod table;

pub mod tree;
pub mod unseen;

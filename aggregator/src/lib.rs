//! The aggregator: everything of Heapline that does not run inside the target.
//!
//! ```text
//! arena ==> drain thread ==queue==> table thread: order -> table (live, totals, stacks, modules, threads)
//!                                       ^ questions, answered at a watermark
//!           control socket, run, attach +----> cut -> snapshot file
//! ```
//!
//! Guarantees: nothing read from the arena, a socket or `/proc` is believed before it was checked; every loss and
//! contradiction is counted; the target is never stopped, and waits only for room in its rings.
//!
//! Not here: symbols (`report` resolves them), statistics, anything that runs inside the target.

pub mod attach;
pub mod base;
pub mod cli;
pub mod control;
pub mod drain;
pub mod job;
pub mod launch;
pub mod process;
pub mod questions;
pub mod session;
pub mod snapshot;
pub mod table;

pub mod tree;
pub mod unseen;

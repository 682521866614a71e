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

pub mod archive;
pub mod arena_map;
pub mod attach;
pub mod backlog;
pub mod cli;
pub mod clock;
pub mod collector;
pub mod contradiction;
pub mod control;
pub mod counted;
pub mod cut;
pub mod drain;
pub mod elf;
pub mod format;
pub mod heirs;
pub mod job;
pub mod keeper;
pub mod launch;
pub mod mailbox;
pub mod order;
pub mod output;
pub mod outputs;
mod prefetch;
pub mod private_dir;
pub mod procfs;
pub mod queue;
mod rate;
pub mod session;
pub mod snapshot;
mod sys;
pub mod table;
pub mod tracer;
pub mod tree;
pub mod unseen;

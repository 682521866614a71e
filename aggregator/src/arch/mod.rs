//! What the aggregator knows of the processor. One folder for each architecture has the same files:
//!
//! - `cache.rs`: hints to the cache.
//! - `errand.rs`: machine code and registers for the calls of a borrowed thread.
//! - `instructions.rs`: direct calls and jumps in code, and their change.
//! - `registers.rs`: the registers of a stopped thread.
//! - `signal_frame.rs`: the frame by which a thread gets its registers back.
//! - `system_calls.rs`: which system calls there are.
//!
//! `heapline_shared_format::arch` has what the collector knows too.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

//! What the collector knows of the processor. One folder for each architecture has the same files:
//!
//! - `entries.rs`: code in front of hooks, which tells a hook where the hook was entered.
//! - `flagged_call.rs`: a flag and a call in the code of a function.
//! - `registers.rs`: the registers of a frame, and those of an interrupted function.
//! - `stack.rs`: the stack pointer, calls on another stack, the way back from a panic.
//! - `system_calls.rs`: numbers of system calls, and the call.
//! - `thread_words.rs`: words in thread-local storage.
//! - `unwinding.rs`: from unwind tables to a rule, and from a frame by a rule to the caller.
//!
//! `heapline_shared_format::arch` has what the aggregator knows too. `build.rs` compiles the
//! collector for the architectures that have a folder here. `preload/src/arch/` has the entries of
//! the exported symbols.

pub mod rule;
#[cfg(target_arch = "x86_64")]
#[macro_use]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

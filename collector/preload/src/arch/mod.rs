//! What the exported symbols know of the processor. One folder for each architecture has the same
//! files:
//!
//! - `direct.rs`: entries for direct calls of an allocator in the program itself.
//! - `entries.rs`: entries with arguments on the stack or in all registers, and entries that jump
//!   away.
//! - `memory.rs`: the functions called by the compiler on its own.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;

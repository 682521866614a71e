//! What the collector and the aggregator both know of the processor. One folder for each
//! architecture has the same files:
//!
//! - `counter.rs`: the counter behind stamps.
//! - `elf.rs`: the machine's number in object files, kinds of relocations, names of loaders, bits
//!   of an address.
//! - `epilogue.rs`: the way from a frame to its caller, read from the machine code.
//! - `instructions.rs`: calls and jumps, as bytes.
//! - `registers.rs`: DWARF numbers of registers.
//!
//! The collector, its libraries and the aggregator have such folders of their own (`src/arch/`). A
//! port to another architecture adds a folder to each, and a line to each `arch/mod.rs`.

pub mod way;
#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

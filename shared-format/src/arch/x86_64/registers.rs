//! Registers of a frame, by DWARF number.

/// Number of registers.
pub const COUNT: usize = 17;
/// The base pointer, rbp.
pub const BP: usize = 6;
/// The stack pointer, rsp.
pub const SP: usize = 7;
/// The return address; of the innermost function the current instruction.
pub const RA: usize = 16;

//! x86-64.

pub mod counter;
pub mod elf;
pub mod epilogue;
pub mod instructions;
pub mod registers;

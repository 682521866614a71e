//! x86-64.

pub mod cache;
pub mod errand;
pub mod instructions;
pub mod registers;
pub mod signal_frame;
pub mod system_calls;

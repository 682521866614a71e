//! x86-64.

#[macro_use]
pub mod entries;
pub mod flagged_call;
pub mod registers;
pub mod stack;
pub mod system_calls;
pub mod thread_words;
pub mod unwinding;

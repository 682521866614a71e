//! What the end-to-end tests share with the fuzzer.
//!
//! The tests themselves are in `tests/`: `e2e` runs the built programs on victims, `hostile` runs the functions of
//! [`hostile`] on seeded bytes for a bounded time. `fuzz/` runs the same functions under libFuzzer.

pub mod hostile;

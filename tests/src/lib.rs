//! Code shared by the tests and the fuzzer.
//!
//! The tests are in `tests/`: `e2e` runs the built programs on victims; `hostile` runs the
//! functions of [`hostile`] on seeded bytes for a bounded time. `fuzz/` runs the same functions
//! under libFuzzer.

pub mod hostile;

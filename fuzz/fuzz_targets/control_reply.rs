//! Fuzzes `heapline_tests::hostile::control_reply`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heapline_tests::hostile::control_reply(bytes));

//! Fuzzes `heapline_tests::hostile::report`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heapline_tests::hostile::report(bytes));

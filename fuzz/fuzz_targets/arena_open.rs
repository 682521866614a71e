//! Fuzzes `heapline_tests::hostile::arena_open`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heapline_tests::hostile::arena_open(bytes));

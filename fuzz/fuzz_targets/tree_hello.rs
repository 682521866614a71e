//! Fuzzes `heapline_tests::hostile::tree_hello`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heapline_tests::hostile::tree_hello(bytes));

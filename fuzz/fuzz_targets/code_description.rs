//! Fuzzes `heapline_tests::hostile::code_description`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heapline_tests::hostile::code_description(bytes));

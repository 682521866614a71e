//! Fuzzes `heapline_tests::hostile::generated_code`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heapline_tests::hostile::generated_code(bytes));

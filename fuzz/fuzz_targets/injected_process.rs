//! Fuzzes `heapline_tests::hostile::injected_process`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heapline_tests::hostile::injected_process(bytes));

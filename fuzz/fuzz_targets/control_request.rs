//! Fuzzes `heapline_tests::hostile::control_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heapline_tests::hostile::control_request(bytes));

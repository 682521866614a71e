//! Fuzzes `heapline_tests::hostile::event_decode`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heapline_tests::hostile::event_decode(bytes));

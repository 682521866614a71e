//! Fuzzes `heapline_tests::hostile::ring_drain`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heapline_tests::hostile::ring_drain(bytes));

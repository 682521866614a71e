//! Fuzzes `heapline_tests::hostile::snapshot_payload`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heapline_tests::hostile::snapshot_payload(bytes));

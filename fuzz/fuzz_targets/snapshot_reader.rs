//! Fuzzes `heapline_tests::hostile::snapshot_reader`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heapline_tests::hostile::snapshot_reader(bytes));

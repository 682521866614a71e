//! Fuzzes `heapline_tests::hostile::ring_drain_while_scribbled`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heapline_tests::hostile::ring_drain_while_scribbled(bytes));

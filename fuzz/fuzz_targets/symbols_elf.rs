//! Fuzzes `heapline_tests::hostile::symbols_elf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heapline_tests::hostile::symbols_elf(bytes));

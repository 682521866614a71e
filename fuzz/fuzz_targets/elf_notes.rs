//! Fuzzes `heapline_tests::hostile::elf_notes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heapline_tests::hostile::elf_notes(bytes));

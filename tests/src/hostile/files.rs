//! ELF and DWARF of programs that are somebody else's, and entries of `report`'s cache.

use heapline_aggregator::target::elf;
use heapline_collector::platform::elf::find_build_id;
use heapline_tools::symbols;
use std::io::Cursor;

/// A program that is to be traced, or is.
pub fn elf_program(bytes: &[u8]) {
    let _ = elf::examine_content(Cursor::new(bytes));
}

/// Notes of a loaded object.
pub fn elf_notes(bytes: &[u8]) {
    if let Some(id) = find_build_id(bytes) {
        assert!(id.len() <= bytes.len());
    }
}

/// A program or a debug file that a snapshot names.
pub fn symbols_elf(bytes: &[u8]) {
    let _ = symbols::in_elf(bytes, &ADDRESSES);
}

/// An entry of the cache.
pub fn symbols_cache(bytes: &[u8]) {
    let mut entry = bytes.to_vec();
    symbols::mend_entry(&mut entry);
    let _ = symbols::in_entry(entry, &ADDRESSES);
}

const ADDRESSES: [u64; 6] = [0, 0x1129, 0x1150, 0x40_1129, 1 << 40, u64::MAX];

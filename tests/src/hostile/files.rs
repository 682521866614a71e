//! ELF and DWARF content of foreign programs, and entries of the cache of `report`.

use heapline_aggregator::names::jit;
use heapline_aggregator::process::elf;
use heapline_collector::platform::elf::find_build_id;
use heapline_tools::symbols;
use std::io::Cursor;

/// Examines a program as the aggregator does before or during tracing.
pub fn elf_program(bytes: &[u8]) {
    let _ = elf::examine_content(Cursor::new(bytes));
}

/// Looks for a build-id in the notes of a loaded object. A found build-id lies within the notes.
pub fn elf_notes(bytes: &[u8]) {
    if let Some(id) = find_build_id(bytes) {
        assert!(id.len() <= bytes.len());
    }
}

/// Reads files in which a program names its generated code. Each function is named at its own
/// addresses only.
pub fn generated_code(bytes: &[u8]) {
    let code = jit::Code::parse(bytes, bytes);
    for address in ADDRESSES.into_iter().chain([0x5008, 0x8000]) {
        assert!(code.at(address).len() <= 1);
    }
}

/// Looks up symbols in a program or debug file named by a snapshot.
pub fn symbols_elf(bytes: &[u8]) {
    let _ = symbols::in_elf(bytes, &ADDRESSES);
}

/// Looks up symbols in a cache entry with a repaired checksum.
pub fn symbols_cache(bytes: &[u8]) {
    let mut entry = bytes.to_vec();
    symbols::mend_entry(&mut entry);
    let _ = symbols::in_entry(entry, &ADDRESSES);
}

const ADDRESSES: [u64; 6] = [0, 0x1129, 0x1150, 0x40_1129, 1 << 40, u64::MAX];

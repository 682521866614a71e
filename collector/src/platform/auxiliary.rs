//! The kernel's auxiliary vector: facts about the program, handed to the process at the start.

use core::ffi::c_ulong;
use core::ops::Range;

/// A program header, `Elf64_Phdr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ProgramHeader {
    pub kind: u32,
    pub flags: u32,
    pub offset: u64,
    pub address: u64,
    physical: u64,
    pub file_bytes: u64,
    pub memory_bytes: u64,
    align: u64,
}

impl ProgramHeader {
    /// A header of no kind.
    pub(crate) const NONE: ProgramHeader = ProgramHeader {
        kind: 0,
        flags: 0,
        offset: 0,
        address: 0,
        physical: 0,
        file_bytes: 0,
        memory_bytes: 0,
        align: 0,
    };

    /// Returns the range of addresses, in an object with this load bias.
    pub(crate) fn range(&self, bias: usize) -> Range<usize> {
        let start = bias.wrapping_add(usize::try_from(self.address).unwrap_or(0));
        start..start.wrapping_add(usize::try_from(self.memory_bytes).unwrap_or(0))
    }
}

// Kinds of program headers.
pub(crate) const PT_LOAD: u32 = 1;
pub(crate) const PT_DYNAMIC: u32 = 2;
pub(crate) const PT_INTERP: u32 = 3;
pub(crate) const PT_NOTE: u32 = 4;
pub(crate) const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
pub(crate) const PT_GNU_RELRO: u32 = 0x6474_e552;

unsafe extern "C" {
    fn getauxval(kind: c_ulong) -> c_ulong;
}

pub const AT_PHDR: c_ulong = 3;
const AT_PHENT: c_ulong = 4;
const AT_PHNUM: c_ulong = 5;
pub const AT_BASE: c_ulong = 7;
const AT_ENTRY: c_ulong = 9;
const MOST_HEADERS: usize = 4096 / size_of::<ProgramHeader>();

/// Returns an entry of the vector; 0 where there is none.
pub fn value(kind: c_ulong) -> usize {
    // SAFETY: `getauxval` takes any number.
    usize::try_from(unsafe { getauxval(kind) }).unwrap_or(0)
}

/// Returns the program headers of the program.
pub(crate) fn program_headers() -> Option<&'static [ProgramHeader]> {
    let [table, bytes, count] = [AT_PHDR, AT_PHENT, AT_PHNUM].map(value);
    let is_sound = table != 0 && table.is_multiple_of(8) && bytes == size_of::<ProgramHeader>();
    // SAFETY: the kernel has put the address of the program's headers there, and the headers stay
    // mapped.
    (is_sound && count <= MOST_HEADERS)
        .then(|| unsafe { core::slice::from_raw_parts(table as *const ProgramHeader, count) })
}

/// Returns the address of the first instruction of the program; 0 when not known.
pub fn entry() -> usize {
    value(AT_ENTRY)
}

//! The file of an object: finds the control function of a jemalloc under a prefix, by a table of
//! symbols.
//!
//! The file is read in pieces, never mapped, because a mapped file that is cut short ends the
//! process. Names are searched first, since an object without such names needs nothing else. Any
//! unexpected data means: no jemalloc.

use crate::platform::elf::Object;
use crate::platform::sys;
use crate::platform::sys::Program;

/// Bytes of a piece examined again with the next piece: the longest name recognised by the end.
const OVERLAP: usize = 64;
/// Greatest size of an examined table, in bytes.
const MOST_TABLE: usize = 128 << 20;

/// Bytes of the header of an ELF file.
const HEAD_BYTES: usize = 64;
const SECTION_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;

/// End of the name of the control function.
const CONTROL: &[u8] = b"mallctl";
/// Ends of further names of a jemalloc, all behind the prefix.
const OTHERS: [&[u8]; 4] = [b"mallctlbymib", b"mallctlnametomib", b"mallocx", b"sdallocx"];
/// A program with this symbol records the blocks of its allocator itself, through `Traced`.
const TRACED: &[u8] = b"heapline_embedded_state";

/// Returns the address of the control function, if an object contains exactly one jemalloc.
pub fn control(mapped: &Object, buffer: &mut [u8]) -> Option<usize> {
    let file = open(mapped)?;
    let (symbols, names) = tables(&file, buffer)?;
    let prefix = Prefix::find(&file, names, buffer)?;
    let places = Places::find(&file, names, &prefix, buffer)?;
    let function = places.control(&file, symbols, buffer)?;
    let address = mapped.bias.wrapping_add(function.address);
    is_code(mapped, &file, &function, address).then_some(address)
}

/// Opens the object's file. Returns `None` unless the header in the file equals the mapped header.
fn open(mapped: &Object) -> Option<Program> {
    let path = mapped.path();
    let path = if path.is_empty() { c"/proc/self/exe".as_ptr() } else { path.as_ptr().cast() };
    if mapped.program_headers().is_empty() {
        return None;
    }
    // SAFETY: the path is a C string, because the loader's names end with a zero byte.
    let file = unsafe { sys::open_program(path) }.filter(Program::is_regular)?;
    let mut head = [0; HEAD_BYTES];
    // SAFETY: an ELF header is mapped at `start`, as `program_headers` has just checked.
    let in_memory = unsafe { (mapped.start as *const [u8; HEAD_BYTES]).read() };
    let is_same = sys::read_at(&file, &mut head, 0) == HEAD_BYTES && head == in_memory;
    is_same.then_some(file)
}

/// Position of a table in the file.
#[derive(Clone, Copy)]
struct Table {
    offset: usize,
    bytes: usize,
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?)).ok()
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)).ok()
}

fn quarter(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?).into())
}

/// Returns the table of all symbols and the table of their names. A stripped file has only the
/// symbols for other objects.
fn tables(file: &Program, buffer: &mut [u8]) -> Option<(Table, Table)> {
    const SHT_SYMTAB: usize = 2;
    const SHT_DYNSYM: usize = 11;
    const SHT_STRTAB: usize = 3;
    let mut head = [0; HEAD_BYTES];
    if sys::read_at(file, &mut head, 0) != HEAD_BYTES {
        return None;
    }
    let (offset, size, count) = (word(&head, 40)?, quarter(&head, 58)?, quarter(&head, 60)?);
    let buffer = buffer.get_mut(..count * SECTION_BYTES)?;
    if size != SECTION_BYTES || sys::read_at(file, buffer, offset) != buffer.len() {
        return None;
    }
    let section = |index: usize| buffer.get(index * SECTION_BYTES..(index + 1) * SECTION_BYTES);
    let is_of = |section: &[u8], kind| half(section, 4) == Some(kind);
    let table = |section: &[u8]| {
        let table = Table { offset: word(section, 24)?, bytes: word(section, 32)? };
        (table.bytes <= MOST_TABLE && table.offset.checked_add(table.bytes).is_some()).then_some(table)
    };
    let first_of = |kind| (0..count).filter_map(section).find(|section| is_of(section, kind));
    let symbols = first_of(SHT_SYMTAB).or_else(|| first_of(SHT_DYNSYM))?;
    let names = section(half(symbols, 40)?).filter(|names| is_of(names, SHT_STRTAB))?;
    Some((table(symbols)?, table(names)?))
}

/// Calls `look` for each name of the table, until `look` returns `None`. `look` gets the place
/// behind the name, and the end of the name, as far as examined.
fn each_name(
    file: &Program,
    table: Table,
    buffer: &mut [u8],
    mut look: impl FnMut(usize, &[u8]) -> Option<()>,
) -> Option<()> {
    let (mut at, mut kept) = (0, 0);
    while at < table.bytes {
        let wanted = (buffer.len() - kept).min(table.bytes - at);
        if sys::read_at(file, &mut buffer[kept..kept + wanted], table.offset + at) != wanted {
            return None;
        }
        let filled = kept + wanted;
        for end in ends(&buffer[..filled], kept) {
            let longest = &buffer[end.saturating_sub(OVERLAP - 1)..end];
            let begin = longest.iter().rposition(|&byte| byte == 0).map_or(0, |zero| zero + 1);
            look(at + end - kept, &longest[begin..])?;
        }
        at += wanted;
        let again = filled.min(OVERLAP);
        buffer.copy_within(filled - again..filled, 0);
        kept = again;
    }
    Some(())
}

/// Returns the ends of names from a place on.
fn ends(bytes: &[u8], from: usize) -> impl Iterator<Item = usize> + '_ {
    const BLOCK: usize = 64;
    bytes[from..].chunks(BLOCK).enumerate().flat_map(move |(index, block)| {
        let has_end = block.iter().fold(false, |has, &byte| has | (byte == 0));
        let block = if has_end { block } else { &[] };
        block.iter().enumerate().filter(|(_, byte)| **byte == 0).map(move |(at, _)| from + index * BLOCK + at)
    })
}

/// The common beginning of the names of a jemalloc's functions.
struct Prefix {
    bytes: [u8; Prefix::LONGEST],
    count: usize,
}

impl Prefix {
    const LONGEST: usize = 24;

    /// Returns the prefix of the single control function. Returns `None` without a control
    /// function, with more than one, and in a program that records its allocator itself.
    fn find(file: &Program, names: Table, buffer: &mut [u8]) -> Option<Prefix> {
        let mut found: Option<Prefix> = None;
        each_name(file, names, buffer, |_, name| {
            if name.ends_with(TRACED) {
                return None;
            }
            let Some(prefix) = name.strip_suffix(CONTROL) else { return Some(()) };
            let prefix = Prefix::new(prefix)?;
            found.is_none().then(|| found = Some(prefix))
        })?;
        found
    }

    fn new(prefix: &[u8]) -> Option<Prefix> {
        let mut bytes = [0; Prefix::LONGEST];
        bytes.get_mut(..prefix.len())?.copy_from_slice(prefix);
        Some(Prefix { bytes, count: prefix.len() })
    }

    fn strip<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        name.strip_prefix(&self.bytes[..self.count])
    }
}

/// Places in the table of names where the names of a jemalloc's functions begin.
struct Places {
    control: usize,
}

impl Places {
    /// Finds the places. Returns `None` when a name present in every jemalloc with listeners is
    /// missing.
    fn find(file: &Program, names: Table, prefix: &Prefix, buffer: &mut [u8]) -> Option<Places> {
        let (mut control, mut others) = (None, [false; OTHERS.len()]);
        each_name(file, names, buffer, |end, name| {
            if let Some(name) = prefix.strip(name) {
                if name == CONTROL {
                    control = Some(end - CONTROL.len() - prefix.count);
                }
                others.iter_mut().zip(OTHERS).for_each(|(has, other)| *has |= name == other);
            }
            Some(())
        })?;
        (others == [true; OTHERS.len()]).then_some(Places { control: control? })
    }

    /// Returns the function with the name at `self.control`.
    fn control(&self, file: &Program, symbols: Table, buffer: &mut [u8]) -> Option<Function> {
        const KIND: u8 = 0xf;
        const STT_FUNC: u8 = 2;
        let most = buffer.len() / SYMBOL_BYTES * SYMBOL_BYTES;
        let mut at = 0;
        while at < symbols.bytes {
            let piece = &mut buffer[..most.min(symbols.bytes - at)];
            if sys::read_at(file, piece, symbols.offset + at) != piece.len() {
                return None;
            }
            at += piece.len();
            let mut defined = piece.chunks_exact(SYMBOL_BYTES).filter(|symbol| quarter(symbol, 6) != Some(0));
            if let Some(symbol) = defined.find(|symbol| half(symbol, 0) == Some(self.control)) {
                let function = Function { address: word(symbol, 8)?, bytes: word(symbol, 16)? };
                return (symbol[4] & KIND == STT_FUNC).then_some(function);
            }
        }
        None
    }
}

/// A function of the object.
struct Function {
    address: usize,
    bytes: usize,
}

/// Returns whether the function is code, and begins in memory as in the file.
fn is_code(mapped: &Object, file: &Program, function: &Function, address: usize) -> bool {
    const LOOKED_AT: usize = 64;
    let mut buffer = [0; LOOKED_AT];
    let bytes = function.bytes.min(LOOKED_AT);
    let Some(offset) = mapped.offset_of_code(function.address, bytes) else { return false };
    // SAFETY: the bytes lie in a mapped and readable segment, as `offset_of_code` has checked.
    let code = unsafe { core::slice::from_raw_parts(address as *const u8, bytes) };
    bytes > 0 && sys::read_at(file, &mut buffer[..bytes], offset) == bytes && buffer[..bytes] == *code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_names_are_found_wherever_they_are() {
        let mut bytes = [b'a'; 1000];
        let places = [0, 1, 63, 64, 65, 500, 999];
        places.iter().for_each(|&at| bytes[at] = 0);
        assert_eq!(ends(&bytes, 0).collect::<std::vec::Vec<_>>(), places);
        assert_eq!(ends(&bytes, 64).collect::<std::vec::Vec<_>>(), places[3..]);
    }

    #[test]
    fn an_object_without_a_jemalloc_has_no_control_function() {
        let here = crate::platform::elf::find_object(control as *const () as usize).expect("this program");
        let mut buffer = std::vec![0; 256 << 10];
        assert_eq!(control(&here, &mut buffer), None);
        // The test's own table of symbols is read nevertheless.
        let file = open(&here).expect("its file");
        let (_, names) = tables(&file, &mut buffer).expect("its tables");
        let mut count = 0;
        let all = each_name(&file, names, &mut buffer, |_, _| {
            count += 1;
            Some(())
        });
        assert!(all.is_some() && count > 100, "{count}");
    }
}

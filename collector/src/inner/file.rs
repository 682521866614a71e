//! An object's file: the control function of a jemalloc under a prefix, by a table of symbols.
//!
//! The file is read in pieces, never mapped: a mapped file that is cut short ends the process.
//! Names are searched first, since an object without such names needs nothing else. Whatever is not
//! as expected is no jemalloc.

use crate::platform::elf::Object;
use crate::platform::sys;
use crate::platform::sys::Program;

/// Bytes of one piece that are looked at again with the next one: the longest name that is known by
/// its end.
const OVERLAP: usize = 64;
/// Larger tables are not looked at.
const MOST_TABLE: usize = 1 << 30;

/// The beginning of an ELF file.
const HEAD_BYTES: usize = 64;
const SECTION_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;

/// The end of the name of the function that is looked for.
const CONTROL: &[u8] = b"mallctl";
/// Ends of names that a jemalloc has besides, all behind the prefix.
const OTHERS: [&[u8]; 4] = [b"mallctlbymib", b"mallctlnametomib", b"mallocx", b"sdallocx"];
/// The end of the name of a function inside of a jemalloc that has listeners.
const INSTALL: &[u8] = b"hook_install";
/// A program with this symbol records the blocks of its allocator itself: see `Traced`.
const TRACED: &[u8] = b"heapline_embedded_state";

/// Address of the control function of the one jemalloc in an object.
pub fn control(mapped: &Object, buffer: &mut [u8]) -> Option<usize> {
    let file = open(mapped)?;
    let (symbols, names) = tables(&file, buffer)?;
    let prefix = Prefix::find(&file, names, buffer)?;
    let places = Places::find(&file, names, &prefix, buffer)?;
    let function = places.control(&file, symbols, buffer)?;
    let address = mapped.bias.wrapping_add(function.address);
    is_code(mapped, &file, &function, address).then_some(address)
}

/// The object's file, if it begins with the very header that is mapped.
fn open(mapped: &Object) -> Option<Program> {
    let path = mapped.path();
    let path = if path.is_empty() { c"/proc/self/exe".as_ptr() } else { path.as_ptr().cast() };
    if mapped.program_headers().is_empty() {
        return None;
    }
    // SAFETY: a C string: the loader's names end with a zero.
    let file = unsafe { sys::open_program(path) }.filter(Program::is_regular)?;
    let mut head = [0; HEAD_BYTES];
    // SAFETY: a mapped ELF header, as was asked just now.
    let in_memory = unsafe { (mapped.start as *const [u8; HEAD_BYTES]).read() };
    let is_same = sys::read_at(&file, &mut head, 0) == HEAD_BYTES && head == in_memory;
    is_same.then_some(file)
}

/// Where a table is in the file.
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

/// The table of all symbols, or of those for other objects where the former was stripped, and that
/// of their names.
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

/// Calls `look` with the place behind each name of the table, and with as much of the name's end as
/// is looked at, until `look` says no.
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

/// Where names end, from a place on.
fn ends(bytes: &[u8], from: usize) -> impl Iterator<Item = usize> + '_ {
    const BLOCK: usize = 64;
    bytes[from..].chunks(BLOCK).enumerate().flat_map(move |(index, block)| {
        let has_end = block.iter().fold(false, |has, &byte| has | (byte == 0));
        let block = if has_end { block } else { &[] };
        block.iter().enumerate().filter(|(_, byte)| **byte == 0).map(move |(at, _)| from + index * BLOCK + at)
    })
}

/// The beginning of the names of a jemalloc's functions.
struct Prefix {
    bytes: [u8; Prefix::LONGEST],
    count: usize,
}

impl Prefix {
    const LONGEST: usize = 24;

    /// The prefix of the one control function. None where there is none, or more than one, and in a
    /// program that records its allocator itself.
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

/// Where the names of a jemalloc's functions begin in the table of names.
struct Places {
    control: usize,
}

impl Places {
    /// None where a name is missing that every jemalloc with listeners has.
    fn find(file: &Program, names: Table, prefix: &Prefix, buffer: &mut [u8]) -> Option<Places> {
        let (mut control, mut others, mut has_install) = (None, [false; OTHERS.len()], false);
        each_name(file, names, buffer, |end, name| {
            has_install |= name.ends_with(INSTALL);
            if let Some(name) = prefix.strip(name) {
                if name == CONTROL {
                    control = Some(end - CONTROL.len() - prefix.count);
                }
                others.iter_mut().zip(OTHERS).for_each(|(has, other)| *has |= name == other);
            }
            Some(())
        })?;
        let is_whole = has_install && others == [true; OTHERS.len()];
        is_whole.then_some(Places { control: control? })
    }

    /// The function whose name is there.
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

/// Whether the function is code, and begins in memory as in the file.
fn is_code(mapped: &Object, file: &Program, function: &Function, address: usize) -> bool {
    const LOOKED_AT: usize = 64;
    let mut buffer = [0; LOOKED_AT];
    let bytes = function.bytes.min(LOOKED_AT);
    let Some(offset) = mapped.offset_of_code(function.address, bytes) else { return false };
    // SAFETY: in a mapped segment that can be read.
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
        // Its own table of symbols is read nevertheless.
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

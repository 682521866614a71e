//! An object's file: the functions of allocators under a prefix, by its table of all symbols.
//!
//! Read in pieces into a buffer of its own, never mapped: a mapped file that is cut short ends the process. Names are
//! searched first, since an object without such names needs nothing else.

use crate::doors::shapes::{self, Act, Shape};
use crate::sys;
use crate::sys::Program;
use core::mem::MaybeUninit;

/// Bytes that are read at once.
const PIECE: usize = 256 << 10;
/// Bytes of one piece that are looked at again with the next one: the longest name that is known by its end.
const OVERLAP: usize = 64;
/// Larger tables are not looked at.
const MOST_TABLE: usize = 1 << 30;
const MOST_SECTIONS: usize = 1 << 14;
/// Allocators in one object.
pub const MOST_KINDS: usize = 4;
/// Functions of all allocators of one object.
pub const MOST_FUNCTIONS: usize = 160;
/// Places in the table of names where a function's name begins.
const MOST_NAMES: usize = 256;

/// The beginning of an ELF file.
pub const HEAD_BYTES: usize = 64;
const SECTION_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;

/// What an allocator's functions are called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// jemalloc's, behind a prefix of so many bytes.
    Prefixed([u8; Kind::LONGEST], usize),
    /// mimalloc's, which have `mi_` in front.
    Mimalloc,
}

impl Kind {
    /// The longest prefix.
    const LONGEST: usize = 24;

    /// The allocator that a name tells of, which may be the end of a longer one.
    fn told_by(name: &[u8]) -> Option<Kind> {
        if name.ends_with(b"mi_malloc") || name.ends_with(b"mi_malloc_generic") {
            return Some(Kind::Mimalloc);
        }
        let prefix = name.strip_suffix(b"mallocx")?;
        let is_prefix = prefix.ends_with(b"_") && prefix.len() <= Kind::LONGEST;
        let mut bytes = [0; Kind::LONGEST];
        bytes.get_mut(..prefix.len())?.copy_from_slice(prefix);
        is_prefix.then_some(Kind::Prefixed(bytes, prefix.len()))
    }

    fn prefix(&self) -> &[u8] {
        match self {
            Kind::Prefixed(bytes, used) => &bytes[..*used],
            Kind::Mimalloc => &[],
        }
    }

    /// The shape of its function with this name.
    fn shape(&self, name: &[u8]) -> Option<&'static Shape> {
        let base = name.strip_prefix(self.prefix())?;
        let is_own = match self {
            Kind::Prefixed(..) => shapes::is_standard(base) || base.ends_with(b"allocx"),
            Kind::Mimalloc => base.starts_with(b"mi_"),
        };
        if is_own { shapes::of(base) } else { None }
    }
}

/// A function of an allocator's.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// Index of its allocator.
    pub kind: usize,
    /// What it does.
    pub shape: &'static Shape,
    /// Address in the object.
    pub address: usize,
    /// Bytes of its code.
    pub bytes: usize,
}

/// A list of at most so many. All zeros are an empty one.
pub struct List<T, const N: usize> {
    items: [MaybeUninit<T>; N],
    used: usize,
}

impl<T: Copy, const N: usize> List<T, N> {
    /// None where it is full.
    fn push(&mut self, item: T) -> Option<()> {
        self.items.get_mut(self.used)?.write(item);
        self.used += 1;
        Some(())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.used
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        // SAFETY: the first ones were written.
        self.items[..self.used].iter().map(|item| unsafe { item.assume_init_read() })
    }
}

/// What an object's file says, and what is needed to read it. On no stack: that of a thread which opens a library may be
/// small.
pub struct Content {
    /// The allocators of which there are functions.
    pub kinds: List<Kind, MOST_KINDS>,
    /// Their functions.
    pub functions: List<Function, MOST_FUNCTIONS>,
    names: List<Name, MOST_NAMES>,
    buffer: [u8; PIECE],
}

/// Memory of the collector's own, for as long as a file is looked at.
pub struct Work(*mut Content);

impl Work {
    /// None where the system has no memory.
    pub fn new() -> Option<Work> {
        Some(Work(sys::map(size_of::<Content>())?.cast()))
    }

    /// The allocators' functions in a file that begins with `head`. None where the file has no allocators, or is not as a
    /// file must be.
    pub fn read(&mut self, file: &Program, head: &[u8; HEAD_BYTES]) -> Option<&Content> {
        // SAFETY: mapped for this alone, page by page; all zeros are empty lists and a buffer.
        let content = unsafe { &mut *self.0 };
        content.read(file, head)?;
        Some(content)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference into it any more.
        unsafe { sys::unmap(self.0.cast(), size_of::<Content>()) };
    }
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

/// The table of all symbols, and that of their names.
fn tables(file: &Program, head: &[u8; HEAD_BYTES], buffer: &mut [u8]) -> Option<(Table, Table)> {
    const SHT_SYMTAB: usize = 2;
    const SHT_STRTAB: usize = 3;
    let (offset, size, count) = (word(head, 40)?, quarter(head, 58)?, quarter(head, 60)?);
    if size != SECTION_BYTES || count > MOST_SECTIONS {
        return None;
    }
    let buffer = buffer.get_mut(..count * SECTION_BYTES)?;
    if sys::read_at(file, buffer, offset) != buffer.len() {
        return None;
    }
    let section = |index: usize| buffer.get(index * SECTION_BYTES..(index + 1) * SECTION_BYTES);
    let is_of = |section: &[u8], kind| half(section, 4) == Some(kind);
    let table = |section: &[u8]| {
        let table = Table { offset: word(section, 24)?, bytes: word(section, 32)? };
        (table.bytes <= MOST_TABLE && table.offset.checked_add(table.bytes).is_some()).then_some(table)
    };
    let symbols = (0..count).filter_map(section).find(|section| is_of(section, SHT_SYMTAB))?;
    let names = section(half(symbols, 40)?).filter(|names| is_of(names, SHT_STRTAB))?;
    Some((table(symbols)?, table(names)?))
}

/// Calls `look` with the place behind each name of the table that may be an allocator's function's, and with as much of the
/// name's end as is looked at.
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

/// A name that a function of an allocator may have.
#[derive(Clone, Copy)]
struct Name {
    /// Where it begins in the table.
    at: usize,
    kind: usize,
    shape: &'static Shape,
}

impl Content {
    fn read(&mut self, file: &Program, head: &[u8; HEAD_BYTES]) -> Option<()> {
        (self.kinds.used, self.functions.used, self.names.used) = (0, 0, 0);
        let (symbols, names) = tables(file, head, &mut self.buffer)?;
        self.find_kinds(file, names)?;
        if self.kinds.count() == 0 {
            return None;
        }
        self.find_names(file, names)?;
        self.find_functions(file, symbols)
    }

    fn find_kinds(&mut self, file: &Program, table: Table) -> Option<()> {
        let kinds = &mut self.kinds;
        each_name(file, table, &mut self.buffer, |_, name| match Kind::told_by(name) {
            Some(kind) if !kinds.iter().any(|known| known == kind) => kinds.push(kind),
            _ => Some(()),
        })
    }

    /// The places of the names of allocators' functions. A name may be the end of a longer one.
    fn find_names(&mut self, file: &Program, table: Table) -> Option<()> {
        let (kinds, found) = (&self.kinds, &mut self.names);
        each_name(file, table, &mut self.buffer, |end, longest| {
            for (index, kind) in kinds.iter().enumerate() {
                for begin in 0..longest.len() {
                    if let Some(shape) = kind.shape(&longest[begin..]) {
                        found.push(Name { at: end - (longest.len() - begin), kind: index, shape })?;
                    }
                }
            }
            Some(())
        })
    }

    /// The functions with these names.
    fn find_functions(&mut self, file: &Program, table: Table) -> Option<()> {
        const KIND: u8 = 0xf;
        const STT_FUNC: u8 = 2;
        let (names, found) = (&self.names, &mut self.functions);
        let lowest = names.iter().map(|name| name.at).min()?;
        let highest = names.iter().map(|name| name.at).max()?;
        let mut at = 0;
        while at < table.bytes {
            let most = PIECE / SYMBOL_BYTES * SYMBOL_BYTES;
            let piece = &mut self.buffer[..most.min(table.bytes - at)];
            if sys::read_at(file, piece, table.offset + at) != piece.len() {
                return None;
            }
            at += piece.len();
            for symbol in piece.chunks_exact(SYMBOL_BYTES) {
                let name = half(symbol, 0)?;
                if name < lowest || name > highest || quarter(symbol, 6)? == 0 {
                    continue;
                }
                for known in names.iter().filter(|known| known.at == name) {
                    // What is resolved at run time is not a function yet.
                    if symbol[4] & KIND != STT_FUNC {
                        return None;
                    }
                    let (address, bytes) = (word(symbol, 8)?, word(symbol, 16)?);
                    found.push(Function { kind: known.kind, shape: known.shape, address, bytes })?;
                }
            }
        }
        Some(())
    }

    /// Whether blocks of each allocator are both given and taken by functions that are known: else an allocator has
    /// functions that are not.
    pub fn is_whole(&self) -> bool {
        let has = |kind: usize, act: Act| {
            self.functions.iter().any(|function| function.kind == kind && function.shape.act == act)
        };
        (0..self.kinds.count()).all(|kind| has(kind, Act::Allocates) && has(kind, Act::Frees))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(name: &[u8]) -> Option<std::vec::Vec<u8>> {
        Kind::told_by(name).map(|kind| kind.prefix().to_vec())
    }

    #[test]
    fn names_tell_an_allocator_and_its_functions() {
        assert_eq!(prefix(b"_rjem_mallocx").as_deref(), Some(&b"_rjem_"[..]));
        assert_eq!(prefix(b"je_arrow_mallocx").as_deref(), Some(&b"je_arrow_"[..]));
        assert_eq!(Kind::told_by(b"_mi_malloc_generic"), Some(Kind::Mimalloc));
        for other in [&b"mallocx"[..], b"xmallocx", b"malloc", b"", b"a_prefix_that_nobody_would_ever_use_mallocx"] {
            assert_eq!(Kind::told_by(other), None);
        }
        let rust = Kind::told_by(b"_rjem_mallocx").expect("jemalloc");
        assert_eq!(rust.shape(b"_rjem_sdallocx"), shapes::of(b"free"));
        assert_eq!(rust.shape(b"_rjem_posix_memalign"), shapes::of(b"posix_memalign"));
        for other in [&b"_rjem_mi_malloc"[..], b"_rjem_je_malloc", b"malloc", b"_rjem_mallctl", b"_rjem__Znwm"] {
            assert_eq!(rust.shape(other), None);
        }
        assert_eq!(Kind::Mimalloc.shape(b"mi_free"), shapes::of(b"free"));
        assert_eq!(Kind::Mimalloc.shape(b"free"), None);
    }

    #[test]
    fn ends_of_names_are_found_wherever_they_are() {
        let mut bytes = [b'a'; 1000];
        let places = [0, 1, 63, 64, 65, 500, 999];
        places.iter().for_each(|&at| bytes[at] = 0);
        assert_eq!(ends(&bytes, 0).collect::<std::vec::Vec<_>>(), places);
        assert_eq!(ends(&bytes, 64).collect::<std::vec::Vec<_>>(), places[3..]);
    }
}

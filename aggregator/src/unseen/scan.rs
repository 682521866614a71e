//! Looks into an object's file for allocators without a hook.
//!
//! The file may come from any author. The values in its headers are checked against its length, and
//! only a limited number of bytes is read.

use super::allocators::{self, Finding};
use crate::process::elf;
use crate::process::elf::Judged;
use heapline_shared_format::arch::elf::MACHINE;
use memchr::memmem;
use object::elf::{FileHeader64, SectionHeader64, Sym64};
use object::{LittleEndian as LE, elf as format, pod};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Most bytes read of a single file: the symbols and read-only data of the largest known programs.
const MOST_BYTES: u64 = 192 << 20;
/// Bytes of read-only data in memory at the same time.
const PIECE: u64 = 1 << 20;
const MOST_SECTIONS: usize = 4096;

/// Returns the allocators without a hook in a file. The list is empty for a file that is no program
/// for this processor, or has faulty headers.
pub fn scan(file: &File) -> Vec<Finding> {
    let Ok(metadata) = file.metadata() else { return Vec::new() };
    let mut object = Bounded { file, length: metadata.len(), left: MOST_BYTES };
    let found = look(&mut object).unwrap_or_default();
    // A program with the collector inside has wrapped its allocator.
    if found.is_empty() || elf::examine_content(file) == Some(Judged::CarriesCollector) {
        return Vec::new();
    }
    found.into_iter().collect()
}

/// A file with a limit on the bytes read.
struct Bounded<'f> {
    file: &'f File,
    length: u64,
    left: u64,
}

impl Bounded<'_> {
    fn read(&mut self, offset: u64, size: u64) -> Option<Vec<u8>> {
        let end = offset.checked_add(size)?;
        if end > self.length {
            return None;
        }
        self.left = self.left.checked_sub(size)?;
        let mut bytes = vec![0; usize::try_from(size).ok()?];
        self.file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }
}

/// The sections of a file.
struct Sections {
    headers: Vec<SectionHeader64<LE>>,
    names: Vec<u8>,
}

impl Sections {
    fn read(object: &mut Bounded<'_>) -> Option<Sections> {
        let head = object.read(0, size_of::<FileHeader64<LE>>() as u64)?;
        let (header, _) = pod::from_bytes::<FileHeader64<LE>>(&head).ok()?;
        let ident = &header.e_ident;
        let is_ours = ident.magic == format::ELFMAG
            && ident.class == format::ELFCLASS64
            && ident.data == format::ELFDATA2LSB
            && header.e_machine.get(LE).0 == MACHINE
            && usize::from(header.e_shentsize.get(LE)) == size_of::<SectionHeader64<LE>>();
        let count = usize::from(header.e_shnum.get(LE)).min(MOST_SECTIONS);
        if !is_ours {
            return None;
        }
        let bytes = object.read(header.e_shoff.get(LE), (count * size_of::<SectionHeader64<LE>>()) as u64)?;
        let (headers, _) = pod::slice_from_bytes::<SectionHeader64<LE>>(&bytes, count).ok()?;
        let headers = headers.to_vec();
        let names = headers.get(usize::from(header.e_shstrndx.get(LE).0));
        let names = names.and_then(|names| object.read(names.sh_offset.get(LE), names.sh_size.get(LE)));
        Some(Sections { headers, names: names.unwrap_or_default() })
    }

    fn of_type(&self, kind: format::SectionType) -> impl Iterator<Item = &SectionHeader64<LE>> {
        self.headers.iter().filter(move |section| section.sh_type.get(LE) == kind)
    }

    fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.headers.iter().map(|section| text_at(&self.names, section.sh_name.get(LE)))
    }
}

/// Returns the text at an offset of a table of texts; empty if there is none.
fn text_at(table: &[u8], offset: u32) -> &[u8] {
    let rest = table.get(offset as usize..).unwrap_or_default();
    &rest[..memchr::memchr(0, rest).unwrap_or(0)]
}

/// Facts from the names of functions.
#[derive(Default)]
struct Functions {
    found: BTreeSet<Finding>,
    /// Whether the table has any functions.
    are_named: bool,
    has_malloc: bool,
    /// Whether the object is CPython. Its own copy of mimalloc is seen, because the allocators of
    /// CPython are hooked.
    is_python: bool,
    /// Whether the object is libffi. Its copy of dlmalloc holds nothing but the code of closures.
    is_ffi: bool,
}

impl Functions {
    fn read(&mut self, object: &mut Bounded<'_>, sections: &Sections, kind: format::SectionType) -> Option<()> {
        for table in sections.of_type(kind) {
            let names = sections.headers.get(table.sh_link.get(LE) as usize)?;
            let names = object.read(names.sh_offset.get(LE), names.sh_size.get(LE))?;
            let (mut offset, end) =
                (table.sh_offset.get(LE), table.sh_offset.get(LE).checked_add(table.sh_size.get(LE))?);
            const ROW: u64 = size_of::<Sym64<LE>>() as u64;
            while offset + ROW <= end {
                let count = (PIECE / ROW).min((end - offset) / ROW);
                let rows = object.read(offset, count * ROW)?;
                let (rows, _) = pod::slice_from_bytes::<Sym64<LE>>(&rows, usize::try_from(count).ok()?).ok()?;
                rows.iter().for_each(|row| self.add(row, &names));
                offset += count * ROW;
            }
        }
        Some(())
    }

    fn add(&mut self, row: &Sym64<LE>, names: &[u8]) {
        let kind = row.st_type();
        let is_defined = row.st_shndx.get(LE) != format::SHN_UNDEF;
        if !is_defined
            || ![format::STT_FUNC, format::STT_OBJECT, format::STT_NOTYPE, format::STT_GNU_IFUNC].contains(&kind)
        {
            return;
        }
        self.are_named = true;
        let name = text_at(names, row.st_name.get(LE));
        self.has_malloc |= name == b"malloc" && row.st_bind() != format::STB_LOCAL;
        self.is_python |= name == b"PyMem_RawMalloc";
        self.is_ffi |= name == b"ffi_closure_alloc";
        self.found.extend(allocators::by_function(name));
    }
}

fn look(object: &mut Bounded<'_>) -> Option<BTreeSet<Finding>> {
    let sections = Sections::read(object)?;
    let mut found: BTreeSet<Finding> = sections.names().filter_map(allocators::by_section).collect();
    let mut exported = Functions::default();
    exported.read(object, &sections, format::SHT_DYNSYM);
    let mut all = Functions::default();
    all.read(object, &sections, format::SHT_SYMTAB);
    found.extend(exported.found.iter().chain(&all.found).cloned());
    if !all.are_named {
        found.extend(by_texts(object, &sections));
    }
    let is_seen = |finding: &Finding| {
        let allocator = finding.allocator();
        exported.has_malloc && allocator.is_seen_as_malloc
            || (exported.is_python || all.is_python) && allocator.name == "mimalloc"
            || (exported.is_ffi || all.is_ffi) && allocator.name == "dlmalloc"
    };
    found.retain(|finding| !is_seen(finding));
    Some(without_replaced(&found))
}

/// Removes rows replaced by another row, and replacing rows without a replaced row.
fn without_replaced(found: &BTreeSet<Finding>) -> BTreeSet<Finding> {
    let replaces = |row: &Finding, other: &Finding| row.allocator().in_place_of.contains(&other.allocator().name);
    let says_something = |row: &Finding| {
        let is_replaced = found.iter().any(|other| replaces(other, row));
        let has_own = row.allocator().in_place_of.is_empty() || found.iter().any(|other| replaces(row, other));
        !is_replaced && has_own
    };
    found.iter().filter(|row| says_something(row)).cloned().collect()
}

/// Looks for the texts in read-only data.
fn by_texts(object: &mut Bounded<'_>, sections: &Sections) -> BTreeSet<Finding> {
    let texts: Vec<_> = allocators::texts().map(|(text, finding)| (memmem::Finder::new(text), finding)).collect();
    let overlap = texts.iter().map(|(text, _)| text.needle().len() as u64).max().unwrap_or(0);
    let mut found = BTreeSet::new();
    let is_constant = |section: &&SectionHeader64<LE>| {
        let flags = section.sh_flags.get(LE).0;
        let has = |flag: format::SectionFlags| flags & flag.0 != 0;
        has(format::SHF_ALLOC) && !has(format::SHF_WRITE) && !has(format::SHF_EXECINSTR)
    };
    for section in sections.of_type(format::SHT_PROGBITS).filter(is_constant) {
        let mut offset = section.sh_offset.get(LE);
        let Some(end) = offset.checked_add(section.sh_size.get(LE)) else { continue };
        while offset < end {
            let Some(piece) = object.read(offset, PIECE.min(end - offset)) else { return found };
            let here = texts.iter().filter(|(text, _)| text.find(&piece).is_some());
            found.extend(here.map(|(_, finding)| finding.clone()));
            let next = offset + piece.len() as u64;
            offset = if next < end { next - overlap } else { end };
        }
    }
    found
}

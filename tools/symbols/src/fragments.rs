//! Parts of functions that a compiler put elsewhere (`f.cold`), in files whose symbol table does
//! not name such parts.
//!
//! A stripped program keeps the names of exported functions only. The interpreter's loop of a
//! Debian CPython 3.14 has 1 KB where its name is, and 80 KB elsewhere. Two facts tell the owner:
//!
//! 1. A compiler describes a part right behind the function's own part in `.eh_frame`.
//! 2. A function begins with the return address on top of the stack. A part that is jumped to does
//!    not: the function has saved registers before.
//!
//! A part that is jumped to before any register was saved is not told from a function, and stays
//! without a name. The linker describes its tables of jumps like parts, in sections of their own.

use gimli::{BaseAddresses, CfaRule, CieOrFde, EhFrame, NativeEndian, UnwindContext, UnwindSection, X86_64};
use object::{Object, ObjectSection};
use std::collections::BTreeMap;

/// A part of a function: file address, bytes, and the function's symbol.
#[derive(Debug, PartialEq, Eq)]
pub struct Fragment<'a> {
    pub address: u64,
    pub size: u64,
    pub function: &'a str,
}

/// Returns the parts of functions that no symbol names. `symbols` has the names of functions by
/// file address. Empty for a file without readable unwinding information.
pub fn of<'a>(file: &[u8], symbols: &BTreeMap<u64, &'a str>) -> Vec<Fragment<'a>> {
    found(file, symbols).unwrap_or_default()
}

fn found<'a>(file: &[u8], symbols: &BTreeMap<u64, &'a str>) -> Option<Vec<Fragment<'a>>> {
    let file = object::File::parse(file).ok()?;
    let of_functions = |section: &object::Section<'_, '_>| section.name().is_ok_and(|name| name.starts_with(".text"));
    let texts: Vec<_> = file
        .sections()
        .filter(of_functions)
        .map(|section| section.address()..section.address() + section.size())
        .collect();
    let section = file.section_by_name(".eh_frame")?;
    let content = section.uncompressed_data().ok()?;
    let frames = EhFrame::new(&content, NativeEndian);
    let bases = BaseAddresses::default().set_eh_frame(section.address());
    let mut context = UnwindContext::new();
    let mut entries = frames.entries(&bases);
    let mut fragments = Vec::new();
    // The function described last.
    let mut function = None;
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let fde = partial.parse(EhFrame::cie_from_offset).ok()?;
        let (address, size) = (fde.initial_address(), fde.len());
        let mut rows = fde.rows(&frames, &bases, &mut context).ok()?;
        let first = rows.next_row().ok().flatten();
        let is_whole =
            first.is_none_or(|row| *row.cfa() == CfaRule::RegisterAndOffset { register: X86_64::RSP, offset: 8 });
        let named = symbols.get(&address).copied();
        if is_whole || named.is_some() {
            function = named;
        } else if let Some(function) = function
            && texts.iter().any(|text| text.contains(&address))
        {
            fragments.push(Fragment { address, size, function });
        }
    }
    Some(fragments)
}

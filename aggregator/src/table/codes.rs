//! Python code objects, as described by the rings.
//!
//! The target numbers code objects and never reuses a number. So a frame names the same code object
//! for ever, even after the object is gone and its memory is in use for another object.

use crate::base::chunks::Chunks;
use crate::table::order::Corrupt;
use heapline_shared_format::code::{HEAD_BYTES, Head, MAX_DESCRIPTION_BYTES};
use heapline_shared_format::snapshot::Code;
use std::collections::HashMap;
use std::sync::Arc;

/// Most bytes of all descriptions. Further code objects have no name, and are counted.
const MAX_ALL_BYTES: usize = 512 << 20;
/// Bytes of an entry besides the texts.
const ENTRY_BYTES: usize = size_of::<Code>() + 64;

/// Beginning of a ring's description that continues in the ring's next record.
#[derive(Debug, Default)]
pub struct Partial {
    id: u32,
    bytes: Vec<u8>,
}

/// Described code objects with their numbers, in the order of the descriptions. Of several
/// descriptions with a number the last is valid.
pub type Described = Chunks<(u32, Arc<Code>)>;

/// All described code objects, by number.
#[derive(Debug, Default)]
pub struct Codes {
    all: Described,
    /// Places in `all`, by number.
    by_id: HashMap<u32, usize>,
    /// Bytes of all descriptions.
    bytes: usize,
}

impl From<Described> for Codes {
    fn from(all: Described) -> Codes {
        let by_id = all.iter().enumerate().map(|(place, &(id, _))| (id, place)).collect();
        let bytes = all.iter().map(|(_, code)| bytes(code)).sum();
        Codes { all, by_id, bytes }
    }
}

/// Bytes of a description, about.
fn bytes(code: &Code) -> usize {
    code.filename.len() + code.name.len() + code.line_table.len() + ENTRY_BYTES
}

impl Codes {
    /// Adds a part of a code object's description. `more`: the description continues in the next
    /// record. Returns false if there is no room for the description.
    pub fn describe(
        &mut self,
        partial: &mut Partial,
        id: u32,
        more: bool,
        text: impl Iterator<Item = u8>,
    ) -> Result<bool, Corrupt> {
        if partial.id != id {
            partial.bytes.clear();
            partial.id = id;
        }
        partial.bytes.extend(text);
        if partial.bytes.len() > MAX_DESCRIPTION_BYTES {
            return Err(Corrupt);
        }
        if more {
            return Ok(true);
        }
        let code = parse(&std::mem::take(&mut partial.bytes)).ok_or(Corrupt)?;
        if self.bytes + bytes(&code) > MAX_ALL_BYTES {
            return Ok(false);
        }
        self.bytes += bytes(&code);
        self.by_id.insert(id, self.all.len());
        self.all.push((id, Arc::new(code)));
        Ok(true)
    }

    /// All descriptions, for a copy.
    pub fn described(&self) -> &Described {
        &self.all
    }

    /// Bytes taken by the entries, without texts: texts are shared with copies of the table.
    pub fn bytes(&self) -> usize {
        self.by_id.len() * ENTRY_BYTES
    }

    /// Returns the code object with this number.
    pub fn get(&self, id: u32) -> Option<&Arc<Code>> {
        Some(&self.all[*self.by_id.get(&id)?].1)
    }
}

fn parse(bytes: &[u8]) -> Option<Code> {
    let head = Head::from_bytes(bytes)?;
    let [file, name, table] = head.parts();
    let (file, rest) = bytes[HEAD_BYTES..].split_at_checked(file)?;
    let (name, rest) = rest.split_at_checked(name)?;
    if rest.len() != table {
        return None;
    }
    Some(Code {
        filename: text(file, head.file_kind),
        name: text(name, head.name_kind),
        first_line: head.first_line,
        lines: head.lines,
        line_table: rest.to_vec(),
    })
}

/// Decodes characters of `kind` bytes each. An invalid character (a lone surrogate) becomes the
/// replacement character.
fn text(bytes: &[u8], kind: u8) -> String {
    let character = |bytes: &[u8]| {
        let number = bytes.iter().rev().fold(0u32, |number, &byte| number << 8 | u32::from(byte));
        char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER)
    };
    bytes.chunks_exact(usize::from(kind)).map(character).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use heapline_shared_format::code::LineFormat;

    fn description() -> Vec<u8> {
        let head = Head {
            lines: LineFormat::Locations,
            file_kind: 1,
            name_kind: 2,
            first_line: 7,
            file_length: 4,
            name_length: 2,
            table_bytes: 3,
        };
        let name = [0x2603u16, 0xd800].into_iter().flat_map(u16::to_le_bytes);
        head.to_bytes().into_iter().chain(*b"a\xfc.p").chain(name).chain([1, 2, 3]).collect()
    }

    #[test]
    fn a_description_in_parts_is_put_together() {
        let (mut codes, mut partial) = (Codes::default(), Partial::default());
        let bytes = description();
        let (first, rest) = bytes.split_at(9);
        assert_eq!(codes.describe(&mut partial, 5, true, first.iter().copied()), Ok(true));
        assert!(codes.get(5).is_none());
        assert_eq!(codes.describe(&mut partial, 5, false, rest.iter().copied()), Ok(true));
        let code = codes.get(5).expect("described");
        assert_eq!((code.filename.as_str(), code.name.as_str(), code.first_line), ("aü.p", "\u{2603}\u{fffd}", 7));
        assert_eq!(code.line_table, [1, 2, 3]);
    }

    #[test]
    fn nonsense_is_refused() {
        let bytes = description();
        for cut in 0..bytes.len() {
            let mut codes = Codes::default();
            let described = codes.describe(&mut Partial::default(), 0, false, bytes[..cut].iter().copied());
            assert_eq!(described, Err(Corrupt), "{cut} bytes");
        }
        let mut partial = Partial::default();
        let endless = (0..2)
            .map(|_| Codes::default().describe(&mut partial, 1, true, std::iter::repeat_n(0, MAX_DESCRIPTION_BYTES)));
        assert_eq!(endless.collect::<Vec<_>>(), [Ok(true), Err(Corrupt)]);
    }
}

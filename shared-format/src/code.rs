//! The description of a Python code object. The collector copies it once, the aggregator reads it.
//!
//! ```text
//! | line format u8 | file kind u8 | name kind u8 | 0 u8 | first line u32 |
//! | file length u32 | name length u32 | line table bytes u32 | 0 u32     |
//! | file's characters | name's characters | line table |
//! ```
//!
//! Texts have CPython's format: characters of 1 (Latin-1), 2 or 4 bytes. The kind of a text is the
//! number of bytes of a character.

/// Longest description in bytes: a function of a hundred thousand lines. Code with a longer
/// description is unknown.
pub const MAX_DESCRIPTION_BYTES: usize = 4 << 20;

/// Number of bytes before the texts.
pub const HEAD_BYTES: usize = 24;

/// Format of the line table, which maps instructions to lines. The description stores these
/// numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LineFormat {
    /// `co_lnotab`: CPython 3.9.
    Lnotab = 9,
    /// `co_linetable` of PEP 626: CPython 3.10.
    LineTable = 10,
    /// Location table: CPython 3.11 and later.
    Locations = 11,
}

impl LineFormat {
    /// Returns the format of a number. None for an unknown number.
    pub const fn from_number(number: u8) -> Option<LineFormat> {
        match number {
            9 => Some(LineFormat::Lnotab),
            10 => Some(LineFormat::LineTable),
            11 => Some(LineFormat::Locations),
            _ => None,
        }
    }
}

/// The part of a description before the texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the module's header draws them")]
pub struct Head {
    pub lines: LineFormat,
    pub file_kind: u8,
    pub name_kind: u8,
    pub first_line: u32,
    pub file_length: u32,
    pub name_length: u32,
    pub table_bytes: u32,
}

impl Head {
    /// Returns the bytes of the head in a description.
    pub fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[0] = self.lines as u8;
        bytes[1] = self.file_kind;
        bytes[2] = self.name_kind;
        let numbers = [self.first_line, self.file_length, self.name_length, self.table_bytes];
        for (place, number) in bytes[4..].chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Reads a head. None for bytes that no collector writes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Head> {
        let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let is_kind = |kind: u8| matches!(kind, 1 | 2 | 4);
        let head = Head {
            lines: LineFormat::from_number(*bytes.first()?)?,
            file_kind: *bytes.get(1)?,
            name_kind: *bytes.get(2)?,
            first_line: number(4)?,
            file_length: number(8)?,
            name_length: number(12)?,
            table_bytes: number(16)?,
        };
        (is_kind(head.file_kind) && is_kind(head.name_kind) && bytes.len() >= HEAD_BYTES).then_some(head)
    }

    /// Returns the sizes of file name, function name and line table in bytes.
    pub fn parts(&self) -> [usize; 3] {
        let text = |length: u32, kind: u8| length as usize * usize::from(kind);
        [text(self.file_length, self.file_kind), text(self.name_length, self.name_kind), self.table_bytes as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_comes_back_and_nonsense_does_not() {
        let head = Head {
            lines: LineFormat::Locations,
            file_kind: 1,
            name_kind: 4,
            first_line: 7,
            file_length: 300,
            name_length: 5,
            table_bytes: 80_000,
        };
        let bytes = head.to_bytes();
        assert_eq!(Head::from_bytes(&bytes), Some(head));
        assert_eq!(head.parts(), [300, 20, 80_000]);
        assert_eq!(Head::from_bytes(&bytes[..HEAD_BYTES - 1]), None);
        for (place, wrong) in [(0, 8), (0, 12), (1, 0), (1, 3), (2, 8)] {
            let mut bytes = bytes;
            bytes[place] = wrong;
            assert_eq!(Head::from_bytes(&bytes), None, "byte {place} is {wrong}");
        }
    }
}

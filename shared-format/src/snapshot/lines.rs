//! Finds the line of an instruction of a Python code object. Reads the three kinds of line table
//! used by CPython.
//!
//! Sources: `Objects/lnotab_notes.txt` of CPython 3.9 and 3.10, `Objects/locations.md` of CPython
//! 3.11 and later. An offset is counted in bytes from the beginning of the code.

use super::Code;
use crate::code::LineFormat;
use crate::event::NOT_BEGUN;

impl Code {
    /// Returns the line of the instruction at `offset`. 0 where the table gives no line, or a line
    /// below 0, as in tracemalloc.
    pub fn line(&self, offset: u32) -> u32 {
        line(self, offset).and_then(|line| u32::try_from(line).ok()).unwrap_or(0)
    }
}

fn line(code: &Code, offset: u32) -> Option<i64> {
    if offset == NOT_BEGUN {
        return Some(i64::from(code.first_line));
    }
    let (table, first, offset) = (&code.line_table[..], i64::from(code.first_line), i64::from(offset));
    match code.lines {
        LineFormat::Lnotab => lnotab(table, first, offset),
        LineFormat::LineTable => line_table(table, first, offset),
        LineFormat::Locations => locations(table, first, offset),
    }
}

/// Reads pairs of steps (bytes of code, lines); the lines are signed.
fn lnotab(table: &[u8], mut line: i64, offset: i64) -> Option<i64> {
    let mut at = 0;
    for pair in table.chunks_exact(2) {
        at += i64::from(pair[0]);
        if at > offset {
            break;
        }
        line += i64::from(pair[1].cast_signed());
    }
    Some(line)
}

/// Reads pairs (bytes of code, lines). The lines are added before the range begins; -128 means a
/// range without a line.
fn line_table(table: &[u8], mut line: i64, offset: i64) -> Option<i64> {
    let mut end = 0;
    for pair in table.chunks_exact(2) {
        end += i64::from(pair[0]);
        let delta = pair[1].cast_signed();
        if delta != i8::MIN {
            line += i64::from(delta);
        }
        if end > offset {
            return (delta != i8::MIN).then_some(line);
        }
    }
    None
}

/// Reads entries. The first byte has the highest bit set, the kind in 4 bits, and the number of
/// code units less 1 in 3 bits.
fn locations(table: &[u8], mut line: i64, offset: i64) -> Option<i64> {
    const CODE_UNIT: i64 = 2;
    let mut end = 0;
    let mut rest = table;
    while let [first, following @ ..] = rest {
        let length = following.iter().take_while(|&&byte| byte & 0x80 == 0).count();
        let (entry, next) = following.split_at(length);
        let kind = first >> 3 & 15;
        let delta = match kind {
            // No location.
            15 => None,
            // Long form, and form without columns: a signed varint.
            13 | 14 => Some(signed_varint(entry)?),
            // Form for a single line, with two bytes of columns.
            10..=12 => Some(i64::from(kind) - 10),
            _ => Some(0),
        };
        line = line.saturating_add(delta.unwrap_or(0));
        end += (i64::from(first & 7) + 1) * CODE_UNIT;
        if end > offset {
            return delta.map(|_| line);
        }
        rest = next;
    }
    None
}

/// Decodes a signed varint: six bits in each byte, the lowest first; bit 6 means more bytes. The
/// lowest bit of the number is the sign.
fn signed_varint(bytes: &[u8]) -> Option<i64> {
    let mut value: u64 = 0;
    for (i, byte) in (0..10).zip(bytes) {
        value |= u64::from(byte & 0x3f).checked_shl(6 * i)?;
        if byte & 0x40 == 0 {
            let magnitude = i64::try_from(value >> 1).ok()?;
            return Some(if value & 1 == 1 { -magnitude } else { magnitude });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(lines: LineFormat, first_line: u32, line_table: &[u8]) -> Code {
        Code { filename: "f.py".into(), name: "f".into(), first_line, lines, line_table: line_table.to_vec() }
    }

    #[test]
    fn lnotab_advances_by_signed_lines() {
        let code = code(LineFormat::Lnotab, 10, &[6, 1, 50, 2, 255, 0, 45, 254]);
        let at = |offset| line(&code, offset);
        assert_eq!([at(0), at(5), at(6), at(55), at(56), at(355), at(356)], [10, 10, 11, 11, 13, 13, 11].map(Some));
    }

    #[test]
    fn a_range_of_a_line_table_may_have_no_line() {
        let code = code(LineFormat::LineTable, 10, &[4, 1, 4, 128, 6, 254]);
        let at = |offset| line(&code, offset);
        assert_eq!([at(0), at(3), at(4), at(8), at(13), at(14)], [Some(11), Some(11), None, Some(9), Some(9), None]);
    }

    #[test]
    fn locations_of_every_kind() {
        // 1. Short form (kind 3, 2 units).
        // 2. Next line (kind 11).
        // 3. No columns, 5 lines back (kind 13: 0b1011).
        // 4. No location (kind 15).
        // 5. Long form, 40 lines forward.
        let table = [0x99, 0x10, 0xd8, 1, 2, 0xe8, 0x0b, 0xf8, 0xf0, 0x50, 0x01, 0, 1, 2];
        let code = code(LineFormat::Locations, 100, &table);
        let at = |offset| line(&code, offset);
        assert_eq!(
            [at(0), at(3), at(4), at(6), at(8), at(10)],
            [Some(100), Some(100), Some(101), Some(96), None, Some(136)]
        );
        assert_eq!(at(12), None, "beyond the code");
    }

    #[test]
    fn lines_beyond_all_numbers_are_none() {
        // No columns (13), with the largest number in ten groups of six bits, again and again.
        let entry = [0xe8, 0x7e, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x3f];
        let code = code(LineFormat::Locations, 1, &entry.repeat(64));
        assert_eq!(code.line(126), 0);
    }

    #[test]
    fn any_table_ends() {
        let mut numbers = 1u64;
        for length in 0..200 {
            let table: Vec<u8> = (0..length)
                .map(|_| {
                    numbers = numbers.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    numbers.to_be_bytes()[0]
                })
                .collect();
            for lines in [LineFormat::Lnotab, LineFormat::LineTable, LineFormat::Locations] {
                // Any answer will do.
                let _ = line(&code(lines, u32::MAX, &table), u32::try_from(length).expect("small") * 3);
            }
        }
    }
}

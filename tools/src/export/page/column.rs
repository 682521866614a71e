//! Columns of numbers and texts, as the page reads them.
//!
//! ```text
//! zlib( length of the list, u32 LE | list as JSON | columns, one behind the other )
//! list: [[name, coding, number of values, bytes], ...]
//! ```
//!
//! | Coding | A value |
//! | --- | --- |
//! | `plain` | LEB128 |
//! | `signed` | LEB128 of the zigzag number |
//! | `steps` | LEB128 of the zigzag difference from the value before, which wraps |
//! | `reals` | 8 bytes: a double, little-endian |
//! | `texts` | LEB128 of the number of bytes, and UTF-8 |

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde::Serialize;
use std::io::{self, Write};

/// Columns in the order of the file.
#[derive(Default)]
pub struct Columns {
    list: Vec<Entry>,
    bytes: Vec<u8>,
}

/// Name, coding, number of values and bytes of a column.
#[derive(Serialize)]
struct Entry(&'static str, &'static str, usize, usize);

impl Columns {
    /// Adds numbers as they are.
    pub fn plain(&mut self, name: &'static str, values: impl IntoIterator<Item = u64>) {
        self.add(name, "plain", values, |value, bytes| put(bytes, value));
    }

    /// Adds numbers with a sign.
    pub fn signed(&mut self, name: &'static str, values: impl IntoIterator<Item = i64>) {
        self.add(name, "signed", values, |value, bytes| put(bytes, zigzag(value)));
    }

    /// Adds numbers that are near to the numbers before.
    pub fn steps(&mut self, name: &'static str, values: impl IntoIterator<Item = u64>) {
        let mut last = 0_u64;
        self.add(name, "steps", values, |value, bytes| {
            put(bytes, zigzag(value.wrapping_sub(last).cast_signed()));
            last = value;
        });
    }

    /// Adds doubles.
    pub fn reals(&mut self, name: &'static str, values: impl IntoIterator<Item = f64>) {
        self.add(name, "reals", values, |value, bytes| bytes.extend(value.to_le_bytes()));
    }

    /// Adds texts.
    pub fn texts<T: AsRef<str>>(&mut self, name: &'static str, values: impl IntoIterator<Item = T>) {
        self.add(name, "texts", values, |value, bytes| {
            let text = value.as_ref().as_bytes();
            put(bytes, text.len() as u64);
            bytes.extend(text);
        });
    }

    fn add<T>(
        &mut self,
        name: &'static str,
        coding: &'static str,
        values: impl IntoIterator<Item = T>,
        mut write: impl FnMut(T, &mut Vec<u8>),
    ) {
        let (begin, mut count) = (self.bytes.len(), 0);
        for value in values {
            write(value, &mut self.bytes);
            count += 1;
        }
        self.list.push(Entry(name, coding, count, self.bytes.len() - begin));
    }

    /// Compresses the columns, and writes them as base64: a text without any character of HTML.
    ///
    /// # Errors
    ///
    /// Passes on errors of `out`.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let list = serde_json::to_vec(&self.list)?;
        let length = u32::try_from(list.len()).map_err(io::Error::other)?;
        let mut packed = ZlibEncoder::new(Vec::new(), Compression::default());
        packed.write_all(&length.to_le_bytes())?;
        packed.write_all(&list)?;
        packed.write_all(&self.bytes)?;
        // A multiple of 3 bytes is a whole number of characters.
        packed.finish()?.chunks(3 << 16).try_for_each(|part| out.write_all(STANDARD.encode(part).as_bytes()))
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::ZlibDecoder;
    use std::io::Read;

    #[test]
    fn columns_stand_behind_their_list() {
        let mut columns = Columns::default();
        columns.plain("a", [0, 127, 128, u64::MAX]);
        columns.signed("b", [0, -1, 1, i64::MIN]);
        columns.steps("c", [5, 6, 4]);
        columns.reals("d", [0.5]);
        columns.texts("e", ["é", ""]);
        let mut page = Vec::new();
        columns.write(&mut page).unwrap();
        let packed = STANDARD.decode(page).unwrap();
        let mut bytes = Vec::new();
        ZlibDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
        let (length, rest) = bytes.split_at(4);
        let (list, columns) = rest.split_at(u32::from_le_bytes(length.try_into().unwrap()) as usize);
        let expected =
            r#"[["a","plain",4,14],["b","signed",4,13],["c","steps",3,3],["d","reals",1,8],["e","texts",2,4]]"#;
        assert_eq!(std::str::from_utf8(list), Ok(expected));
        assert_eq!(columns[..4], [0, 127, 0x80, 1]);
        assert_eq!(columns[14..17], [0, 1, 2]);
        assert_eq!(columns[27..30], [10, 2, 3]);
        assert_eq!(columns[30..38], 0.5_f64.to_le_bytes());
        assert_eq!(columns[38..], [2, 0xc3, 0xa9, 0]);
    }
}

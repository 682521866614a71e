//! The payload of one section, number by number.
//!
//! It never gives more than the section's length, and no length in it makes anything grow before the bytes are there.

use super::error::ReadError;
use super::stream::Stream;
use super::varint::MAX_BYTES;
use std::io::Read;

const BUFFER_BYTES: usize = 64 << 10;

/// What can go wrong inside a row.
pub(super) enum Problem {
    /// The bytes are there and say something impossible.
    Row(&'static str),
    /// There are no more bytes.
    Stream(ReadError),
}

impl From<&'static str> for Problem {
    fn from(what: &'static str) -> Problem {
        Problem::Row(what)
    }
}

/// See the module's header.
pub(super) struct Payload<'s, R: Read> {
    stream: &'s mut Stream<R>,
    buffer: Vec<u8>,
    at: usize,
    /// Bytes of the section that are not in the buffer yet.
    left: u64,
    crc: crc32fast::Hasher,
}

impl<'s, R: Read> Payload<'s, R> {
    pub(super) fn new(stream: &'s mut Stream<R>, bytes: u64) -> Payload<'s, R> {
        Payload { stream, buffer: Vec::new(), at: 0, left: bytes, crc: crc32fast::Hasher::new() }
    }

    pub(super) fn place(&self) -> &str {
        &self.stream.place
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at == self.buffer.len() && self.left == 0
    }

    /// The rest of the section is read for its checksum only; then that is compared.
    pub(super) fn finish(mut self) -> Result<(), ReadError> {
        while self.left > 0 {
            self.refill()?;
        }
        let mut stored = [0; 4];
        self.stream.read_exact(&mut stored)?;
        match u32::from_le_bytes(stored) == self.crc.finalize() {
            true => Ok(()),
            false => Err(ReadError::Checksum { section: self.stream.place.clone() }),
        }
    }

    /// An unsigned number.
    pub(super) fn number(&mut self) -> Result<u64, Problem> {
        let mut value = 0;
        for i in 0..MAX_BYTES {
            let byte = self.byte()?;
            if i == MAX_BYTES - 1 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("has a number of more than 64 bits".into())
    }

    /// A number that must fit 32 bits.
    pub(super) fn number32(&mut self) -> Result<u32, Problem> {
        narrow(self.number()?)
    }

    /// 0 or 1.
    pub(super) fn flag(&mut self) -> Result<bool, Problem> {
        match self.number()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("has a flag that is neither 0 nor 1".into()),
        }
    }

    /// A length and as many bytes.
    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, Problem> {
        let len = self.number()?;
        self.take(len)
    }

    /// The same as text.
    pub(super) fn text(&mut self) -> Result<String, Problem> {
        String::from_utf8(self.bytes()?).map_err(|_| "has a text that is not UTF-8".into())
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> Result<Vec<u8>, Problem> {
        self.take(self.left + (self.buffer.len() - self.at) as u64)
    }

    fn take(&mut self, mut len: u64) -> Result<Vec<u8>, Problem> {
        let mut out = Vec::new();
        while len > 0 {
            self.fill()?;
            let here = &self.buffer[self.at..];
            let n = usize::try_from(len).map_or(here.len(), |len| len.min(here.len()));
            out.extend_from_slice(&here[..n]);
            self.at += n;
            len -= n as u64;
        }
        Ok(out)
    }

    fn byte(&mut self) -> Result<u8, Problem> {
        self.fill()?;
        let byte = self.buffer[self.at];
        self.at += 1;
        Ok(byte)
    }

    /// Makes sure that the buffer has at least one byte to give.
    fn fill(&mut self) -> Result<(), Problem> {
        if self.at < self.buffer.len() {
            return Ok(());
        }
        if self.left == 0 {
            return Err("reaches beyond the end of the section".into());
        }
        self.refill().map_err(Problem::Stream)
    }

    fn refill(&mut self) -> Result<(), ReadError> {
        let n = usize::try_from(self.left).map_or(BUFFER_BYTES, |left| left.min(BUFFER_BYTES));
        self.buffer.resize(n, 0);
        self.at = 0;
        self.stream.read_exact(&mut self.buffer)?;
        self.crc.update(&self.buffer);
        self.left -= n as u64;
        Ok(())
    }
}

/// A number that must fit 32 bits.
pub(super) fn narrow(value: u64) -> Result<u32, Problem> {
    u32::try_from(value).map_err(|_| "has a number of more than 32 bits".into())
}

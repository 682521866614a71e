//! The payload of a section, number by number.
//!
//! A payload never gives more bytes than the section's length. A length in the payload allocates no
//! memory before its bytes are read.

use super::error::ReadError;
use super::stream::Stream;
use super::varint::MAX_BYTES;
use std::io::Read;

const BUFFER_BYTES: usize = 64 << 10;

/// Error inside a row.
pub(super) enum Problem {
    /// The bytes are there, but the content is impossible.
    Row(&'static str),
    /// The bytes end too early, or reading failed.
    Stream(ReadError),
}

impl From<&'static str> for Problem {
    fn from(what: &'static str) -> Problem {
        Problem::Row(what)
    }
}

/// Reader of a section's payload, which computes the checksum while reading.
pub(super) struct Payload<'s, R: Read> {
    stream: &'s mut Stream<R>,
    buffer: Vec<u8>,
    at: usize,
    /// Number of the section's bytes not yet in the buffer.
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

    /// Reads the rest of the section for the checksum, then compares the checksum.
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

    /// Reads an unsigned number.
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

    /// Reads a number of at most 32 bits.
    pub(super) fn number32(&mut self) -> Result<u32, Problem> {
        narrow(self.number()?)
    }

    /// Reads a flag: 0 or 1.
    pub(super) fn flag(&mut self) -> Result<bool, Problem> {
        match self.number()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("has a flag that is neither 0 nor 1".into()),
        }
    }

    /// Reads a length and then the bytes.
    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, Problem> {
        let len = self.number()?;
        self.take(len)
    }

    /// Reads a length and then a UTF-8 text.
    pub(super) fn text(&mut self) -> Result<String, Problem> {
        String::from_utf8(self.bytes()?).map_err(|_| "has a text that is not UTF-8".into())
    }

    /// Reads the rest of the payload.
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

    /// Makes sure that the buffer has at least 1 unread byte.
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

/// Converts a number to 32 bits, or fails.
pub(super) fn narrow(value: u64) -> Result<u32, Problem> {
    u32::try_from(value).map_err(|_| "has a number of more than 32 bits".into())
}

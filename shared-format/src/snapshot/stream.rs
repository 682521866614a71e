//! The decompressed bytes of a snapshot file, with a reason when the bytes end.
//!
//! The file is untrusted: a few bytes of zstd can expand to gigabytes. The number of decompressed
//! bytes is compared with the number of bytes read, so a collector of rows uses memory in
//! proportion to the file.

use super::error::ReadError;
use std::io::{self, BufReader, Cursor, Read};

const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// Number of decompressed bytes allowed for any file.
const FREE_BYTES: u64 = 8 << 20;
/// Number of further decompressed bytes allowed for each byte of the file. Snapshots are below 50;
/// zstd itself ends near 32,000.
const MAX_RATIO: u64 = 500;

/// Reader of the decompressed bytes, with a limit on expansion.
pub(super) struct Stream<R: Read> {
    decoder: zstd::Decoder<'static, BufReader<Input<R>>>,
    decompressed: u64,
    /// Present place of the reader, for messages: "section LIVE".
    pub(super) place: String,
}

impl<R: Read> Stream<R> {
    pub(super) fn new(mut input: R) -> Result<Stream<R>, ReadError> {
        let place = "the head".to_string();
        let mut magic = Vec::new();
        input.by_ref().take(ZSTD_MAGIC.len() as u64).read_to_end(&mut magic).map_err(ReadError::Io)?;
        if magic != ZSTD_MAGIC {
            let cut = ZSTD_MAGIC.starts_with(&magic);
            return Err(if cut { ReadError::Truncated { section: place } } else { ReadError::NotZstd });
        }
        let input = Input { inner: Cursor::new(magic).chain(input), bytes: 0, failed: false };
        let decoder = zstd::Decoder::with_buffer(BufReader::new(input)).map_err(ReadError::Io)?.single_frame();
        Ok(Stream { decoder, decompressed: 0, place })
    }

    /// Fills `out` completely, or fails.
    pub(super) fn read_exact(&mut self, out: &mut [u8]) -> Result<(), ReadError> {
        match self.fill(out)? == out.len() {
            true => Ok(()),
            false => Err(ReadError::Truncated { section: self.place.clone() }),
        }
    }

    /// Fills as much of `out` as the frame has bytes. Returns the number of bytes.
    pub(super) fn fill(&mut self, out: &mut [u8]) -> Result<usize, ReadError> {
        let mut filled = 0;
        while filled < out.len() {
            match self.read(&mut out[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        Ok(filled)
    }

    /// Fails when bytes are left in the frame or behind it. zstd compares its checksum at the end
    /// of the frame.
    pub(super) fn expect_end(&mut self) -> Result<(), ReadError> {
        let mut rest = [0];
        let mut left = self.read(&mut rest)?;
        if left == 0 {
            left = self.decoder.get_mut().read(&mut rest).map_err(ReadError::Io)?;
        }
        match left {
            0 => Ok(()),
            _ => Err(ReadError::Corrupt { section: self.place.clone(), what: "bytes follow the end".to_string() }),
        }
    }

    fn read(&mut self, out: &mut [u8]) -> Result<usize, ReadError> {
        let n = self.decoder.read(out).map_err(|error| self.explain(&error))?;
        self.decompressed += n as u64;
        let limit = self.decoder.get_ref().get_ref().bytes.saturating_mul(MAX_RATIO).saturating_add(FREE_BYTES);
        if self.decompressed > limit {
            return Err(ReadError::Oversized { section: self.place.clone(), bytes: limit });
        }
        Ok(n)
    }

    fn explain(&self, error: &io::Error) -> ReadError {
        let section = self.place.clone();
        if self.decoder.get_ref().get_ref().failed {
            return ReadError::Io(io::Error::new(error.kind(), error.to_string()));
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => ReadError::Truncated { section },
            _ => ReadError::Damaged { section, reason: error.to_string() },
        }
    }
}

/// Counts the bytes read from the file, and remembers whether an error came from the file or from
/// zstd.
struct Input<R> {
    inner: io::Chain<Cursor<Vec<u8>>, R>,
    bytes: u64,
    failed: bool,
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let result = self.inner.read(out);
        match &result {
            Ok(n) => self.bytes += *n as u64,
            // zstd's reader tries again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.failed = true,
        }
        result
    }
}

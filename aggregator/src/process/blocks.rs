//! A file read in blocks, for parsers that read a few bytes at a time.

use object::ReadCacheOps;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Bytes of a block of a file.
const BLOCK_BYTES: usize = 4 << 10;
/// Most blocks kept of a file.
const MOST_BLOCKS: usize = 2048;

/// A file read in blocks: the names of a large program are ten thousands of short reads.
pub struct Blocks<R> {
    file: R,
    at: u64,
    /// Blocks by index. Forgotten together when there are too many: the offsets come from any
    /// author.
    kept: HashMap<u64, Vec<u8>>,
}

impl<R: ReadCacheOps> Blocks<R> {
    /// Returns the file with no block read.
    pub fn new(file: R) -> Blocks<R> {
        Blocks { file, at: 0, kept: HashMap::new() }
    }

    /// Returns a block of the file, cut at the end of the file.
    fn block(&mut self, index: u64) -> Result<&[u8], ()> {
        if self.kept.len() == MOST_BLOCKS && !self.kept.contains_key(&index) {
            self.kept.clear();
        }
        match self.kept.entry(index) {
            Entry::Occupied(kept) => Ok(kept.into_mut()),
            Entry::Vacant(place) => {
                self.file.seek(index * BLOCK_BYTES as u64)?;
                let (mut bytes, mut filled) = (vec![0; BLOCK_BYTES], 0);
                while filled < BLOCK_BYTES {
                    match self.file.read(&mut bytes[filled..])? {
                        0 => break,
                        n => filled += n,
                    }
                }
                bytes.truncate(filled);
                Ok(place.insert(bytes))
            }
        }
    }
}

impl<R: ReadCacheOps> ReadCacheOps for Blocks<R> {
    fn len(&mut self) -> Result<u64, ()> {
        self.file.len()
    }

    fn seek(&mut self, position: u64) -> Result<u64, ()> {
        self.at = position;
        Ok(position)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ()> {
        let (index, offset) = (self.at / BLOCK_BYTES as u64, self.at % BLOCK_BYTES as u64);
        let block = self.block(index)?;
        let rest = usize::try_from(offset).ok().and_then(|offset| block.get(offset..)).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        self.at += n as u64;
        Ok(n)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), ()> {
        if buffer.len() >= BLOCK_BYTES {
            self.file.seek(self.at)?;
            self.file.read_exact(buffer)?;
            self.at += buffer.len() as u64;
            return Ok(());
        }
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..])? {
                0 => return Err(()),
                n => filled += n,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads of all lengths, over the ends of blocks and of the file, in more blocks than are kept.
    #[test]
    fn a_file_in_blocks_reads_as_the_file() {
        let byte = |i: usize| (i * 31 + i / 4096).to_le_bytes()[0];
        let bytes: Vec<u8> = (0..(MOST_BLOCKS + 9) * BLOCK_BYTES + 77).map(byte).collect();
        let mut file = Blocks::new(std::io::Cursor::new(&bytes));
        assert_eq!(ReadCacheOps::len(&mut file), Ok(bytes.len() as u64));
        let lengths = [1, 24, 256, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 5];
        for round in 0..2 * (MOST_BLOCKS + 9) {
            let (at, length) = (round * (BLOCK_BYTES / 2 - 3), lengths[round % lengths.len()]);
            let mut read = vec![0; length];
            file.seek(at as u64).expect("a seek");
            match bytes.get(at..at + length) {
                Some(expected) => {
                    file.read_exact(&mut read).expect("bytes of the file");
                    assert_eq!(read, expected, "{length} bytes at {at}");
                }
                None => assert_eq!(file.read_exact(&mut read), Err(())),
            }
            file.seek(at as u64).expect("a seek");
            let n = ReadCacheOps::read(&mut file, &mut read).expect("a read");
            assert!(n > 0 || at >= bytes.len());
            assert_eq!(read[..n], bytes[at.min(bytes.len())..][..n]);
            assert!(file.kept.len() <= MOST_BLOCKS);
        }
    }
}

//! The memory of another process, read and written by `/proc/PID/mem`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

/// Longest text read from the process.
const LONGEST_TEXT: usize = 512;

/// An open `/proc/PID/mem`.
pub struct Memory {
    file: File,
}

impl Memory {
    /// Opens the memory of a process. The aggregator needs the right to trace the process.
    pub fn open(pid: u32) -> io::Result<Memory> {
        Ok(Memory { file: OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))? })
    }

    /// Uses a file as the memory of a process: the byte at an offset is the byte at this address.
    pub fn of_file(file: File) -> Memory {
        Memory { file }
    }

    /// Fills `bytes` from the memory at `address`.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, address)
    }

    /// Reads a word.
    pub fn word(&self, address: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads a range. Fails when a part of the range is missing.
    pub fn bytes(&self, address: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a text up to a zero byte.
    pub fn text(&self, address: u64) -> String {
        let mut text = Vec::new();
        let mut byte = [0];
        while text.len() < LONGEST_TEXT
            && self.read(address.wrapping_add(text.len() as u64), &mut byte).is_ok()
            && byte[0] != 0
        {
            text.push(byte[0]);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Writes all bytes.
    pub fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, address)
    }
}

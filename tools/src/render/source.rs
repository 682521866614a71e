//! Source lines, where the files are there (tracemalloc: `linecache`).

use std::collections::HashMap;
use std::fs;

/// Larger files are no source code that somebody wrote.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Files that were read so far.
#[derive(Default)]
pub struct Sources {
    files: HashMap<String, Vec<String>>,
}

impl Sources {
    /// Line `lineno` (from 1) of a file, without the white space around it; none where there is no such text.
    pub fn line(&mut self, filename: &str, lineno: u32) -> Option<&str> {
        let index = usize::try_from(lineno).ok()?.checked_sub(1)?;
        if !self.files.contains_key(filename) {
            self.files.insert(filename.to_string(), lines(filename));
        }
        self.files.get(filename)?.get(index).map(String::as_str).filter(|line| !line.is_empty())
    }
}

fn lines(filename: &str) -> Vec<String> {
    // A pipe would block, a device might never end.
    let is_source = fs::metadata(filename).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_FILE_BYTES);
    let bytes = if is_source { fs::read(filename).unwrap_or_default() } else { Vec::new() };
    String::from_utf8_lossy(&bytes).lines().map(|line| line.trim().to_string()).collect()
}

//! Source lines, where the files are there (tracemalloc: `linecache`).

use crate::foreign;
use std::collections::HashMap;
use std::path::Path;

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
    let bytes = foreign::open(Path::new(filename)).and_then(|file| file.text(MAX_FILE_BYTES)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().map(|line| line.trim().to_string()).collect()
}

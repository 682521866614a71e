//! Lines of source files, if the files are present (tracemalloc: `linecache`).

use crate::symbols::foreign;
use std::collections::HashMap;
use std::path::Path;

/// Size limit of a source file. Larger files were not written by people.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Source files read so far.
#[derive(Default)]
pub struct Sources {
    files: HashMap<String, Vec<String>>,
}

impl Sources {
    /// Returns line `lineno` (from 1) of a file, without surrounding white space; none if there is
    /// no such text.
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

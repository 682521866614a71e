//! Lines of source files, if the files are present (tracemalloc: `linecache`).

use crate::glob::Glob;
use crate::symbols::foreign;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Size limit of a source file. Larger files were not written by people.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Files whose lines may be shown.
enum Wanted {
    Matching(Glob),
    Below(PathBuf),
}

impl Wanted {
    fn has(&self, filename: &str) -> bool {
        match self {
            Wanted::Matching(glob) => glob.matches(filename),
            // A path with `..` may lead out of the folder again.
            Wanted::Below(folder) => Path::new(filename).starts_with(folder) && !filename.contains("/../"),
        }
    }
}

/// Source files read so far.
pub struct Sources {
    wanted: Wanted,
    files: HashMap<String, Vec<String>>,
}

impl Sources {
    /// Lines of the files with a name that matches.
    pub fn matching(glob: Glob) -> Sources {
        Sources { wanted: Wanted::Matching(glob), files: HashMap::new() }
    }

    /// Lines of the files below a folder. The root of the file system is no such folder: all files
    /// are below.
    pub fn below(folder: &Path) -> Option<Sources> {
        folder.parent().map(|_| Sources { wanted: Wanted::Below(folder.to_path_buf()), files: HashMap::new() })
    }

    /// Returns line `lineno` (from 1) of a file, without surrounding white space; none if there is
    /// no such text.
    pub fn line(&mut self, filename: &str, lineno: u32) -> Option<&str> {
        let index = usize::try_from(lineno).ok()?.checked_sub(1)?;
        if !self.files.contains_key(filename) {
            let lines = if self.wanted.has(filename) { lines(filename) } else { Vec::new() };
            self.files.insert(filename.to_string(), lines);
        }
        self.files.get(filename)?.get(index).map(String::as_str).filter(|line| !line.is_empty())
    }
}

fn lines(filename: &str) -> Vec<String> {
    let bytes = foreign::open(Path::new(filename)).and_then(|file| file.text(MAX_FILE_BYTES)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().map(|line| line.trim().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_wanted_files_are_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.py");
        std::fs::write(&file, "one\n  two \n").unwrap();
        let name = file.to_str().unwrap();
        let line = |sources: Sources, name: &str| ({ sources }).line(name, 2).map(str::to_owned);
        assert_eq!(line(Sources::matching(Glob::new("*.py")), name).as_deref(), Some("two"));
        assert_eq!(line(Sources::matching(Glob::new("*.c")), name), None);
        assert_eq!(line(Sources::below(dir.path()).unwrap(), name).as_deref(), Some("two"));
        let folder = dir.path().file_name().unwrap().to_str().unwrap();
        let around = format!("{}/../{folder}/a.py", dir.path().display());
        assert_eq!(line(Sources::below(dir.path()).unwrap(), &around), None);
        assert!(Sources::below(Path::new("/")).is_none());
    }
}

//! Names of code that a program generates at run time, as the program has written them for
//! profilers.
//!
//! | File | Content |
//! | --- | --- |
//! | `/tmp/perf-PID.map` | a text line for each function: start, size, name |
//! | `jit-PID.dump` | records of functions, moves and lines; the program maps the file |
//!
//! The process id is the id in the process's own namespace, and the folder is the process's own.
//! The newest entry at an address counts, so a frame of replaced code gets the newer code's name.
//! The files are untrusted: every size is bounded, and malformed lines and records are skipped.

use super::object::{self, View};
use heapline_symbols::foreign;
use heapline_symbols::{Location, demangle};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Most functions of a process.
const MOST_FUNCTIONS: usize = 1 << 21;
/// Most lines of a process's functions.
const MOST_LINES: usize = 1 << 22;
/// Longest name, in bytes.
const LONGEST_NAME: usize = 4096;
/// Most bytes read of a name in a record.
const MOST_NAME_BYTES: u64 = 64 << 10;

/// A function of generated code.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    end: u64,
    name: String,
}

/// The generated code of a process.
#[derive(Debug, Default)]
pub struct Code {
    /// Functions by start. No two overlap.
    functions: BTreeMap<u64, Function>,
    /// Files and lines by address.
    lines: BTreeMap<u64, (String, u32)>,
}

impl Code {
    /// Reads the files of a process.
    pub fn of(view: &View) -> Code {
        let mut code = Code::default();
        let map = view.path(format!("/tmp/perf-{}.map", view.own_pid).as_ref());
        if let Some(file) = open(view, map) {
            // A file that is cut has whole lines before the cut.
            let _ = code.read_map(BufReader::new(file));
        }
        for dump in view.dumps() {
            if let Some(file) = open(view, dump) {
                let _ = code.read_dump(BufReader::new(file));
            }
        }
        code
    }

    /// Reads the content of a `perf-PID.map` and of a jitdump file.
    pub fn parse(map: &[u8], dump: &[u8]) -> Code {
        let mut code = Code::default();
        // Reading ends at the first damage.
        let _ = code.read_map(map);
        let _ = code.read_dump(io::Cursor::new(dump));
        code
    }

    /// Returns the function at an address, with the line if the line is known. Empty without a
    /// function.
    pub fn at(&self, address: u64) -> Vec<Location> {
        let Some((&start, function)) = self.functions.range(..=address).next_back() else { return Vec::new() };
        if address >= function.end {
            return Vec::new();
        }
        let line = self.lines.range(start..=address).next_back().map(|(_, line)| line.clone());
        vec![Location { function: Some(demangle(&function.name)), line: line.filter(|(_, line)| *line > 0) }]
    }

    /// Reads lines of start, size and name: numbers are hexadecimal.
    fn read_map(&mut self, mut file: impl BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        while self.functions.len() < MOST_FUNCTIONS {
            line.clear();
            if file.by_ref().take(LONGEST_NAME as u64).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&line);
            let mut fields = text.trim_end().splitn(3, ' ');
            let mut number = || u64::from_str_radix(fields.next()?.trim_start_matches("0x"), 16).ok();
            if let (Some(start), Some(size), Some(name)) = (number(), number(), fields.next()) {
                self.add(start, size, name.to_owned());
            }
        }
        Ok(())
    }

    /// Reads a file of records (tools/perf/Documentation/jitdump-specification.txt of Linux).
    fn read_dump(&mut self, file: impl BufRead + Seek) -> io::Result<()> {
        const MAGIC: u32 = 0x4a69_5444;
        const HEADER_BYTES: u64 = 40;
        const LOAD: u32 = 0;
        const MOVE: u32 = 1;
        const LINES: u32 = 2;
        const RECORD_BYTES: u64 = 16;
        let mut input = Input(file);
        let (magic, _version, bytes) = (input.half()?, input.half()?, input.half()?);
        if magic != MAGIC || u64::from(bytes) < HEADER_BYTES {
            return Ok(());
        }
        let mut at = u64::from(bytes);
        while self.functions.len() < MOST_FUNCTIONS {
            input.0.seek(SeekFrom::Start(at))?;
            let (kind, bytes, _time) = (input.half()?, u64::from(input.half()?), input.word()?);
            if bytes < RECORD_BYTES {
                break;
            }
            match kind {
                LOAD => {
                    let (_pid, _tid, _vma) = (input.half()?, input.half()?, input.word()?);
                    let (start, size, _number) = (input.word()?, input.word()?, input.word()?);
                    let name = input.text((bytes - RECORD_BYTES).min(MOST_NAME_BYTES))?;
                    self.add(start, size, name);
                }
                MOVE => {
                    let (_pid, _tid, _vma) = (input.half()?, input.half()?, input.word()?);
                    let (old, new, size) = (input.word()?, input.word()?, input.word()?);
                    if let Some(function) = self.functions.remove(&old) {
                        self.add(new, size, function.name);
                    }
                }
                LINES => {
                    let (_start, count) = (input.word()?, input.word()?);
                    for _ in 0..count.min(MOST_LINES.saturating_sub(self.lines.len()) as u64) {
                        let (address, line, _column) = (input.word()?, input.half()?, input.half()?);
                        let file = input.text(bytes.min(MOST_NAME_BYTES))?;
                        self.lines.insert(address, (file, line));
                    }
                }
                _ => {}
            }
            at = at.saturating_add(bytes);
        }
        Ok(())
    }

    fn add(&mut self, start: u64, size: u64, name: String) {
        let Some(end) = start.checked_add(size).filter(|&end| end > start) else { return };
        let before = self.functions.range(..start).next_back();
        let overlaps = before.filter(|(_, function)| function.end > start).map(|(&start, _)| start);
        let inside = self.functions.range(start..end).map(|(&start, _)| start);
        let replaced: Vec<u64> = overlaps.into_iter().chain(inside).collect();
        replaced.into_iter().for_each(|start| drop(self.functions.remove(&start)));
        self.functions.insert(start, Function { end, name });
    }
}

/// Opens a file of names, if the process's user or root has written the file.
fn open(view: &View, path: PathBuf) -> Option<File> {
    let file = foreign::open(&path).ok()?.into_file();
    let owner = file.metadata().ok()?.uid();
    (owner == 0 || Some(owner) == view.uid).then_some(file)
}

impl View {
    /// Returns the places of files of records: the mapped files with such a name, and the folder
    /// that the process was in.
    fn dumps(&self) -> Vec<PathBuf> {
        let name = format!("jit-{}.dump", self.own_pid);
        let mapped = object::mappings(self.pid).into_iter().map(object::Mapping::into_path);
        let mut paths: Vec<String> = mapped.filter(|path| path.rsplit('/').next() == Some(&name)).collect();
        paths.extend(self.folder.as_ref().map(|folder| format!("{folder}/{name}")));
        paths.sort();
        paths.dedup();
        paths.into_iter().map(|path| self.path(path.as_ref())).collect()
    }
}

/// Little-endian numbers and texts of a file.
struct Input<F>(F);

impl<F: BufRead> Input<F> {
    fn half(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.0.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn word(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads a text of at most `limit` bytes, up to the zero byte. A long text is cut.
    fn text(&mut self, limit: u64) -> io::Result<String> {
        let mut text = Vec::new();
        self.0.by_ref().take(limit).read_until(0, &mut text)?;
        text.truncate(text.len().min(LONGEST_NAME));
        if text.last() == Some(&0) {
            text.pop();
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn name(code: &Code, address: u64) -> Option<String> {
        code.at(address).pop().and_then(|location| location.function)
    }

    #[test]
    fn the_newest_function_at_an_address_counts() {
        let mut code = Code::default();
        let map = b"1000 100 LazyCompile:~old /a b.js:1\nno line\n2000 0 empty\nffffffffffffffff 10 wraps\n1080 10 *new\n0x3000 0x20 _ZN1a1bEv";
        code.read_map(&map[..]).expect("in memory");
        assert_eq!(name(&code, 0x1000), None, "the older function has lost its place");
        assert_eq!(name(&code, 0x1088).as_deref(), Some("*new"));
        assert_eq!(name(&code, 0x1090), None);
        assert_eq!(name(&code, 0x301f).as_deref(), Some("a::b"));
        assert_eq!(name(&code, 0x3020), None);
        assert_eq!(code.functions.len(), 2);
    }

    fn record(kind: u32, words: &[u8]) -> Vec<u8> {
        let bytes = u32::try_from(16 + words.len()).expect("short");
        [&kind.to_le_bytes()[..], &bytes.to_le_bytes(), &[0; 8], words].concat()
    }

    fn dump() -> Vec<u8> {
        let word = |word: u64| word.to_le_bytes();
        let mut file =
            [&0x4a69_5444_u32.to_le_bytes()[..], &1_u32.to_le_bytes(), &40_u32.to_le_bytes(), &[0; 28]].concat();
        let line = |address: u64, line: u32, file: &str| {
            [&word(address)[..], &line.to_le_bytes(), &[0; 4], file.as_bytes(), &[0]].concat()
        };
        let lines = [&word(0x5000)[..], &word(2), &line(0x5000, 7, "/a.js"), &line(0x5010, 9, "/b.js")].concat();
        file.extend(record(2, &lines));
        let load = [&[0; 16][..], &word(0x5000), &word(0x20), &word(1), b"f\0", &[0x90; 0x20]].concat();
        file.extend(record(0, &load));
        file.extend(record(9, b"unknown"));
        let load = [&[0; 16][..], &word(0x7000), &word(0x20), &word(2), b"g\0", &[0x90; 0x20]].concat();
        file.extend(record(0, &load));
        file.extend(record(1, &[&[0; 16][..], &word(0x7000), &word(0x8000), &word(0x20), &word(2)].concat()));
        file
    }

    #[test]
    fn functions_moves_and_lines_of_a_dump_are_read() {
        let mut code = Code::default();
        let end = code.read_dump(Cursor::new(dump())).expect_err("the file ends behind the last record");
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        let at = |address| code.at(address).pop();
        let line = |file: &str, line| Some((file.to_owned(), line));
        assert_eq!(at(0x5008).expect("f").line, line("/a.js", 7));
        assert_eq!(at(0x501f).expect("f"), Location { function: Some("f".to_owned()), line: line("/b.js", 9) });
        assert_eq!((at(0x7000), name(&code, 0x8000).as_deref()), (None, Some("g")));
    }

    #[test]
    fn damage_ends_the_reading_and_nothing_else() {
        let whole = dump();
        assert!(Code::parse(b"", &whole).at(0x5008).len() == 1);
        for len in 0..whole.len() {
            Code::parse(b"", &whole[..len]);
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            Code::parse(b"", &damaged);
        }
    }
}

//! Selects the tracebacks of a report with tracemalloc's `Filter`s, by tracemalloc's rules.
//!
//! | Filters | Combined by |
//! | --- | --- |
//! | inclusive | OR |
//! | exclusive | AND |
//!
//! A filter looks at the blamed frame, or at every frame with `all_frames`. Then an excluding
//! filter drops a traceback as soon as a frame matches. There is no domain filter: a report has a
//! single view.

use crate::frames::{Frame, TracebackId, Tracebacks};
use crate::glob::Glob;
use crate::query::statistics::Trace;
use std::collections::HashMap;
use std::str::FromStr;

/// A filter's pattern: `GLOB` or `GLOB:LINE`.
#[derive(Clone, Debug)]
pub struct Pattern {
    glob: Glob,
    lineno: Option<u32>,
}

impl Pattern {
    /// Makes a pattern. `filename` is a glob, whatever it contains. Without a line, every line
    /// matches.
    pub fn new(filename: &str, lineno: Option<u32>) -> Pattern {
        Pattern { glob: Glob::new(normalize(filename)), lineno }
    }
}

impl FromStr for Pattern {
    type Err = String;

    /// Parses a pattern. A number behind the last colon is the line.
    fn from_str(text: &str) -> Result<Pattern, String> {
        let (glob, lineno) = match text.rsplit_once(':') {
            Some((glob, line)) if !line.is_empty() && line.bytes().all(|b| b.is_ascii_digit()) => {
                (glob, Some(line.parse().map_err(|_| format!("line {line} is out of range"))?))
            }
            _ => (text, None),
        };
        match glob {
            "" => Err("the pattern is empty; use GLOB or GLOB:LINE, such as '*/table.c:12'".to_string()),
            glob => Ok(Pattern::new(glob, lineno)),
        }
    }
}

/// Returns the source file of a module compiled to `.pyc` (tracemalloc: `_normalize_filename`).
fn normalize(filename: &str) -> &str {
    match filename.strip_suffix('c') {
        Some(source) if filename.ends_with(".pyc") => source,
        _ => filename,
    }
}

/// All filters of a report.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    /// Keep tracebacks with a match of any of these patterns; all tracebacks if there are none.
    pub include: Vec<Pattern>,
    /// Drop tracebacks with a match of any of these patterns.
    pub exclude: Vec<Pattern>,
    /// Look at every frame, not only at the blamed frame.
    pub all_frames: bool,
}

impl Filters {
    /// Whether there are no patterns.
    pub fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }
}

/// Applies [`Filters`] with a memory: each glob checks a file name once, and the filters check a
/// traceback once.
pub struct Matcher<'f> {
    filters: &'f Filters,
    files: Vec<HashMap<usize, bool>>,
    seen: HashMap<TracebackId, bool>,
}

impl<'f> Matcher<'f> {
    /// Makes a matcher with an empty memory.
    pub fn new(filters: &'f Filters) -> Matcher<'f> {
        let patterns = filters.include.len() + filters.exclude.len();
        Matcher { filters, files: vec![HashMap::new(); patterns], seen: HashMap::new() }
    }

    /// Whether the report includes `trace` (tracemalloc: `Snapshot._filter_trace`).
    pub fn keeps(&mut self, tracebacks: &Tracebacks, trace: &Trace) -> bool {
        let id = if self.filters.all_frames { trace.traceback } else { trace.blamed };
        if let Some(&known) = self.seen.get(&id) {
            return known;
        }
        let includes = self.filters.include.len();
        let patterns = includes + self.filters.exclude.len();
        let included = includes == 0 || (0..includes).any(|i| self.matches(tracebacks, id, i));
        let keeps = included && !(includes..patterns).any(|i| self.matches(tracebacks, id, i));
        self.seen.insert(id, keeps);
        keeps
    }

    fn matches(&mut self, tracebacks: &Tracebacks, id: TracebackId, pattern: usize) -> bool {
        let depth = if self.filters.all_frames { usize::MAX } else { 1 };
        tracebacks.frames(id).take(depth).any(|frame| self.matches_frame(tracebacks, frame, pattern))
    }

    fn matches_frame(&mut self, tracebacks: &Tracebacks, frame: Frame, index: usize) -> bool {
        let pattern = match index.checked_sub(self.filters.include.len()) {
            None => &self.filters.include[index],
            Some(index) => &self.filters.exclude[index],
        };
        if pattern.lineno.is_some_and(|lineno| lineno != frame.lineno) {
            return false;
        }
        let file = Tracebacks::string_index(frame.filename);
        let matches = || pattern.glob.matches(normalize(tracebacks.text(frame.filename)));
        *self.files[index].entry(file).or_insert_with(matches)
    }
}

#[cfg(test)]
mod tests {
    use super::{Pattern, normalize};

    #[test]
    fn a_number_behind_the_last_colon_is_a_line() {
        let parse = |text: &str| text.parse::<Pattern>();
        assert_eq!(parse("a.c").unwrap().lineno, None);
        assert_eq!(parse("a.c:12").unwrap().lineno, Some(12));
        assert_eq!(parse("a:b.c").unwrap().lineno, None);
        assert_eq!(parse("<string>:0").unwrap().lineno, Some(0));
        assert!(parse("").is_err());
        assert!(parse(":5").is_err());
        assert!(parse("a.c:99999999999").is_err());
    }

    #[test]
    fn compiled_python_stands_for_its_source() {
        assert_eq!(normalize("a.pyc"), "a.py");
        assert_eq!(normalize("a.c"), "a.c");
        assert_eq!(normalize("xpyc"), "xpyc");
    }
}

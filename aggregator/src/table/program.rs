//! The trace seen by the program through `import tracemalloc`: a second trace over the same blocks.
//!
//! The program's `start`, `stop`, `clear_traces` and `reset_peak` change only this trace, with one
//! exception: a start with more frames than `--nframe` makes Python's tracebacks longer from then
//! on, for the operator too. (The operator's `clear-traces` also clears the program's trace,
//! because the blocks are gone from the table.)
//!
//! The program's trace counts only blocks allocated after its start, so counted blocks are marked
//! in their rows. The current and the peak sum are updated with each block. Everything else is
//! computed on request.

use super::codes::Codes;
use super::live::Block;
use super::stacks::Stacks;
use hashbrown::HashTable;
use heapline_shared_format::event::as_python_frame;
use heapline_shared_format::query::{GROUP_WORDS, HEAD_WORDS, MAX_NFRAME};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// State and sums of the program's own trace.
#[derive(Debug, Default)]
pub struct ProgramTrace {
    /// Frames of a traceback; 0 while the program does not trace.
    nframe: u32,
    current: u64,
    peak: u64,
}

impl ProgramTrace {
    /// Whether blocks allocated now belong to the trace.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.nframe > 0
    }

    /// Frames of a traceback.
    pub fn nframe(&self) -> u32 {
        self.nframe
    }

    /// Starts the trace, with `nframe` frames of a traceback.
    pub fn start(&mut self, nframe: u64) {
        self.nframe = u32::try_from(nframe).unwrap_or(MAX_NFRAME).clamp(1, MAX_NFRAME);
    }

    /// Stops the trace.
    pub fn stop(&mut self) {
        *self = ProgramTrace::default();
    }

    /// Forgets all blocks of the trace.
    pub fn clear(&mut self) {
        (self.current, self.peak) = (0, 0);
    }

    /// Adds a block to the sums.
    #[inline]
    pub fn gain(&mut self, size: u64) {
        self.current = self.current.saturating_add(size);
        self.peak = self.peak.max(self.current);
    }

    /// Removes a block from the sums.
    #[inline]
    pub fn lose(&mut self, size: u64) {
        self.current = self.current.saturating_sub(size);
    }

    /// Sets the peak to the amount that is live now.
    pub fn reset_peak(&mut self) {
        self.peak = self.current;
    }

    /// Bytes now and at the peak.
    pub fn sums(&self) -> [u64; 2] {
        [self.current, self.peak]
    }
}

/// Key of equal traces: tracemalloc's domain, traceback, size.
type Group = (u32, u32, u64);
/// A traceback for tracemalloc: file and line of each frame, and the true number of frames.
type Traceback = (Vec<[u32; 2]>, u32);

/// Tracebacks and traces for the program's tracemalloc, as a text of
/// [`heapline_shared_format::query`].
pub struct Text<'t> {
    stacks: &'t Stacks,
    codes: &'t Codes,
    nframe: usize,
    files: Vec<String>,
    file_index: HashMap<String, u32>,
    tracebacks: Vec<Traceback>,
    traceback_index: HashTable<u32>,
    hasher: RandomState,
    of_stack: HashMap<u32, u32>,
    groups: HashMap<Group, u64>,
    traces: u64,
    /// Number of frames in all tracebacks.
    frames: usize,
}

/// Most frames in all tracebacks. A text with more is not written; the program gets an empty text.
const MAX_FRAMES: usize = 1 << 26;

impl<'t> Text<'t> {
    /// Returns an empty text for tracebacks of at most `nframe` frames.
    pub fn new(stacks: &'t Stacks, codes: &'t Codes, nframe: u32) -> Text<'t> {
        Text {
            stacks,
            codes,
            nframe: nframe as usize,
            files: Vec::new(),
            file_index: HashMap::new(),
            tracebacks: Vec::new(),
            traceback_index: HashTable::new(),
            hasher: RandomState::new(),
            of_stack: HashMap::new(),
            groups: HashMap::new(),
            traces: 0,
            frames: 0,
        }
    }

    /// Adds the trace of a block.
    pub fn trace(&mut self, domain: u32, block: &Block) {
        let traceback = self.traceback(block.stack);
        *self.groups.entry((domain, traceback, block.size)).or_default() += 1;
        self.traces += 1;
    }

    /// Adds the traceback of a stack. Returns the number of the traceback.
    pub fn traceback(&mut self, stack: u32) -> u32 {
        if let Some(&known) = self.of_stack.get(&stack) {
            return known;
        }
        if self.frames > MAX_FRAMES {
            return 0;
        }
        let tree = self.stacks.tree();
        let frames: Vec<_> = tree.walk(stack).take(self.nframe).collect();
        let places = frames.iter().map(|frame| self.place(frame.address)).collect();
        let total = tree.stacks.get(stack as usize).map_or(0, |stack| u32::from(stack.total_nframe));
        let traceback: Traceback = (places, total);
        let hash = self.hasher.hash_one(&traceback);
        let known = self.traceback_index.find(hash, |&number| self.tracebacks[number as usize] == traceback);
        let number = match known {
            Some(&number) => number,
            None => {
                let number = index(self.tracebacks.len());
                self.frames += traceback.0.len();
                self.tracebacks.push(traceback);
                let (tracebacks, hasher) = (&self.tracebacks, &self.hasher);
                let again = |&number: &u32| hasher.hash_one(&tracebacks[number as usize]);
                self.traceback_index.insert_unique(hash, number, again);
                number
            }
        };
        self.of_stack.insert(stack, number);
        number
    }

    fn place(&mut self, frame: u64) -> [u32; 2] {
        let code = as_python_frame(frame).and_then(|(code, offset)| Some((self.codes.get(code)?, offset)));
        let Some((code, offset)) = code else { return [self.file("<unknown>"), 0] };
        [self.file(&code.filename), code.line(offset)]
    }

    fn file(&mut self, name: &str) -> u32 {
        if let Some(&known) = self.file_index.get(name) {
            return known;
        }
        let number = index(self.files.len());
        self.files.push(name.to_owned());
        self.file_index.insert(name.to_owned(), number);
        number
    }

    /// Returns the text. Empty if the text would be too long.
    pub fn write(self) -> Vec<u8> {
        if self.frames > MAX_FRAMES {
            return Vec::new();
        }
        let mut words = Words(Vec::new());
        words.put(index(self.files.len()));
        words.put(index(self.tracebacks.len()));
        words.put(index(self.groups.len()));
        words.put_long(self.traces);
        debug_assert_eq!(words.0.len(), HEAD_WORDS * 4);
        for file in &self.files {
            words.put(index(file.chars().count()));
            file.chars().for_each(|character| words.put(character.into()));
        }
        for (places, total) in &self.tracebacks {
            words.put(*total);
            words.put(index(places.len()));
            places.as_flattened().iter().for_each(|&word| words.put(word));
        }
        let before = words.0.len();
        let groups = self.groups.len();
        for ((domain, traceback, size), count) in self.groups {
            words.put(domain);
            words.put_long(size);
            words.put(traceback);
            words.put_long(count);
        }
        debug_assert_eq!(words.0.len() - before, groups * GROUP_WORDS * 4);
        words.0
    }
}

struct Words(Vec<u8>);

impl Words {
    fn put(&mut self, word: u32) {
        self.0.extend(word.to_le_bytes());
    }

    fn put_long(&mut self, words: u64) {
        self.0.extend(words.to_le_bytes());
    }
}

/// Number of an entry in a table of less than 2^32 rows.
fn index(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

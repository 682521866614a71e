//! Conservative marking: every word that looks like a pointer to a block is taken for one.
//!
//! 1. The words of the roots are read. A block around a word is reached.
//! 2. The words of each reached block are read in turn.
//!
//! Only aligned words count. Blocks wait in a list of numbers, which is read in batches.

use super::blocks::Blocks;
use super::memory::{Memory, Span};
use super::pages::Pages;
use std::io;

/// Blocks read at a time.
const BATCH: usize = 4096;
/// Root spans read at a time.
const ROOTS: usize = 1024;

/// A set of blocks.
#[derive(Clone, Debug)]
pub struct Reached(Vec<u64>);

impl Reached {
    /// Returns an empty set for so many blocks.
    pub fn none(blocks: usize) -> Reached {
        Reached(vec![0; blocks.div_ceil(64)])
    }

    /// Whether a block is in the set.
    pub fn has(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 != 0
    }

    /// Adds a block. Returns whether the block is new in the set.
    pub fn add(&mut self, index: usize) -> bool {
        let (word, bit) = (&mut self.0[index / 64], 1 << (index % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

/// The blocks of a process and their memory.
pub struct Marking<'m, M> {
    blocks: &'m Blocks,
    pages: &'m Pages,
    memory: &'m mut M,
    reached: Reached,
    /// Reached blocks that were not read.
    pending: Vec<u32>,
}

impl<'m, M: Memory> Marking<'m, M> {
    /// Begins with no block reached.
    pub fn new(blocks: &'m Blocks, pages: &'m Pages, memory: &'m mut M) -> Marking<'m, M> {
        let reached = Reached::none(blocks.len());
        Marking { blocks, pages, memory, reached, pending: Vec::new() }
    }

    /// Marks from words that are roots, as registers are.
    pub fn words(&mut self, words: &[u64]) -> io::Result<()> {
        words.iter().for_each(|&word| reach(self.blocks, &mut self.reached, &mut self.pending, word));
        self.follow()
    }

    /// Marks from the words in spans of memory.
    pub fn roots(&mut self, spans: impl Iterator<Item = Span>) -> io::Result<()> {
        self.roots_on(self.pages, spans)
    }

    /// Marks from the words in spans of memory, which has these pages.
    pub fn roots_on(&mut self, pages: &Pages, spans: impl Iterator<Item = Span>) -> io::Result<()> {
        let mut parts = Vec::with_capacity(ROOTS);
        for part in spans.flat_map(|span| pages.within(span)) {
            parts.push(part);
            if parts.len() == ROOTS {
                self.read(&parts)?;
                self.follow()?;
                parts.clear();
            }
        }
        self.read(&parts)?;
        self.follow()
    }

    /// The blocks reached so far.
    pub fn reached(&self) -> &Reached {
        &self.reached
    }

    /// Returns the reached blocks.
    pub fn finish(self) -> Reached {
        self.reached
    }

    fn read(&mut self, parts: &[Span]) -> io::Result<()> {
        let Marking { blocks, memory, reached, pending, .. } = self;
        memory.read(parts, &mut |_, words| words.iter().for_each(|&word| reach(blocks, reached, pending, word)))
    }

    /// Reads all pending blocks, and the blocks that these reach.
    fn follow(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            let rest = self.pending.len().saturating_sub(BATCH);
            let mut batch = self.pending.split_off(rest);
            batch.sort_unstable();
            let parts: Vec<Span> =
                batch.iter().flat_map(|&index| self.pages.within(self.blocks.reach(index as usize))).collect();
            self.read(&parts)?;
        }
        Ok(())
    }
}

#[inline]
fn reach(blocks: &Blocks, reached: &mut Reached, pending: &mut Vec<u32>, word: u64) {
    if let Some(index) = blocks.find(word)
        && reached.add(index)
    {
        pending.push(u32::try_from(index).unwrap_or(u32::MAX));
    }
}

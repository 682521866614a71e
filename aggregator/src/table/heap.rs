//! One domain's blocks and sums, moved together by each event, with the rules for what cannot have happened.
//!
//! A realloc is two steps. Its block stays live and unchanged until the second one, or until another thread is given
//! its address, which shows that the call has let go of it.

use super::live::{Block, Live};
use super::threads::Threads;
use super::totals::Totals;
use crate::contradiction::{Contradiction, Contradictions};
use std::collections::HashMap;

/// Addresses of recent frees, to tell a second free of a block from a free of a block that is older than the trace.
/// What violates the order does so within microseconds, so a few thousand are enough.
const RECENT_FREES: usize = 4096;

/// See the module.
pub struct Heap {
    live: Live,
    totals: Totals,
    /// Address of each block inside realloc, and which call it is.
    in_realloc: HashMap<u64, u64>,
    /// Counts calls of realloc.
    calls: u64,
    recent_frees: Box<[u64]>,
    untracked_frees: u64,
}

/// A ring's realloc that has begun.
#[derive(Clone, Copy, Debug)]
pub struct PendingRealloc {
    address: u64,
    call: u64,
    /// Whether the block was known when the call began.
    known: bool,
}

/// What the heap counts besides itself.
pub struct Books<'a> {
    /// Who owns blocks.
    pub threads: &'a mut Threads,
    /// What cannot have happened.
    pub contradictions: &'a mut Contradictions,
}

impl Default for Heap {
    fn default() -> Heap {
        Heap {
            live: Live::default(),
            totals: Totals::default(),
            in_realloc: HashMap::new(),
            calls: 0,
            recent_frees: vec![0; RECENT_FREES].into_boxed_slice(),
            untracked_frees: 0,
        }
    }
}

impl Heap {
    /// A block was allocated.
    #[inline]
    pub fn alloc(&mut self, block: Block, books: &mut Books<'_>) {
        let recent = &mut self.recent_frees[recent_index(block.address)];
        if *recent == block.address {
            *recent = 0;
        }
        if let Some(old) = self.live.insert(block) {
            if self.in_realloc.remove(&block.address).is_none() {
                books.contradictions.count(Contradiction::AllocOverLive);
            }
            self.totals.free(old.stack, old.size);
            books.threads.lose(old.thread);
        }
        self.totals.alloc(block.stack, block.size);
        books.threads.gain(block.thread);
    }

    /// The block at `address` was freed.
    #[inline]
    pub fn free(&mut self, address: u64, books: &mut Books<'_>) {
        let recent = &mut self.recent_frees[recent_index(address)];
        let freed_before = *recent == address;
        *recent = address;
        match self.live.remove(address) {
            Some(block) => {
                if !self.in_realloc.is_empty() {
                    self.in_realloc.remove(&address);
                }
                self.totals.free(block.stack, block.size);
                books.threads.lose(block.thread);
            }
            None if freed_before => books.contradictions.count(Contradiction::DoubleFree),
            None => self.untracked_frees += 1,
        }
    }

    /// realloc is about to be called for `address`; `before` is what the ring had begun and not ended.
    pub fn realloc(&mut self, address: u64, before: Option<PendingRealloc>, books: &mut Books<'_>) -> PendingRealloc {
        if let Some(before) = before {
            books.contradictions.count(Contradiction::Realloc);
            self.end(before);
        }
        self.calls += 1;
        let known = self.live.get(address).is_some();
        if known {
            self.in_realloc.insert(address, self.calls);
        }
        PendingRealloc { address, call: self.calls, known }
    }

    /// The call returned a new block.
    pub fn reallocated(&mut self, pending: Option<PendingRealloc>, new: Block, books: &mut Books<'_>) {
        self.let_go(pending, books);
        self.alloc(new, books);
    }

    /// The call returned none, and has freed its block if `freed`.
    pub fn realloc_ended(&mut self, pending: Option<PendingRealloc>, freed: bool, books: &mut Books<'_>) {
        if freed {
            self.let_go(pending, books);
        } else if let Some(pending) = pending
            && !self.end(pending)
            && pending.known
        {
            books.contradictions.count(Contradiction::Realloc);
        }
    }

    /// Frees the block of a realloc, unless another's allocation at its address has shown that before.
    fn let_go(&mut self, pending: Option<PendingRealloc>, books: &mut Books<'_>) {
        let Some(pending) = pending else { return };
        if self.end(pending) {
            self.free(pending.address, books);
        } else if !pending.known {
            self.untracked_frees += 1;
        }
    }

    /// Takes the block out of realloc. False when this call's is no longer in it.
    fn end(&mut self, pending: PendingRealloc) -> bool {
        let is_this = self.in_realloc.get(&pending.address) == Some(&pending.call);
        if is_this {
            self.in_realloc.remove(&pending.address);
        }
        is_this
    }

    /// Forgets everything (tracemalloc.clear_traces). Later frees of what was live are untracked.
    pub fn clear(&mut self, threads: &mut Threads) {
        self.live.clear();
        self.totals.clear();
        self.in_realloc.clear();
        self.recent_frees.fill(0);
        threads.lose_all();
    }

    /// The peak becomes what is live now (tracemalloc.reset_peak).
    pub fn reset_peak(&mut self) {
        self.totals.reset_peak();
    }

    /// The live blocks.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// The sums.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Blocks that are inside realloc now.
    pub fn in_realloc(&self) -> u64 {
        self.in_realloc.len() as u64
    }

    /// Frees of blocks that are older than the trace, or were forgotten.
    pub fn untracked_frees(&self) -> u64 {
        self.untracked_frees
    }
}

#[inline]
fn recent_index(address: u64) -> usize {
    // Blocks are 16 bytes apart, the mask keeps the index below RECENT_FREES.
    (address >> 4) as usize & (RECENT_FREES - 1)
}

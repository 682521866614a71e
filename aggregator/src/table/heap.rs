//! One domain's blocks and sums, moved together by each event, with the rules for what cannot have happened.
//!
//! Allocations and frees are applied in batches: by the time that a batch is full, what its events need has come from
//! memory. First all look up their blocks, then all move the sums, both in their order; [`Heap::catch_up`] ends a batch
//! before anyone looks.
//!
//! A realloc is two steps. Its block stays live and unchanged until the second one, or until another thread is given
//! its address, which shows that the call has let go of it.

use super::live::{Block, Live};
use super::threads::Threads;
use super::totals::Totals;
use crate::contradiction::{Contradiction, Contradictions};
use std::collections::HashMap;

/// Addresses of recent frees, to tell a second free of a block from a free of a block that is older than the trace.
/// What violates the order does so within microseconds, so a thousand are enough.
const RECENT_FREES: usize = 1024;
/// Events of a batch: enough for the memory to answer, few enough to stay in the nearest cache.
const BATCH: usize = 64;

/// See the module.
pub struct Heap {
    live: Live,
    totals: Totals,
    /// Address of each block inside realloc, and which call it is.
    in_realloc: HashMap<u64, u64>,
    /// Counts calls of realloc.
    calls: u64,
    /// Written round and round.
    recent_frees: Box<[u64]>,
    next_recent: usize,
    untracked_frees: u64,
    batch: Vec<Move>,
    /// What a batch changes in the sums.
    changes: Vec<Change>,
}

/// An event that waits for its batch.
#[derive(Clone, Copy)]
enum Move {
    Alloc(Block),
    Free(u64),
}

/// A block comes or goes.
#[derive(Clone, Copy)]
enum Change {
    Gain(Block),
    Lose(Block),
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
            next_recent: 0,
            untracked_frees: 0,
            batch: Vec::with_capacity(BATCH),
            changes: Vec::with_capacity(2 * BATCH),
        }
    }
}

impl Heap {
    /// A block was allocated.
    #[inline(always)]
    pub fn alloc(&mut self, block: Block, books: &mut Books<'_>) {
        self.live.prefetch(block.address);
        self.totals.prefetch(block.stack);
        self.push(Move::Alloc(block), books);
    }

    /// The block at `address` was freed.
    #[inline(always)]
    pub fn free(&mut self, address: u64, books: &mut Books<'_>) {
        self.live.prefetch(address);
        self.push(Move::Free(address), books);
    }

    #[inline(always)]
    fn push(&mut self, event: Move, books: &mut Books<'_>) {
        self.batch.push(event);
        if self.batch.len() == BATCH {
            self.catch_up(books);
        }
    }

    /// Applies what waits in the batch.
    #[inline(never)]
    pub fn catch_up(&mut self, books: &mut Books<'_>) {
        let mut batch = std::mem::take(&mut self.batch);
        for event in batch.drain(..) {
            match event {
                Move::Alloc(block) => self.place(block, books),
                Move::Free(address) => self.take(address, books),
            }
        }
        self.batch = batch;
        for change in self.changes.drain(..) {
            match change {
                Change::Gain(block) => {
                    self.totals.alloc(block.stack, block.size);
                    books.threads.gain(block.thread);
                }
                Change::Lose(block) => {
                    self.totals.free(block.stack, block.size);
                    books.threads.lose(block.thread);
                }
            }
        }
    }

    #[inline]
    fn place(&mut self, block: Block, books: &mut Books<'_>) {
        if let Some(old) = self.live.insert(block) {
            if self.in_realloc.remove(&block.address).is_none() {
                books.contradictions.count(Contradiction::AllocOverLive);
            }
            self.changes.push(Change::Lose(old));
        }
        self.changes.push(Change::Gain(block));
    }

    #[inline]
    fn take(&mut self, address: u64, books: &mut Books<'_>) {
        match self.live.remove(address) {
            Some(block) => {
                if !self.in_realloc.is_empty() {
                    self.in_realloc.remove(&address);
                }
                self.totals.prefetch(block.stack);
                self.changes.push(Change::Lose(block));
            }
            // An allocation since then would have been found.
            None if self.recent_frees.contains(&address) => books.contradictions.count(Contradiction::DoubleFree),
            None => self.untracked_frees += 1,
        }
        self.recent_frees[self.next_recent] = address;
        self.next_recent = (self.next_recent + 1) % RECENT_FREES;
    }

    /// realloc is about to be called for `address`; `before` is what the ring had begun and not ended.
    pub fn realloc(&mut self, address: u64, before: Option<PendingRealloc>, books: &mut Books<'_>) -> PendingRealloc {
        self.catch_up(books);
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
        self.catch_up(books);
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
        self.catch_up(books);
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
        debug_assert!(self.batch.is_empty(), "caught up before");
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

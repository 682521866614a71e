//! Blocks and sums of a domain, changed together by each event.
//!
//! Events are applied in batches. While a batch fills, the memory needed by its events is fetched.
//! A full batch is applied in two passes, each in the order of events:
//!
//! 1. Look up the blocks ([`super::blocks`]).
//! 2. Update the sums.
//!
//! [`Heap::catch_up`] applies an incomplete batch before a read. On machines with enough cores,
//! resolver threads look up the blocks (`resolvers.rs`). Copies are made in steps (`copy.rs`).

use super::births::Recoding;
use super::blocks::{Blocks, Call, Change, Move};
use super::copy::{self, Copying, HeapCopy};
use super::live::{Block, Live, Packed};
use super::resolvers::{self, Resolvers};
use super::shared::Shared;
use super::totals::{EndedStep, Totals};
use crate::table::contradiction::Contradictions;

/// Events of a batch: enough to hide the latency of memory, few enough to stay in the nearest
/// cache.
const BATCH: usize = 64;

/// Live blocks and sums of a domain, with a batch of waiting events.
pub struct Heap {
    place: Place,
    totals: Totals,
    /// Number of realloc calls.
    calls: u64,
    batch: Vec<Move>,
    /// Changes of blocks by the present batch.
    changes: Vec<Change>,
    /// Copies that are being made, the oldest first.
    copies: Vec<Copying>,
}

/// Owner of the blocks: the calling thread, or resolver threads.
enum Place {
    Here(Blocks),
    Spread(Resolvers),
}

impl Heap {
    /// Returns an empty heap. `resolvers` threads besides the calling thread look up blocks.
    pub fn new(resolvers: usize) -> Heap {
        let spread = Resolvers::start(resolvers).map(Place::Spread);
        Heap::with(spread.unwrap_or_else(|| Place::Here(Blocks::default())), Totals::default())
    }

    fn with(place: Place, totals: Totals) -> Heap {
        let (batch, changes) = (Vec::with_capacity(BATCH), Vec::with_capacity(2 * BATCH));
        Heap { place, totals, calls: 0, batch, changes, copies: Vec::new() }
    }

    /// Returns the heap of a forked child. The calling thread alone looks up the blocks. Open
    /// realloc calls of other threads never end in the child, and are left out.
    pub fn inherited(live: Live, totals: &Totals) -> Heap {
        Heap::with(Place::Here(Blocks::of(live)), totals.inherited())
    }

    /// Begins a copy of the heap at this instant. [`Heap::copy_some`] makes the copy.
    pub fn copy(&mut self, shared: &mut Shared) -> HeapCopy {
        self.catch_up(shared);
        let (copying, heap_copy) = copy::begin(&self.totals);
        self.copies.push(copying);
        heap_copy
    }

    /// Goes on with a copy that is being made, by less than a few milliseconds. Returns false if
    /// there is nothing to copy.
    pub fn copy_some(&mut self, shared: &mut Shared) -> bool {
        if self.copies.is_empty() {
            return false;
        }
        self.catch_up(shared);
        let oldest = self.copies.remove(0);
        let copy_blocks = |piece, copied: &mut Packed| {
            self.for_each_part(|blocks| blocks.live().copy(piece, copied));
        };
        if let Some(unfinished) = oldest.step(copy_blocks, &self.totals) {
            self.copies.insert(0, unfinished);
        }
        true
    }

    /// Completes all copies that are being made.
    pub fn end_copies(&mut self, shared: &mut Shared) {
        while self.copy_some(shared) {}
    }

    /// Bytes taken by blocks and sums.
    pub fn bytes(&self) -> usize {
        let mut bytes = self.totals.bytes();
        self.for_each_part(|blocks| bytes += blocks.live().bytes());
        bytes
    }

    /// Adds an allocated block.
    #[inline(always)]
    pub fn alloc(&mut self, block: Block, shared: &mut Shared) {
        self.totals.prefetch(block.stack);
        self.push(Move::Alloc(block), shared);
    }

    /// Removes the freed block at `address`. `next_of` is the freeing thread, if its last event of
    /// the domain has allocated a block at the address.
    #[inline(always)]
    pub fn free(&mut self, address: u64, next_of: Option<u32>, shared: &mut Shared) {
        self.push(Move::Free { address, next_of }, shared);
    }

    /// Forgets the block at `address`. A later free of the block is untracked.
    pub fn forget(&mut self, address: u64, shared: &mut Shared) {
        self.push(Move::Forget(address), shared);
    }

    /// Assigns a live block to another stack and thread. A block older than the trace is ignored.
    #[inline(always)]
    pub fn reuse(&mut self, block: Block, shared: &mut Shared) {
        self.totals.prefetch(block.stack);
        self.push(Move::Reuse(block), shared);
    }

    #[inline(always)]
    fn push(&mut self, event: Move, shared: &mut Shared) {
        let full = match &self.place {
            Place::Here(blocks) => {
                blocks.prefetch(event.address());
                BATCH
            }
            Place::Spread(_) => resolvers::BATCH,
        };
        self.batch.push(event);
        if self.batch.len() >= full {
            self.apply(shared);
        }
    }

    /// Applies the batch.
    #[inline(never)]
    fn apply(&mut self, shared: &mut Shared) {
        let Heap { place, totals, batch, changes, copies, .. } = self;
        match place {
            Place::Here(blocks) => {
                for event in batch.drain(..) {
                    blocks.resolve(event, |change| {
                        if let Change::Lose(block) | Change::LoseAtOnce(block) = &change {
                            totals.prefetch(block.stack);
                        }
                        changes.push(change);
                    });
                }
                let mut books = Books { totals, shared, copies };
                changes.drain(..).for_each(|change| books.book(&change));
            }
            Place::Spread(resolvers) => {
                let mut books = Books { totals, shared, copies };
                resolvers.dispatch(batch, |change| books.book(change));
            }
        }
    }

    /// Applies all waiting events.
    pub fn catch_up(&mut self, shared: &mut Shared) {
        let Heap { place, totals, batch, copies, .. } = self;
        match place {
            Place::Here(_) => self.apply(shared),
            Place::Spread(resolvers) => {
                let mut books = Books { totals, shared, copies };
                resolvers.finish(batch, |change| books.book(change));
            }
        }
    }

    /// Begins a realloc of the block at `address`. `before` is an open call of the same ring.
    pub fn realloc(&mut self, address: u64, before: Option<Call>, shared: &mut Shared) -> Call {
        if let Some(before) = before {
            self.push(Move::Abandon(before), shared);
        }
        self.calls += 1;
        let call = Call { address, number: self.calls };
        self.push(Move::Realloc(call), shared);
        call
    }

    /// Ends a realloc that returned a new block.
    pub fn reallocated(&mut self, call: Option<Call>, new: Block, shared: &mut Shared) {
        if let Some(call) = call {
            self.push(Move::LetGo(call), shared);
        }
        self.alloc(new, shared);
    }

    /// Ends a realloc that returned no block. `freed`: the call has freed the old block.
    pub fn realloc_ended(&mut self, call: Option<Call>, freed: bool, shared: &mut Shared) {
        if let Some(call) = call {
            self.push(if freed { Move::LetGo(call) } else { Move::Keep(call) }, shared);
        }
    }

    /// Forgets all blocks and sums (tracemalloc.clear_traces). Later frees of forgotten blocks are
    /// untracked.
    pub fn clear(&mut self, shared: &mut Shared) {
        self.catch_up(shared);
        self.end_copies(shared);
        match &mut self.place {
            Place::Here(blocks) => blocks.clear(),
            Place::Spread(resolvers) => resolvers.parts().for_each(|mut blocks| blocks.clear()),
        }
        self.totals.clear();
        shared.clear();
    }

    /// Forgets recent frees, because blocks were allocated unseen: frees of such blocks are no
    /// second frees.
    pub fn forget_frees(&mut self, shared: &mut Shared) {
        self.catch_up(shared);
        match &mut self.place {
            Place::Here(blocks) => blocks.forget_frees(),
            Place::Spread(resolvers) => resolvers.parts().for_each(|mut blocks| blocks.forget_frees()),
        }
    }

    /// Changes the codes of all births. Copies that are being made end before, because all blocks
    /// of a copy have codes of one time.
    pub fn recode(&mut self, recoding: &Recoding, shared: &mut Shared) {
        self.catch_up(shared);
        self.end_copies(shared);
        match &mut self.place {
            Place::Here(blocks) => blocks.recode(recoding),
            Place::Spread(resolvers) => resolvers.parts().for_each(|mut blocks| blocks.recode(recoding)),
        }
    }

    /// Removes all blocks from the program's own trace.
    pub fn leave_program(&mut self, shared: &mut Shared) {
        self.catch_up(shared);
        match &mut self.place {
            Place::Here(blocks) => blocks.leave_program(),
            Place::Spread(resolvers) => resolvers.parts().for_each(|mut blocks| blocks.leave_program()),
        }
    }

    /// Sets the peak to the present live amount (tracemalloc.reset_peak).
    pub fn reset_peak(&mut self, shared: &mut Shared) {
        self.catch_up(shared);
        self.totals.reset_peak();
    }

    /// Ends a step of the sums ([`Totals::end_step`]).
    pub fn end_step(&mut self, spent: EndedStep, shared: &mut Shared) -> EndedStep {
        self.catch_up(shared);
        self.totals.end_step(spent)
    }

    /// Moves the sums of an ended thread without live blocks to a row of ended threads. Waiting
    /// events name no such thread.
    pub fn fold(&mut self, thread: u32, ended: u32) {
        self.totals.fold(thread, ended);
    }

    /// Sums of the domain.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Returns the live block at an address.
    pub fn block(&self, address: u64) -> Option<Block> {
        match &self.place {
            Place::Here(blocks) => blocks.live().get(address),
            Place::Spread(resolvers) => resolvers.part(address).live().get(address),
        }
    }

    /// All live blocks, in no order.
    pub fn live(&self) -> Vec<Block> {
        let mut all = Vec::with_capacity(usize::try_from(self.totals.current().count).unwrap_or(0));
        self.for_each_part(|blocks| all.extend(blocks.live().iter()));
        all
    }

    /// Number of blocks inside realloc.
    pub fn in_realloc(&self) -> u64 {
        self.sum(Blocks::in_realloc)
    }

    /// Number of frees of blocks that are older than the trace, or were forgotten.
    pub fn untracked_frees(&self) -> u64 {
        self.sum(Blocks::untracked_frees)
    }

    /// Counts of contradictions.
    pub fn contradictions(&self) -> Contradictions {
        let mut all = Contradictions::default();
        self.for_each_part(|blocks| all.add(blocks.contradictions()));
        all
    }

    fn sum(&self, count: impl Fn(&Blocks) -> u64) -> u64 {
        let mut sum = 0;
        self.for_each_part(|blocks| sum += count(blocks));
        sum
    }

    fn for_each_part(&self, mut look: impl FnMut(&Blocks)) {
        match &self.place {
            Place::Here(blocks) => look(blocks),
            Place::Spread(resolvers) => resolvers.parts().for_each(|blocks| look(&blocks)),
        }
    }
}

/// All that a change of a block changes.
struct Books<'h> {
    totals: &'h mut Totals,
    shared: &'h mut Shared,
    copies: &'h mut [Copying],
}

impl Books<'_> {
    /// Applies a change to the sums.
    #[inline(always)]
    fn book(&mut self, change: &Change) {
        if !self.copies.is_empty() {
            self.note(change);
        }
        let Books { totals, shared, .. } = self;
        match change {
            Change::Gain(block) => {
                totals.alloc(block.stack, shared.share(block), block.size);
                shared.gain(block);
            }
            Change::Lose(block) => {
                totals.free(block.stack, shared.share(block), block.size, shared.ending(block, false));
                shared.lose(block);
            }
            Change::LoseAtOnce(block) => {
                totals.free(block.stack, shared.share(block), block.size, shared.ending(block, true));
                shared.lose(block);
            }
            Change::Join(block) => {
                totals.join(block.stack, shared.share(block), block.size);
                shared.threads.gain(block.thread);
            }
            Change::Leave(block) => {
                totals.leave(block.stack, shared.share(block), block.size);
                shared.threads.lose(block.thread);
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn note(&mut self, change: &Change) {
        for copying in &mut *self.copies {
            copying.before(self.totals, change);
        }
    }
}

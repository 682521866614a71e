//! One domain's blocks and sums, moved together by each event.
//!
//! Events are applied in batches: by the time that a batch is full, what its events need has come from memory. First
//! all look up their blocks ([`super::blocks`]), then all move the sums, both in their order; [`Heap::catch_up`] ends a
//! batch before anyone looks. Where there are cores enough, resolvers look up (`resolvers.rs`).

use super::blocks::{Blocks, Call, Change, Move};
use super::live::{Block, Live};
use super::resolvers::{self, Resolvers};
use super::shared::Shared;
use super::totals::Totals;
use crate::table::contradiction::Contradictions;

/// Events of a batch: enough for the memory to answer, few enough to stay in the nearest cache.
const BATCH: usize = 64;

/// See the module.
pub struct Heap {
    place: Place,
    totals: Totals,
    /// Calls of realloc so far.
    calls: u64,
    batch: Vec<Move>,
    /// What comes and goes by a batch.
    changes: Vec<Change>,
}

/// Who has the blocks.
enum Place {
    Here(Blocks),
    Spread(Resolvers),
}

impl Heap {
    /// An empty heap whose blocks are looked up by so many threads besides the calling one.
    pub fn new(resolvers: usize) -> Heap {
        let spread = Resolvers::start(resolvers).map(Place::Spread);
        Heap::with(spread.unwrap_or_else(|| Place::Here(Blocks::default())), Totals::default())
    }

    fn with(place: Place, totals: Totals) -> Heap {
        let (batch, changes) = (Vec::with_capacity(BATCH), Vec::with_capacity(2 * BATCH));
        Heap { place, totals, calls: 0, batch, changes }
    }

    /// What a forked child begins with: the live blocks, looked up by the calling thread alone; calls of realloc that other
    /// threads are in never end there.
    pub fn inherited(&mut self, shared: &mut Shared) -> Heap {
        self.catch_up(shared);
        let mut live = match &self.place {
            Place::Here(blocks) => blocks.live().clone(),
            Place::Spread(resolvers) => {
                let mut all = Live::default();
                resolvers.parts().for_each(|blocks| {
                    for block in blocks.live().iter() {
                        all.insert(block);
                    }
                });
                all
            }
        };
        live.leave_program();
        let place = Place::Here(Blocks::of(live));
        Heap::with(place, self.totals.inherited())
    }

    /// Bytes that the blocks and sums take.
    pub fn bytes(&self) -> usize {
        let mut bytes = self.totals.bytes();
        self.for_each_part(|blocks| bytes += blocks.live().bytes());
        bytes
    }

    /// A block was allocated.
    #[inline(always)]
    pub fn alloc(&mut self, block: Block, shared: &mut Shared) {
        self.totals.prefetch(block.stack);
        self.push(Move::Alloc(block), shared);
    }

    /// The block at `address` was freed.
    #[inline(always)]
    pub fn free(&mut self, address: u64, shared: &mut Shared) {
        self.push(Move::Free(address), shared);
    }

    /// The block at `address` is not to be known any more; its free will be untracked.
    pub fn forget(&mut self, address: u64, shared: &mut Shared) {
        self.push(Move::Forget(address), shared);
    }

    /// A block is another object's from now on; nothing happens when it is older than the trace.
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

    /// Applies a full batch.
    #[inline(never)]
    fn apply(&mut self, shared: &mut Shared) {
        let Heap { place, totals, batch, changes, .. } = self;
        match place {
            Place::Here(blocks) => {
                for event in batch.drain(..) {
                    blocks.resolve(event, |change| {
                        if let Change::Lose(block) = &change {
                            totals.prefetch(block.stack);
                        }
                        changes.push(change);
                    });
                }
                changes.drain(..).for_each(|change| book(totals, shared, &change));
            }
            Place::Spread(resolvers) => resolvers.dispatch(batch, |change| book(totals, shared, change)),
        }
    }

    /// Applies all that waits.
    pub fn catch_up(&mut self, shared: &mut Shared) {
        match &mut self.place {
            Place::Here(_) => self.apply(shared),
            Place::Spread(resolvers) => {
                let totals = &mut self.totals;
                resolvers.finish(&mut self.batch, |change| book(totals, shared, change));
            }
        }
    }

    /// realloc is about to be called for `address`; `before` is what the ring had begun and not ended.
    pub fn realloc(&mut self, address: u64, before: Option<Call>, shared: &mut Shared) -> Call {
        if let Some(before) = before {
            self.push(Move::Abandon(before), shared);
        }
        self.calls += 1;
        let call = Call { address, number: self.calls };
        self.push(Move::Realloc(call), shared);
        call
    }

    /// The call returned a new block.
    pub fn reallocated(&mut self, call: Option<Call>, new: Block, shared: &mut Shared) {
        if let Some(call) = call {
            self.push(Move::LetGo(call), shared);
        }
        self.alloc(new, shared);
    }

    /// The call returned none, and has freed its block if `freed`.
    pub fn realloc_ended(&mut self, call: Option<Call>, freed: bool, shared: &mut Shared) {
        if let Some(call) = call {
            self.push(if freed { Move::LetGo(call) } else { Move::Keep(call) }, shared);
        }
    }

    /// Forgets everything (tracemalloc.clear_traces). Later frees of what was live are untracked.
    pub fn clear(&mut self, shared: &mut Shared) {
        self.catch_up(shared);
        match &mut self.place {
            Place::Here(blocks) => blocks.clear(),
            Place::Spread(resolvers) => resolvers.parts().for_each(|mut blocks| blocks.clear()),
        }
        self.totals.clear();
        shared.clear();
    }

    /// Blocks have come unseen: frees of theirs are not taken for second ones.
    pub fn forget_frees(&mut self, shared: &mut Shared) {
        self.catch_up(shared);
        match &mut self.place {
            Place::Here(blocks) => blocks.forget_frees(),
            Place::Spread(resolvers) => resolvers.parts().for_each(|mut blocks| blocks.forget_frees()),
        }
    }

    /// No block is in the program's own trace any more.
    pub fn leave_program(&mut self, shared: &mut Shared) {
        self.catch_up(shared);
        match &mut self.place {
            Place::Here(blocks) => blocks.leave_program(),
            Place::Spread(resolvers) => resolvers.parts().for_each(|mut blocks| blocks.leave_program()),
        }
    }

    /// The peak becomes what is live now (tracemalloc.reset_peak).
    pub fn reset_peak(&mut self, shared: &mut Shared) {
        self.catch_up(shared);
        self.totals.reset_peak();
    }

    /// The sums.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The live block at an address.
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

    /// Blocks that are inside realloc now.
    pub fn in_realloc(&self) -> u64 {
        self.sum(Blocks::in_realloc)
    }

    /// Frees of blocks that are older than the trace, or were forgotten.
    pub fn untracked_frees(&self) -> u64 {
        self.sum(Blocks::untracked_frees)
    }

    /// What cannot have happened.
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

/// Moves the sums.
#[inline(always)]
fn book(totals: &mut Totals, shared: &mut Shared, change: &Change) {
    match change {
        Change::Gain(block) => {
            totals.alloc(block.stack, block.size);
            shared.gain(block);
        }
        Change::Lose(block) => {
            totals.free(block.stack, block.size);
            shared.lose(block);
        }
        Change::Join(block) => {
            totals.join(block.stack, block.size);
            shared.threads.gain(block.thread);
        }
        Change::Leave(block) => {
            totals.leave(block.stack, block.size);
            shared.threads.lose(block.thread);
        }
    }
}

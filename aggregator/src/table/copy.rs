//! A copy of a heap at one instant, made in steps while the heap goes on.
//!
//! A heap of 10^7 blocks takes a tenth of a second to copy, and the target cannot wait so long. So
//! the table's thread copies a piece whenever it has applied some events:
//!
//! | Part | Pieces | A change after the instant, in a part that is not copied yet |
//! | --- | --- | --- |
//! | live blocks | pieces of shards | the block is noted as come or gone |
//! | sums of stacks | chunks of rows | the chunk is copied before the change |
//!
//! Blocks at the instant are the copied blocks and the gone blocks, without the come blocks. The
//! blocks are counted, in no order: a block that has come and gone is in both lists.
//!
//! The pieces go at once to the receiver, who works on another thread. A receiver that has left
//! ends the copy.

use super::blocks::Change;
use super::live::{Block, Live, PIECES, Packed, piece};
use super::totals::{Totals, TotalsCopy};
use hashbrown::HashMap;
use std::sync::mpsc::{self, Receiver, Sender};

/// Number of blocks that are worth a message to the receiver. Few in tests, so that copies of small
/// heaps take many steps.
const SOME: usize = if cfg!(test) { 4 } else { 4096 };

/// A piece of a copy.
enum Piece {
    /// Blocks copied after the instant: one piece, or several small ones.
    Blocks(Packed),
    /// The last piece.
    Rest(Box<Rest>),
}

/// The end of a copy.
struct Rest {
    /// Blocks that came after the instant, before their piece was copied.
    come: Packed,
    /// Blocks that went after the instant, before their piece was copied.
    gone: Packed,
    /// The sums at the instant.
    totals: TotalsCopy,
}

/// A copy being made, at the heap.
pub struct Copying {
    to: Sender<Piece>,
    /// The next piece of the live blocks. All earlier pieces are copied.
    next: usize,
    rest: Box<Rest>,
}

/// A copy being made, at the receiver.
pub struct HeapCopy {
    pieces: Receiver<Piece>,
    /// Number of the blocks at the instant.
    blocks: u64,
}

/// Begins a copy of a heap with these sums.
pub fn begin(totals: &Totals) -> (Copying, HeapCopy) {
    let (to, pieces) = mpsc::channel();
    let rest = Rest { come: Packed::default(), gone: Packed::default(), totals: totals.copy() };
    (Copying { to, next: 0, rest: Box::new(rest) }, HeapCopy { pieces, blocks: totals.current().count })
}

impl Copying {
    /// Notes a change that is about to be applied to the sums.
    pub fn before(&mut self, totals: &Totals, change: &Change) {
        let Rest { come, gone, totals: sums } = &mut *self.rest;
        let (block, list) = match change {
            Change::Gain(block) | Change::Join(block) => (block, come),
            Change::Lose(block) | Change::LoseAtOnce(block) | Change::Leave(block) => (block, gone),
        };
        sums.before(totals, block.stack);
        if piece(block) >= self.next {
            list.push(block);
        }
    }

    /// Copies some pieces. `copy_blocks` copies the blocks of a piece. Returns the copy, unless the
    /// copy is complete or nobody wants it.
    pub fn step(mut self, copy_blocks: impl Fn(usize, &mut Packed), totals: &Totals) -> Option<Copying> {
        if self.next < PIECES {
            let mut copied = Packed::default();
            while self.next < PIECES && copied.len() < SOME {
                copy_blocks(self.next, &mut copied);
                self.next += 1;
            }
            return self.to.send(Piece::Blocks(copied)).ok().map(|()| self);
        }
        if self.rest.totals.step(totals) {
            // The receiver may have left.
            let _ = self.to.send(Piece::Rest(self.rest));
            return None;
        }
        Some(self)
    }
}

impl HeapCopy {
    /// Waits for all pieces. `add` receives each block, with 1 for a block to add and -1 for a
    /// block to take away; for each block the sum is its number at the instant. Returns the sums at
    /// the instant. None if the heap is gone before the end of the copy.
    pub fn collect(self, mut add: impl FnMut(Block, i64)) -> Option<Totals> {
        let Rest { come, gone, totals } = self.each_piece(|block| add(block, 1))?;
        gone.iter().for_each(|block| add(block, 1));
        come.iter().for_each(|block| add(block, -1));
        Some(totals.finish())
    }

    /// Waits for all pieces. Returns the live blocks and the sums at the instant. None if the heap
    /// is gone before the end of the copy.
    pub fn live(self) -> Option<(Live, Totals)> {
        let mut live = Live::with_room(self.blocks);
        let Rest { come, gone, totals } = self.each_piece(|block| _ = live.insert(block))?;
        // Blocks that were short-lived after the instant are in both lists, and cancel out.
        let mut changes: HashMap<Block, i64> = HashMap::new();
        gone.iter().for_each(|block| *changes.entry(block).or_default() += 1);
        come.iter().for_each(|block| *changes.entry(block).or_default() -= 1);
        for (block, _) in changes.iter().filter(|&(_, &n)| n < 0) {
            live.remove(block.address);
        }
        for (&block, _) in changes.iter().filter(|&(_, &n)| n > 0) {
            live.insert(block);
        }
        Some((live, totals.finish()))
    }

    fn each_piece(self, mut each: impl FnMut(Block)) -> Option<Rest> {
        loop {
            match self.pieces.recv().ok()? {
                Piece::Blocks(blocks) => blocks.iter().for_each(&mut each),
                Piece::Rest(rest) => return Some(*rest),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::heap::Heap;
    use super::super::shared::Shared;
    use super::super::stream::Stream;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A copy, and the state of the heap when the copy began.
    struct Begun {
        copy: HeapCopy,
        live: Vec<Block>,
        totals: Totals,
    }

    fn unmarked(blocks: impl IntoIterator<Item = Block>) -> Vec<Block> {
        let mut blocks: Vec<Block> = blocks.into_iter().map(|block| Block { in_program: false, ..block }).collect();
        blocks.sort_by_key(|block| block.address);
        blocks
    }

    fn sums(totals: &Totals) -> impl PartialEq + std::fmt::Debug + use<> {
        let rows = [totals.stacks().collect::<Vec<_>>(), totals.threads().collect(), totals.ended().collect()];
        (totals.current(), totals.peak(), totals.total(), totals.frees(), rows)
    }

    impl Begun {
        fn of(heap: &mut Heap, shared: &mut Shared) -> Begun {
            let copy = heap.copy(shared);
            Begun { copy, live: unmarked(heap.live()), totals: heap.totals().clone() }
        }

        /// Checks a complete copy, as a snapshot counts blocks, or as a forked child takes them.
        fn check(self, is_fork: bool) {
            let (live, totals) = if is_fork {
                let (live, totals) = self.copy.live().expect("complete");
                (unmarked(live.iter()), totals)
            } else {
                let mut counts: BTreeMap<u64, HashMap<Block, i64>> = BTreeMap::new();
                let add = |block: Block, n| *counts.entry(block.address).or_default().entry(block).or_default() += n;
                let totals = self.copy.collect(add).expect("complete");
                let counts = counts.into_values().flatten().filter(|&(_, n)| n != 0);
                (unmarked(counts.inspect(|&(block, n)| assert_eq!(n, 1, "{block:?}")).map(|(block, _)| block)), totals)
            };
            assert_eq!(live, self.live);
            assert_eq!(sums(&totals), sums(&self.totals));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Several copies at a time, beside all kinds of events.
        #[test]
        fn a_copy_is_the_heap_of_its_instant(
            seed in any::<u64>(),
            resolvers in 0..3usize,
            turns in prop::collection::vec((0..3_000u32, 0..6u32, 0..400u32), 1..12),
        ) {
            let (mut heap, mut shared) = (Heap::new(resolvers), Shared::default());
            shared.threads.open(1, false);
            let mut stream = Stream::new(seed);
            let mut begun = Vec::new();
            for (events, act, steps) in turns {
                (0..events).for_each(|_| stream.step(&mut heap, &mut shared));
                match act {
                    0 => heap.reset_peak(&mut shared),
                    1 => heap.leave_program(&mut shared),
                    2 if events % 4 == 0 => {
                        heap.clear(&mut shared);
                        shared.threads.open(1, false);
                    }
                    _ => begun.push(Begun::of(&mut heap, &mut shared)),
                }
                for _ in 0..steps {
                    heap.copy_some(&mut shared);
                    stream.step(&mut heap, &mut shared);
                }
            }
            heap.end_copies(&mut shared);
            prop_assert!(!heap.copy_some(&mut shared));
            begun.into_iter().enumerate().for_each(|(i, begun)| begun.check(i % 2 == 0));
        }
    }

    #[test]
    fn a_copy_that_nobody_wants_ends_and_a_lost_heap_ends_its_copies() {
        let (mut heap, mut shared) = (Heap::new(0), Shared::default());
        drop(heap.copy(&mut shared));
        assert!(heap.copy_some(&mut shared) && !heap.copy_some(&mut shared));
        let copy = heap.copy(&mut shared);
        heap.copy_some(&mut shared);
        drop(heap);
        assert!(copy.collect(|_, _| ()).is_none());
    }
}

//! The state of each address: live blocks, blocks inside realloc, and the rules for contradictions.
//!
//! Events at different addresses do not depend on each other. So addresses can be divided among
//! several [`Blocks`], each with a thread (`resolvers.rs`), if each part gets its events in order.
//!
//! A realloc has two steps. The block stays live and unchanged until one of these events:
//!
//! 1. The second step arrives.
//! 2. Another thread is given the block's address. This shows that the call has let go of the
//!    block.

use super::births::Recoding;
use super::live::{Block, Live};
use crate::table::contradiction::{Contradiction, Contradictions};

/// Number of remembered free addresses, for distinguishing two cases: a second free of a block, and
/// a free of a block older than the trace. A second free in violation of the order follows within
/// microseconds, so a thousand addresses are enough.
const RECENT_FREES: usize = 1024;

/// A call of realloc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Address of the old block.
    pub address: u64,
    /// Number of the call, counted over all calls.
    pub number: u64,
}

/// An event at an address.
#[derive(Clone, Copy, Debug)]
pub enum Move {
    /// A block is allocated.
    Alloc(Block),
    /// A block is freed.
    Free {
        /// Address of the block.
        address: u64,
        /// The freeing thread, if its last event of the domain has allocated a block at the
        /// address.
        next_of: Option<u32>,
    },
    /// A block is forgotten, though the block may live on.
    Forget(u64),
    /// A live block is used for another object. Stack, thread and birth change, the size stays.
    Reuse(Block),
    /// A realloc begins.
    Realloc(Call),
    /// The realloc has let go of the block, by moving or freeing.
    LetGo(Call),
    /// The realloc has failed, and the block lives on.
    Keep(Call),
    /// The thread has begun another realloc without ending this call.
    Abandon(Call),
}

impl Move {
    /// Address of the event.
    #[inline]
    pub fn address(&self) -> u64 {
        match self {
            Move::Alloc(block) | Move::Reuse(block) => block.address,
            Move::Free { address, .. } | Move::Forget(address) => *address,
            Move::Realloc(call) | Move::LetGo(call) | Move::Keep(call) | Move::Abandon(call) => call.address,
        }
    }
}

/// A change of a live block.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// The block is live now.
    Gain(Block),
    /// The block is not live any more.
    Lose(Block),
    /// The block is not live any more: the thread has freed the block by its next event.
    LoseAtOnce(Block),
    /// A live block now belongs to this stack and thread, and belonged to others before.
    Join(Block),
    /// A live block belonged to this stack and thread, and now belongs to others.
    Leave(Block),
}

/// Live blocks and open calls of realloc, for all or a part of the addresses.
pub struct Blocks {
    live: Live,
    /// Open calls of realloc with a live block: at most one call for each ring.
    in_realloc: Vec<Call>,
    /// Open calls of realloc with a block older than the trace.
    in_realloc_untracked: Vec<Call>,
    /// Ring buffer of free addresses.
    recent_frees: Box<[u64]>,
    next_recent: usize,
    untracked_frees: u64,
    contradictions: Contradictions,
}

impl Default for Blocks {
    fn default() -> Blocks {
        Blocks::of(Live::default())
    }
}

impl Blocks {
    /// Returns a table with these live blocks and without open calls.
    pub fn of(live: Live) -> Blocks {
        Blocks {
            live,
            in_realloc: Vec::new(),
            in_realloc_untracked: Vec::new(),
            recent_frees: vec![0; RECENT_FREES].into_boxed_slice(),
            next_recent: 0,
            untracked_frees: 0,
            contradictions: Contradictions::default(),
        }
    }

    /// Announces an event at an address.
    #[inline]
    pub fn prefetch(&self, address: u64) {
        self.live.prefetch(address);
    }

    /// Applies an event. `changed` receives the resulting changes.
    #[inline(always)]
    pub fn resolve(&mut self, event: Move, mut changed: impl FnMut(Change)) {
        match event {
            Move::Alloc(block) => {
                if let Some(old) = self.place(block) {
                    changed(Change::Lose(old));
                }
                changed(Change::Gain(block));
            }
            Move::Free { address, next_of } => {
                if let Some(block) = self.take(address) {
                    // Another thread may have freed the block, and got the address.
                    let is_temporary = next_of == Some(block.thread);
                    changed(if is_temporary { Change::LoseAtOnce(block) } else { Change::Lose(block) });
                }
            }
            Move::Forget(address) => {
                if let Some(block) = self.live.remove(address) {
                    remove(&mut self.in_realloc, |call| call.address == address);
                    // A forgotten block may be freed later. This is no second free.
                    self.recent_frees.iter_mut().filter(|free| **free == address).for_each(|free| *free = 0);
                    changed(Change::Lose(block));
                }
            }
            Move::Reuse(now) => {
                if let Some(before) = self.live.get(now.address) {
                    let now = Block { stack: now.stack, thread: now.thread, birth: now.birth, ..before };
                    self.live.insert(now);
                    changed(Change::Join(now));
                    changed(Change::Leave(before));
                }
            }
            rare => {
                if let Some(block) = self.resolve_realloc(rare) {
                    changed(Change::Lose(block));
                }
            }
        }
    }

    #[inline(always)]
    fn place(&mut self, block: Block) -> Option<Block> {
        let old = self.live.insert(block);
        if old.is_some() && !remove(&mut self.in_realloc, |call| call.address == block.address) {
            self.contradictions.count(Contradiction::AllocOverLive);
        }
        old
    }

    #[inline(always)]
    fn take(&mut self, address: u64) -> Option<Block> {
        let block = self.live.remove(address);
        if block.is_some() {
            remove(&mut self.in_realloc, |call| call.address == address);
        } else if self.recent_frees.contains(&address) {
            // The address was not allocated since the recent free: otherwise a live block would
            // have been found.
            self.contradictions.count(Contradiction::DoubleFree);
        } else {
            self.untracked_frees += 1;
        }
        self.recent_frees[self.next_recent] = address;
        self.next_recent = (self.next_recent + 1) % RECENT_FREES;
        block
    }

    #[inline(never)]
    fn resolve_realloc(&mut self, event: Move) -> Option<Block> {
        match event {
            Move::Realloc(call) => {
                if self.live.get(call.address).is_some() {
                    // Only the younger call can let go of the block.
                    remove(&mut self.in_realloc, |other| other.address == call.address);
                    self.in_realloc.push(call);
                } else {
                    self.in_realloc_untracked.push(call);
                }
            }
            Move::LetGo(call) => {
                if self.end(call) {
                    return self.take(call.address);
                }
                if self.end_untracked(call) {
                    self.untracked_frees += 1;
                }
            }
            Move::Keep(call) => {
                if !self.end(call) && !self.end_untracked(call) {
                    self.contradictions.count(Contradiction::Realloc);
                }
            }
            Move::Abandon(call) => {
                let _ = self.end(call) || self.end_untracked(call);
            }
            Move::Alloc(_) | Move::Free { .. } | Move::Forget(_) | Move::Reuse(_) => {}
        }
        None
    }

    /// Ends an open call with a live block. Returns false if the call is not open, or the block is
    /// gone.
    fn end(&mut self, call: Call) -> bool {
        remove(&mut self.in_realloc, |other| *other == call)
    }

    fn end_untracked(&mut self, call: Call) -> bool {
        remove(&mut self.in_realloc_untracked, |other| *other == call)
    }

    /// Forgets all blocks. An open realloc ends as a call on a block older than the trace.
    pub fn clear(&mut self) {
        self.live.clear();
        self.in_realloc_untracked.append(&mut self.in_realloc);
        self.recent_frees.fill(0);
    }

    /// Forgets recent frees, because blocks were allocated unseen: a free at a recently freed
    /// address is no second free.
    pub fn forget_frees(&mut self) {
        self.recent_frees.fill(0);
    }

    /// Clears the mark of the program's own trace in all blocks.
    pub fn leave_program(&mut self) {
        self.live.leave_program();
    }

    /// Changes the codes of all births.
    pub fn recode(&mut self, recoding: &Recoding) {
        self.live.recode(recoding);
    }

    /// The live blocks.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Number of blocks inside realloc.
    pub fn in_realloc(&self) -> u64 {
        self.in_realloc.len() as u64
    }

    /// Number of frees of blocks that are older than the trace, or were forgotten.
    pub fn untracked_frees(&self) -> u64 {
        self.untracked_frees
    }

    /// Counts of contradictions.
    pub fn contradictions(&self) -> &Contradictions {
        &self.contradictions
    }
}

/// Removes the first matching call. Returns false if no call matches.
#[inline]
fn remove(calls: &mut Vec<Call>, is_it: impl Fn(&Call) -> bool) -> bool {
    let place = calls.iter().position(is_it);
    place.map(|place| calls.swap_remove(place)).is_some()
}

//! What happens at each address: blocks that come, go and are inside realloc, with the rules for what cannot be.
//!
//! Nothing here depends on what happens at other addresses. So the addresses can be dealt out to several [`Blocks`],
//! each with a thread of its own (`resolvers.rs`), as long as each gets its events in their order.
//!
//! A realloc is two steps. Its block stays live and unchanged until the second one, or until another thread is given
//! its address, which shows that the call has let go of it.

use super::live::{Block, Live};
use crate::table::contradiction::{Contradiction, Contradictions};

/// Addresses of recent frees, to tell a second free of a block from a free of a block that is older than the trace.
/// What violates the order does so within microseconds, so a thousand are enough.
const RECENT_FREES: usize = 1024;

/// A call of realloc: the address that it was given, and which call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The old block's address.
    pub address: u64,
    /// Counted over all calls.
    pub number: u64,
}

/// What happens at one address.
#[derive(Clone, Copy, Debug)]
pub enum Move {
    /// A block comes.
    Alloc(Block),
    /// A block goes.
    Free(u64),
    /// A block is not to be known any more, though it may live on.
    Forget(u64),
    /// A block is another object's from now on: who asked for it changes, its size does not.
    Reuse(Block),
    /// A realloc begins.
    Realloc(Call),
    /// It has let go of its block, by moving or by freeing it.
    LetGo(Call),
    /// It has failed: its block lives on.
    Keep(Call),
    /// Its thread has begun another without ending it.
    Abandon(Call),
}

impl Move {
    /// Where it happens.
    #[inline]
    pub fn address(&self) -> u64 {
        match self {
            Move::Alloc(block) | Move::Reuse(block) => block.address,
            Move::Free(address) | Move::Forget(address) => *address,
            Move::Realloc(call) | Move::LetGo(call) | Move::Keep(call) | Move::Abandon(call) => call.address,
        }
    }
}

/// A block comes or goes.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// It is live now.
    Gain(Block),
    /// It is no more.
    Lose(Block),
    /// It has become this one's who asks for it, and was another's.
    Join(Block),
    /// It has become another's, and was this one's who asked for it.
    Leave(Block),
}

/// See the module.
pub struct Blocks {
    live: Live,
    /// Calls of realloc whose block is live: at most one for each ring.
    in_realloc: Vec<Call>,
    /// Those whose block is older than the trace.
    in_realloc_untracked: Vec<Call>,
    /// Written round and round.
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
    /// These live blocks, with nothing going on.
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

    /// Says that something will soon happen at an address.
    #[inline]
    pub fn prefetch(&self, address: u64) {
        self.live.prefetch(address);
    }

    /// Lets something happen; `changed` is told what comes and goes by it.
    #[inline(always)]
    pub fn resolve(&mut self, event: Move, mut changed: impl FnMut(Change)) {
        match event {
            Move::Alloc(block) => {
                if let Some(old) = self.place(block) {
                    changed(Change::Lose(old));
                }
                changed(Change::Gain(block));
            }
            Move::Free(address) => {
                if let Some(block) = self.take(address) {
                    changed(Change::Lose(block));
                }
            }
            Move::Forget(address) => {
                if let Some(block) = self.live.remove(address) {
                    remove(&mut self.in_realloc, |call| call.address == address);
                    // Its free comes some time, and is no second one.
                    self.recent_frees.iter_mut().filter(|free| **free == address).for_each(|free| *free = 0);
                    changed(Change::Lose(block));
                }
            }
            Move::Reuse(now) => {
                if let Some(before) = self.live.get(now.address) {
                    let now = Block { stack: now.stack, thread: now.thread, ..before };
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
            // An allocation since then would have been found.
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
                    // The younger call is the one that may let go of the block.
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
            Move::Alloc(_) | Move::Free(_) | Move::Forget(_) | Move::Reuse(_) => {}
        }
        None
    }

    /// Takes the block out of realloc. False when this call's is no longer in it.
    fn end(&mut self, call: Call) -> bool {
        remove(&mut self.in_realloc, |other| *other == call)
    }

    fn end_untracked(&mut self, call: Call) -> bool {
        remove(&mut self.in_realloc_untracked, |other| *other == call)
    }

    /// Forgets all blocks. What was in realloc ends as a call on a block that is older than the trace.
    pub fn clear(&mut self) {
        self.live.clear();
        self.in_realloc_untracked.append(&mut self.in_realloc);
        self.recent_frees.fill(0);
    }

    /// Blocks have come unseen: a free at an address that was freed before is no second one.
    pub fn forget_frees(&mut self) {
        self.recent_frees.fill(0);
    }

    /// No block is in the program's own trace any more.
    pub fn leave_program(&mut self) {
        self.live.leave_program();
    }

    /// The live blocks.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Blocks that are inside realloc now.
    pub fn in_realloc(&self) -> u64 {
        self.in_realloc.len() as u64
    }

    /// Frees of blocks that are older than the trace, or were forgotten.
    pub fn untracked_frees(&self) -> u64 {
        self.untracked_frees
    }

    /// What cannot have happened.
    pub fn contradictions(&self) -> &Contradictions {
        &self.contradictions
    }
}

/// Removes the first that is the one. False when there is none.
#[inline]
fn remove(calls: &mut Vec<Call>, is_it: impl Fn(&Call) -> bool) -> bool {
    let place = calls.iter().position(is_it);
    place.map(|place| calls.swap_remove(place)).is_some()
}

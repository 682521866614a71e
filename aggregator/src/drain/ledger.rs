//! Who owns which segment of the pool, known without asking the target.

use heapline_shared_format::arena::Arena;
use heapline_shared_format::ring::Ledger;

const FREE: u32 = 0;
/// Outside of this session's pool.
const LEFT_OUT: u32 = u32::MAX;

/// The whole pool.
pub struct Pool {
    /// Per segment: slot + 1, or one of the above.
    owners: Vec<u32>,
    given_back: u32,
}

/// The pool as one slot's ring uses it.
pub struct SlotLedger<'a> {
    pool: &'a mut Pool,
    arena: &'a Arena,
    slot: u32,
}

impl Pool {
    /// A pool of which the first `segments` are free.
    pub fn new(arena: &Arena, segments: u32) -> Pool {
        let owner = |index| if index < segments { FREE } else { LEFT_OUT };
        Pool { owners: (0..arena.geometry().segments).map(owner).collect(), given_back: 0 }
    }

    /// The ledger of a slot.
    pub fn of<'a>(&'a mut self, arena: &'a Arena, slot: u32) -> SlotLedger<'a> {
        SlotLedger { pool: self, arena, slot }
    }

    /// Segments that were given back since the last call.
    pub fn take_given_back(&mut self) -> u32 {
        std::mem::take(&mut self.given_back)
    }

    /// Gives back what a slot holds, however much its ring is to be believed. Its thread is gone.
    pub fn give_back_all(&mut self, arena: &Arena, slot: u32) {
        let held: Vec<u32> = (0..).zip(&self.owners).filter(|&(_, &owner)| owner == slot + 1).map(|(i, _)| i).collect();
        let mut ledger = self.of(arena, slot);
        held.into_iter().for_each(|segment| ledger.leave(segment));
    }
}

impl Ledger for SlotLedger<'_> {
    fn enter(&mut self, segment: u32) -> bool {
        match self.pool.owners.get_mut(segment as usize) {
            Some(owner) if *owner == FREE => {
                *owner = self.slot + 1;
                true
            }
            _ => false,
        }
    }

    fn leave(&mut self, segment: u32) {
        match self.pool.owners.get_mut(segment as usize) {
            Some(owner) if *owner == self.slot + 1 => *owner = FREE,
            _ => return,
        }
        self.arena.free_segments().push(segment);
        self.pool.given_back += 1;
    }
}

//! Owners of the pool's segments, known without asking the target.

use heapline_shared_format::arena::Arena;
use heapline_shared_format::ring::Ledger;

const FREE: u32 = 0;
/// Owner of segments outside of this session's pool.
const LEFT_OUT: u32 = u32::MAX;

/// Owners of all segments.
pub struct Pool {
    /// For each segment: slot + 1, or one of the constants above.
    owners: Vec<u32>,
    given_back: u32,
}

/// The pool, seen by the ring of a slot.
pub struct SlotLedger<'a> {
    pool: &'a mut Pool,
    arena: &'a Arena,
    slot: u32,
}

impl Pool {
    /// Returns a pool with the first `segments` segments free.
    pub fn new(arena: &Arena, segments: u32) -> Pool {
        let owner = |index| if index < segments { FREE } else { LEFT_OUT };
        Pool { owners: (0..arena.geometry().segments).map(owner).collect(), given_back: 0 }
    }

    /// Returns the ledger of a slot.
    pub fn of<'a>(&'a mut self, arena: &'a Arena, slot: u32) -> SlotLedger<'a> {
        SlotLedger { pool: self, arena, slot }
    }

    /// Number of segments given back since the last call.
    pub fn take_given_back(&mut self) -> u32 {
        std::mem::take(&mut self.given_back)
    }

    /// Gives back all segments of a slot, even if the ring is invalid. The slot's thread must be
    /// gone.
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

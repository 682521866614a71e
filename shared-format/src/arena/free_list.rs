//! The free lists of slots and of segments.

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// A lock-free stack of indices. The aggregator pushes, the target's threads pop.
///
/// The tag in the high half of the top word changes with every push and pop. Without the tag, a pop
/// interrupted for long could mistake a returned top for a top that never left (ABA).
pub struct FreeList<'a> {
    pub(super) top: &'a AtomicU64,
    pub(super) links: &'a [AtomicU32],
}

const INDEX_MASK: u64 = 0xffff_ffff;

impl FreeList<'_> {
    /// Takes the index pushed last. None when the list is empty, or holds an index out of range.
    pub fn pop(&self) -> Option<u32> {
        let mut top = self.top.load(Ordering::Acquire);
        loop {
            let index = ((top & INDEX_MASK) as u32).checked_sub(1)?;
            let next = self.links.get(index as usize)?.load(Ordering::Relaxed);
            let new = (top & !INDEX_MASK).wrapping_add(1 << 32) | u64::from(next);
            // Acquire pairs with the Release in `push`: the taker of an index sees the giver's
            // writes.
            match self.top.compare_exchange_weak(top, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(index),
                Err(now) => top = now,
            }
        }
    }

    /// Gives an index back. An index outside of the list is ignored.
    pub fn push(&self, index: u32) {
        let Some(link) = self.links.get(index as usize) else { return };
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            let next = (top & INDEX_MASK) as u32;
            link.store(next, Ordering::Relaxed);
            let new = (top & !INDEX_MASK).wrapping_add(1 << 32) | (u64::from(index) + 1);
            match self.top.compare_exchange_weak(top, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// Empties the list. Only for the owner of both ends, before a session.
    pub fn clear(&self) {
        let top = self.top.load(Ordering::Relaxed);
        self.top.store((top & !INDEX_MASK).wrapping_add(1 << 32), Ordering::Release);
    }

    /// Fills the list with the indices below `count`, the lowest on top. Only for the owner of both
    /// ends, before a session.
    pub fn fill(&self, count: u32) {
        let count = count.min(u32::try_from(self.links.len()).unwrap_or(u32::MAX));
        for (index, link) in (1..=count).zip(self.links) {
            link.store(if index == count { 0 } else { index + 1 }, Ordering::Relaxed);
        }
        let top = self.top.load(Ordering::Relaxed);
        self.top.store((top & !INDEX_MASK).wrapping_add(1 << 32) | u64::from(count.min(1)), Ordering::Release);
    }

    /// Whether the list is empty at this moment.
    pub fn is_empty(&self) -> bool {
        self.top.load(Ordering::Relaxed) & INDEX_MASK == 0
    }
}

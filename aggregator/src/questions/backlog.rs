//! What the table holds back of the drained records, because other threads' records may still come between them.
//!
//! The table tells, the drain asks. While little is held back each ring gives its share. While much is, only those give
//! whose records the table lacks: what the others write stays in the arena, their threads soon wait for room, and the
//! processors are left to the threads that are behind. So the memory for what waits has a bound, whatever the number of
//! threads. While the table is copied for a snapshot it takes nothing at all.

use std::sync::atomic::{AtomicBool, Ordering};

/// Words that are held back (64 MiB) before rings that are ahead are left alone.
pub const MANY_WORDS: usize = 1 << 23;

/// See the module.
pub struct Backlog {
    is_large: AtomicBool,
    is_copied: AtomicBool,
    /// By slot: the table has records of its ring that wait.
    waits: Vec<AtomicBool>,
}

impl Backlog {
    /// Nothing, of so many slots.
    pub fn new(slots: u32) -> Backlog {
        let no = || AtomicBool::new(false);
        Backlog { is_large: no(), is_copied: no(), waits: (0..slots).map(|_| no()).collect() }
    }

    /// So many words are held back; `rings` are the slots, and whether records of them are among it.
    pub fn tell(&self, words: usize, rings: impl Iterator<Item = (u32, bool)>) {
        let is_large = words > MANY_WORDS;
        if is_large {
            for (slot, waits) in rings {
                if let Some(told) = self.waits.get(slot as usize) {
                    told.store(waits, Ordering::Relaxed);
                }
            }
        }
        self.is_large.store(is_large, Ordering::Release);
    }

    /// Copies the table, which takes a second for 10^7 blocks and comes to an end.
    pub fn amid_copy<T>(&self, copy: impl FnOnce() -> T) -> T {
        struct Copied<'f>(&'f AtomicBool);
        impl Drop for Copied<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::Relaxed);
            }
        }
        self.is_copied.store(true, Ordering::Relaxed);
        let _copied = Copied(&self.is_copied);
        copy()
    }

    /// Whether it is being copied.
    pub fn is_copied(&self) -> bool {
        self.is_copied.load(Ordering::Relaxed)
    }

    /// Whether only rings that are behind shall give.
    pub fn is_large(&self) -> bool {
        self.is_large.load(Ordering::Acquire)
    }

    /// Whether the ring of a slot is ahead of others, as far as the table knew when it told.
    pub fn waits(&self, slot: u32) -> bool {
        self.waits.get(slot as usize).is_some_and(|waits| waits.load(Ordering::Relaxed))
    }
}

//! Drained records held back by the table, because earlier records of other threads may still come.
//!
//! The table reports its backlog here, and the drain reads the report:
//!
//! | Backlog | Rings read by the drain |
//! | --- | --- |
//! | small | all |
//! | large | only rings with records missing in the table |
//!
//! With a large backlog, the records of other rings stay in the arena. Their threads soon wait for
//! room, and leave the processors to the threads that are behind. So memory for waiting records is
//! limited, for any number of threads.

use crate::session::arena_map::ArenaMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Most words held back (64 MiB) before the drain leaves rings unread if they are ahead of others.
pub const MANY_WORDS: usize = 1 << 23;

/// Report of the table's backlog to the drain.
pub struct Backlog {
    is_large: AtomicBool,
    /// By slot: whether records of the ring wait in the table.
    waits: Vec<AtomicBool>,
}

/// The arena of a trace, with the backlog of the records drained from the arena.
#[derive(Clone)]
pub struct Source {
    /// The arena.
    pub map: Arc<ArenaMap>,
    /// The backlog.
    pub backlog: Arc<Backlog>,
}

impl Source {
    /// Returns the source of an arena, without records.
    pub fn new(map: Arc<ArenaMap>) -> Source {
        let slots = map.arena().geometry().slots;
        Source { map, backlog: Arc::new(Backlog::new(slots)) }
    }
}

impl Backlog {
    /// Returns an empty backlog for `slots` slots.
    pub fn new(slots: u32) -> Backlog {
        let no = || AtomicBool::new(false);
        Backlog { is_large: no(), waits: (0..slots).map(|_| no()).collect() }
    }

    /// Reports the number of words held back. `rings` gives for each slot whether records of the
    /// ring wait.
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

    /// Whether the drain reads only rings that are behind.
    pub fn is_large(&self) -> bool {
        self.is_large.load(Ordering::Acquire)
    }

    /// Whether the ring of a slot was ahead of others at the table's last report.
    pub fn waits(&self, slot: u32) -> bool {
        self.waits.get(slot as usize).is_some_and(|waits| waits.load(Ordering::Relaxed))
    }
}

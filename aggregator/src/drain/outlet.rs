//! Where the drain's findings go: batches of words and what happened to the rings, over a bounded queue to the table.

use crate::base::queue::{Closed, Sender};
use crate::base::sys;
use crate::questions::backlog::Backlog;
use crate::questions::keeper::SharedKeeper;
use crate::session::arena_map::ArenaMap;
use crate::table::messages::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

/// Words of a batch: a few segments, small enough to stay in the second-level cache.
const BATCH_WORDS: usize = 16 * 1024;
/// How long a full queue counts as progress towards the target: the table works, say on growing. Beyond that it may
/// never come back, unless it is known to be copied, and the target must not wait for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
pub struct Outlet {
    map: Arc<ArenaMap>,
    sender: Sender<Message>,
    recycled: rtrb::Consumer<Vec<u64>>,
    batch: Vec<u64>,
    shared: SharedKeeper,
    backlog: Arc<Backlog>,
    /// The target waits for an answer: what is sent is worked on by this thread.
    is_helping: bool,
}

impl Outlet {
    /// An outlet into `sender`; emptied buffers come back through `recycled`.
    pub fn new(
        (map, backlog): (Arc<ArenaMap>, Arc<Backlog>),
        sender: Sender<Message>,
        recycled: rtrb::Consumer<Vec<u64>>,
        shared: SharedKeeper,
    ) -> Outlet {
        Outlet { map, sender, recycled, batch: Vec::new(), shared, backlog, is_helping: false }
    }

    /// From here on the table's thread sleeps through what is sent, or does not.
    pub fn set_helping(&mut self, is_helping: bool) {
        self.is_helping = is_helping;
    }

    /// Lets the table take what was sent.
    pub fn help(&self) {
        // What help leaves is the other thread's.
        if self.is_helping && !self.shared.help() {
            self.sender.wake();
        }
    }

    /// Sends a message. When the table is gone the process is about to end, and nothing matters any more.
    pub fn send(&mut self, message: Message) {
        let map = &self.map;
        let backlog = &self.backlog;
        let waited = |waited| {
            if waited < PATIENCE || backlog.is_copied() {
                announce_progress(map);
            }
        };
        let sent = match self.is_helping {
            true => self.sender.put(message, waited),
            false => self.sender.send(message, waited),
        };
        if sent == Err(Closed) {
            tracing::debug!("the table is gone");
        }
    }

    /// Copies words of a slot's ring; each is read once.
    pub fn copy(&mut self, slot: u32, words: &[AtomicU64]) {
        if self.batch.len() + words.len() > BATCH_WORDS {
            self.flush(slot);
        }
        if self.batch.capacity() == 0 {
            self.batch = self.recycled.pop().unwrap_or_default();
        }
        self.batch.extend(words.iter().map(|word| word.load(Ordering::Relaxed)));
    }

    /// Sends what was copied of a slot.
    pub fn flush(&mut self, slot: u32) {
        if !self.batch.is_empty() {
            let words = std::mem::take(&mut self.batch);
            self.send(Message::Words { slot, words });
        }
    }
}

/// Tells threads that wait for room that there is some, or that the aggregator is at work.
pub fn announce_progress(map: &ArenaMap) {
    let progress = &map.arena().header().progress;
    progress.given_back.fetch_add(1, Ordering::Release);
    // A waiter counts itself before it looks at `given_back` again.
    fence(Ordering::SeqCst);
    if progress.waiters.load(Ordering::Relaxed) > 0 {
        sys::futex_wake(&progress.given_back);
    }
}

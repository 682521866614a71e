//! The drain's side of the bounded queue to the table: sends batches of words, and messages about
//! the rings.

use crate::base::queue::{Closed, Sender};
use crate::base::sys;
use crate::questions::backlog::Source;
use crate::questions::keeper::SharedKeeper;
use crate::session::arena_map::ArenaMap;
use crate::table::messages::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

/// Words of a batch: a few segments, small enough to stay in the second-level cache.
const BATCH_WORDS: usize = 16 * 1024;
/// Longest time for which waiting at a full queue counts as progress towards the target, because
/// the table may be busy, e.g. growing. A longer wait may never end, and the target must not wait
/// for the table.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sender of messages to the table.
pub struct Outlet {
    map: Arc<ArenaMap>,
    sender: Sender<Message>,
    recycled: rtrb::Consumer<Vec<u64>>,
    batch: Vec<u64>,
    shared: SharedKeeper,
    /// Whether the target waits for an answer, so that this thread applies the sent messages.
    is_helping: bool,
}

impl Outlet {
    /// Returns an outlet into `sender`. Emptied buffers come back through `recycled`.
    pub fn new(
        source: Source,
        sender: Sender<Message>,
        recycled: rtrb::Consumer<Vec<u64>>,
        shared: SharedKeeper,
    ) -> Outlet {
        Outlet { map: source.map, sender, recycled, batch: Vec::new(), shared, is_helping: false }
    }

    /// Sets whether this thread applies the sent messages itself, without waking the table's
    /// thread.
    pub fn set_helping(&mut self, is_helping: bool) {
        self.is_helping = is_helping;
    }

    /// Applies the sent messages in this thread, while helping.
    pub fn help(&self) {
        // Remaining work is left to the table's thread.
        if self.is_helping && !self.shared.help() {
            self.sender.wake();
        }
    }

    /// Sends a message. If the table is gone, the aggregator is about to end, and the message is
    /// dropped.
    pub fn send(&mut self, message: Message) {
        let map = &self.map;
        let waited = |waited| {
            if waited < PATIENCE {
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

    /// Copies words of a slot's ring. Each word is read once.
    pub fn copy(&mut self, slot: u32, words: &[AtomicU64]) {
        if self.batch.len() + words.len() > BATCH_WORDS {
            self.flush(slot);
        }
        if self.batch.capacity() == 0 {
            self.batch = self.recycled.pop().unwrap_or_default();
        }
        self.batch.extend(words.iter().map(|word| word.load(Ordering::Relaxed)));
    }

    /// Sends the copied words of a slot.
    pub fn flush(&mut self, slot: u32) {
        if !self.batch.is_empty() {
            let words = std::mem::take(&mut self.batch);
            self.send(Message::Words { slot, words });
        }
    }
}

/// Tells threads waiting for room that there is room, or that the aggregator is at work.
pub fn announce_progress(map: &ArenaMap) {
    let progress = &map.arena().header().progress;
    progress.given_back.fetch_add(1, Ordering::Release);
    // A waiting thread counts itself before it reads `given_back` again.
    fence(Ordering::SeqCst);
    if progress.waiters.load(Ordering::Relaxed) > 0 {
        sys::futex_wake(&progress.given_back);
    }
}

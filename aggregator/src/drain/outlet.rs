//! Where the drain's findings go: batches of words and what happened to the rings, over a bounded queue to the table.

use crate::arena_map::ArenaMap;
use crate::backlog::Backlog;
use crate::counted::Counted;
use crate::keeper::Desk;
use crate::order::Mark;
use crate::queue::{Closed, Sender};
use crate::sys;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

/// Words of a batch: a few segments, small enough to stay in the second-level cache.
const BATCH_WORDS: usize = 16 * 1024;
/// How long a full queue counts as progress towards the target: the table works, say on growing. Beyond that it may
/// never come back, unless it is known to be copied, and the target must not wait for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program that runs in the target; `exec` begins another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Counted from 1; 0 before the collector was up.
    pub number: u32,
    /// Path of the executable.
    pub executable: String,
    /// Arguments, joined by spaces.
    pub command: String,
    /// Whether both were read from the running process, rather than known from how it was started.
    pub is_read: bool,
}

impl Image {
    /// The path of an object as snapshots show it: the loader has none for the executable.
    pub fn path_of(&self, loader_path: &[u8]) -> String {
        if loader_path.is_empty() {
            return self.executable.clone();
        }
        String::from_utf8_lossy(loader_path).into_owned()
    }
}

/// What the drain tells the table.
#[derive(Debug)]
pub enum Message {
    /// A program has started.
    Begin(Image),
    /// All records of the present program have been sent: exec has ended it.
    Replaced,
    /// A thread has taken a slot.
    Open {
        /// The slot.
        slot: u32,
        /// Its thread.
        tid: u32,
        /// Whether it is a side ring.
        side: bool,
        /// What was counted in its slot before.
        before: Counted,
    },
    /// Whole records of a slot's ring.
    Words {
        /// The slot.
        slot: u32,
        /// The records.
        words: Vec<u64>,
    },
    /// A thread's name was read anew.
    Name {
        /// The thread.
        tid: u32,
        /// Its name.
        name: String,
    },
    /// The slot's ring is not to be believed.
    Corrupt {
        /// The slot.
        slot: u32,
    },
    /// The slot's thread is gone.
    Close {
        /// The slot.
        slot: u32,
        /// What is counted in it now.
        counted: Counted,
    },
    /// A poll has ended.
    Mark(Mark),
    /// Nothing comes any more.
    End,
}

/// See the module.
pub struct Outlet {
    map: Arc<ArenaMap>,
    sender: Sender<Message>,
    recycled: rtrb::Consumer<Vec<u64>>,
    batch: Vec<u64>,
    desk: Desk,
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
        desk: Desk,
    ) -> Outlet {
        Outlet { map, sender, recycled, batch: Vec::new(), desk, backlog, is_helping: false }
    }

    /// From here on the table's thread sleeps through what is sent, or does not.
    pub fn set_helping(&mut self, is_helping: bool) {
        self.is_helping = is_helping;
    }

    /// Lets the table take what was sent.
    pub fn help(&self) {
        // What help leaves is the other thread's.
        if self.is_helping && !self.desk.help() {
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

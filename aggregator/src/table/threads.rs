//! Threads with rings or live blocks.
//!
//! A row is given up once the thread has ended and no block of the thread is live. So a million
//! short threads, one after another, need little room.

use crate::session::counted::Counted;
use std::collections::HashMap;

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Thread id, as seen by the target.
    pub tid: u32,
    /// Last read name.
    pub name: String,
    /// Number of rings: the main ring, and side rings for signal handlers. 0 for an ended thread.
    rings: u32,
    blocks: u64,
    /// Number of calls while samples are recorded.
    pub counted: Counted,
}

impl Thread {
    /// Whether the thread has not ended.
    pub fn is_alive(&self) -> bool {
        self.rings > 0
    }

    /// Whether the thread is alive or owns live blocks. Otherwise the row is given up.
    pub fn is_needed(&self) -> bool {
        self.rings > 0 || self.blocks > 0
    }
}

/// Rows of all needed threads.
#[derive(Clone, Default)]
pub struct Threads {
    rows: Vec<Thread>,
    unused: Vec<u32>,
    alive: HashMap<u32, u32>,
}

impl Threads {
    /// Opens a ring of a new thread, or a side ring of a known thread. Returns the index of the
    /// thread.
    pub fn open(&mut self, tid: u32, side: bool) -> u32 {
        if side && let Some(&index) = self.alive.get(&tid) {
            self.rows[index as usize].rings += 1;
            return index;
        }
        let thread = Thread { tid, name: String::new(), rings: 1, blocks: 0, counted: Counted::default() };
        let index = match self.unused.pop() {
            Some(index) => {
                self.rows[index as usize] = thread;
                index
            }
            None => {
                self.rows.push(thread);
                u32::try_from(self.rows.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.alive.insert(tid, index);
        index
    }

    /// Closes a ring of a thread.
    pub fn close(&mut self, index: u32) {
        let Some(thread) = self.rows.get_mut(index as usize) else { return };
        thread.rings = thread.rings.saturating_sub(1);
        if thread.rings == 0 && self.alive.get(&thread.tid) == Some(&index) {
            self.alive.remove(&thread.tid);
        }
        self.give_up_unneeded(index);
    }

    /// Adds a block to a thread.
    #[inline]
    pub fn gain(&mut self, index: u32) {
        self.rows[index as usize].blocks += 1;
    }

    /// Removes a block from a thread.
    #[inline]
    pub fn lose(&mut self, index: u32) {
        let thread = &mut self.rows[index as usize];
        thread.blocks -= 1;
        if thread.blocks == 0 {
            self.give_up_unneeded(index);
        }
    }

    /// Ends all threads, and keeps the rows of threads with live blocks. A forked child has no
    /// thread of the parent.
    pub fn end_all(&mut self) {
        self.alive.clear();
        for index in 0..self.rows.len() {
            if std::mem::take(&mut self.rows[index].rings) > 0 {
                self.give_up_unneeded(u32::try_from(index).unwrap_or(u32::MAX));
            }
        }
    }

    /// Sets the block counts of all threads to 0.
    pub fn lose_all(&mut self) {
        for index in 0..self.rows.len() {
            let thread = &mut self.rows[index];
            if std::mem::take(&mut thread.blocks) > 0 {
                self.give_up_unneeded(u32::try_from(index).unwrap_or(u32::MAX));
            }
        }
    }

    /// Adds calls to the thread's count.
    pub fn count(&mut self, index: u32, calls: &Counted) {
        if let Some(thread) = self.rows.get_mut(index as usize) {
            thread.counted = thread.counted.and(calls);
        }
    }

    /// Sets the name of a thread.
    pub fn name(&mut self, index: u32, name: String) {
        self.rows[index as usize].name = name;
    }

    /// Sets the name of the living thread with this thread id.
    pub fn name_by_tid(&mut self, tid: u32, name: String) {
        if let Some(&index) = self.alive.get(&tid) {
            self.name(index, name);
        }
    }

    /// Returns a thread by index.
    pub fn get(&self, index: u32) -> Option<&Thread> {
        self.rows.get(index as usize)
    }

    /// All rows, by index. Rows given up have no rings and no blocks.
    pub fn rows(&self) -> &[Thread] {
        &self.rows
    }

    fn give_up_unneeded(&mut self, index: u32) {
        if !self.rows[index as usize].is_needed() {
            self.rows[index as usize].name = String::new();
            self.unused.push(index);
        }
    }
}

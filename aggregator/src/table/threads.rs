//! The threads that own rings or live blocks.
//!
//! A row is given up once its thread has ended and none of its blocks is live, so that a million threads in a row
//! take the room of those that matter.

use crate::session::counted::Counted;
use std::collections::HashMap;

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its id, as the target sees it.
    pub tid: u32,
    /// Its name when it was last read.
    pub name: String,
    /// Rings it has: its own, and side rings of its signal handlers. None when it has ended.
    rings: u32,
    blocks: u64,
    /// Its calls, while samples are recorded.
    pub counted: Counted,
}

impl Thread {
    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        self.rings > 0
    }

    /// Whether it is alive or owns live blocks; otherwise its row is given up.
    pub fn is_needed(&self) -> bool {
        self.rings > 0 || self.blocks > 0
    }
}

/// See the module.
#[derive(Clone, Default)]
pub struct Threads {
    rows: Vec<Thread>,
    unused: Vec<u32>,
    alive: HashMap<u32, u32>,
}

impl Threads {
    /// A ring begins: a new thread's, or a side ring of one that is known. Returns the thread's index.
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

    /// One of the thread's rings has ended.
    pub fn close(&mut self, index: u32) {
        let Some(thread) = self.rows.get_mut(index as usize) else { return };
        thread.rings = thread.rings.saturating_sub(1);
        if thread.rings == 0 && self.alive.get(&thread.tid) == Some(&index) {
            self.alive.remove(&thread.tid);
        }
        self.give_up_unneeded(index);
    }

    /// The thread now owns one more block.
    #[inline]
    pub fn gain(&mut self, index: u32) {
        self.rows[index as usize].blocks += 1;
    }

    /// One of the thread's blocks is gone.
    #[inline]
    pub fn lose(&mut self, index: u32) {
        let thread = &mut self.rows[index as usize];
        thread.blocks -= 1;
        if thread.blocks == 0 {
            self.give_up_unneeded(index);
        }
    }

    /// No thread lives any more; what they own does. So it is in a forked child.
    pub fn end_all(&mut self) {
        self.alive.clear();
        for index in 0..self.rows.len() {
            if std::mem::take(&mut self.rows[index].rings) > 0 {
                self.give_up_unneeded(u32::try_from(index).unwrap_or(u32::MAX));
            }
        }
    }

    /// All blocks are forgotten.
    pub fn lose_all(&mut self) {
        for index in 0..self.rows.len() {
            let thread = &mut self.rows[index];
            if std::mem::take(&mut thread.blocks) > 0 {
                self.give_up_unneeded(u32::try_from(index).unwrap_or(u32::MAX));
            }
        }
    }

    /// The thread has made these calls.
    pub fn count(&mut self, index: u32, calls: &Counted) {
        if let Some(thread) = self.rows.get_mut(index as usize) {
            thread.counted = thread.counted.and(calls);
        }
    }

    /// The thread is called so.
    pub fn name(&mut self, index: u32, name: String) {
        self.rows[index as usize].name = name;
    }

    /// The living thread with this id is called so.
    pub fn name_by_tid(&mut self, tid: u32, name: String) {
        if let Some(&index) = self.alive.get(&tid) {
            self.name(index, name);
        }
    }

    /// A thread, by index.
    pub fn get(&self, index: u32) -> Option<&Thread> {
        self.rows.get(index as usize)
    }

    /// All rows, by index; those that are given up have no rings and no blocks.
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

//! Threads with rings or live blocks, and names of ended threads.
//!
//! A row is given up once the thread has ended and no block of the thread is live. So a million
//! short threads, one after another, need little room. A later thread takes the row. The sums of
//! the earlier thread are then added to the sums of all ended threads with a name of the same
//! pattern: `worker-*` for `worker-1` and `worker-2`.

use crate::session::counted::Counted;
use std::collections::HashMap;

/// Most patterns of names of ended threads. Ended threads with further names share [`OTHERS`].
const MOST_NAMES: usize = 1024;
/// Pattern for ended threads beyond [`MOST_NAMES`].
const OTHERS: &str = "*";

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

/// Ended threads with a name of the same pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedThreads {
    /// The name, with a `*` for each run of digits.
    pub name: String,
    /// Number of calls while samples are recorded.
    pub counted: Counted,
}

/// A thread with a new ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Index of the thread.
    pub index: u32,
    /// Number of the row of ended threads that takes over the sums of an earlier thread with the
    /// index ([`Threads::ended`]).
    pub earlier: Option<u32>,
}

/// Rows of all needed threads.
#[derive(Clone, Default)]
pub struct Threads {
    rows: Vec<Thread>,
    unused: Vec<u32>,
    alive: HashMap<u32, u32>,
    ended: Vec<EndedThreads>,
    /// Numbers of the rows in `ended`, by name.
    ended_by_name: HashMap<String, u32>,
}

impl Threads {
    /// Opens a ring of a new thread, or a side ring of a known thread.
    pub fn open(&mut self, tid: u32, side: bool) -> Opened {
        if side && let Some(&index) = self.alive.get(&tid) {
            self.rows[index as usize].rings += 1;
            return Opened { index, earlier: None };
        }
        let thread = Thread { tid, name: String::new(), rings: 1, blocks: 0, counted: Counted::default() };
        let opened = match self.unused.pop() {
            Some(index) => {
                let earlier = std::mem::replace(&mut self.rows[index as usize], thread);
                Opened { index, earlier: Some(self.end(&earlier)) }
            }
            None => {
                self.rows.push(thread);
                Opened { index: u32::try_from(self.rows.len() - 1).unwrap_or(u32::MAX), earlier: None }
            }
        };
        self.alive.insert(tid, opened.index);
        opened
    }

    /// Adds a thread to the ended threads. Returns the number of the row.
    fn end(&mut self, thread: &Thread) -> u32 {
        let pattern = pattern(&thread.name);
        let is_full = self.ended.len() >= MOST_NAMES && !self.ended_by_name.contains_key(&pattern);
        let name = if is_full { OTHERS.to_owned() } else { pattern };
        let next = u32::try_from(self.ended.len()).unwrap_or(u32::MAX);
        let row = *self.ended_by_name.entry(name).or_insert_with_key(|name| {
            self.ended.push(EndedThreads { name: name.clone(), counted: Counted::default() });
            next
        });
        let ended = &mut self.ended[row as usize];
        ended.counted = ended.counted.and(&thread.counted);
        row
    }

    /// Rows of ended threads whose rows were given to other threads.
    pub fn ended(&self) -> &[EndedThreads] {
        &self.ended
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
    /// thread of the parent, and no calls of the parent's threads.
    pub fn end_all(&mut self) {
        self.alive.clear();
        self.ended.clear();
        self.ended_by_name.clear();
        for index in 0..self.rows.len() {
            self.rows[index].counted = Counted::default();
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

    /// All rows, by index. A row that was given up shows the last thread.
    pub fn rows(&self) -> &[Thread] {
        &self.rows
    }

    fn give_up_unneeded(&mut self, index: u32) {
        if !self.rows[index as usize].is_needed() {
            self.unused.push(index);
        }
    }
}

/// Returns a name with a `*` for each run of digits.
fn pattern(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '0'..='9' if pattern.ends_with('*') => {}
            '0'..='9' => pattern.push('*'),
            c => pattern.push(c),
        }
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_one_star() {
        let patterns = ["worker-12", "pool-1-thread-77", "main", "", "7"].map(pattern);
        assert_eq!(patterns, ["worker-*", "pool-*-thread-*", "main", "", "*"]);
    }

    #[test]
    fn threads_of_any_names_take_bounded_room() {
        let mut threads = Threads::default();
        let letters = |n: u32| n.to_string().chars().map(|c| char::from(b'a' + c as u8 - b'0')).collect::<String>();
        for tid in 0..10_000 {
            let opened = threads.open(tid, false);
            assert_eq!((opened.index, opened.earlier.is_some()), (0, tid > 0));
            threads.name(0, letters(tid));
            threads.close(0);
        }
        assert_eq!((threads.ended().len(), threads.rows().len()), (MOST_NAMES + 1, 1));
        assert_eq!(threads.ended().last().map(|ended| &*ended.name), Some(OTHERS));
    }
}

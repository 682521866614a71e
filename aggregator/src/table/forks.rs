//! Forks of a process: at each fork the process's table is copied for the child.
//!
//! A fork has two records, and the system call lies between. Events of other threads between the
//! two records may or may not have happened in the child's memory. These events are counted. The
//! count is 0 for a process with a single thread.

use super::Table;
use crate::table::fork_copies::{ForkCopies, ForkCopy};
use heapline_shared_format::query;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most children remembered between two looks ([`Table::take_born`]).
const MAX_BORN: usize = 64;
/// Most open forks. Events during further forks are not counted.
const MAX_OPEN: usize = 64;

/// Place of one process in the tree of forks: makes a copy of the table for each child.
pub struct Forks {
    copies: Arc<ForkCopies>,
    key: u64,
    /// Open forks: number, records at the start, and counter for the events during the fork.
    open: Vec<(u64, u64, Arc<AtomicU64>)>,
}

impl Drop for Forks {
    fn drop(&mut self) {
        // A child that waits for a copy waits in vain now.
        self.copies.over(self.key);
    }
}

impl Forks {
    /// Returns the forks of the process with this key.
    pub fn new(copies: Arc<ForkCopies>, key: u64) -> Forks {
        copies.begin(key);
        Forks { copies, key, open: Vec::new() }
    }

    /// Begins a fork: copies `table` for the child.
    pub(super) fn begin(&mut self, number: u64, table: &mut Table) {
        let doubt = Arc::new(AtomicU64::new(0));
        if self.open.len() < MAX_OPEN {
            self.open.push((number, table.records(), Arc::clone(&doubt)));
        }
        self.copies.reach(self.key, number, || ForkCopy { bytes: table.bytes(), seed: table.inherited(), doubt });
    }

    /// Ends a fork: counts the events of other threads during the fork.
    pub(super) fn end(&mut self, number: u64, records: u64) {
        if let Some(place) = self.open.iter().position(|&(open, ..)| open == number) {
            let (_, before, doubt) = self.open.swap_remove(place);
            doubt.store(records.saturating_sub(before), Ordering::Relaxed);
        }
    }

    /// Reports the process id of the child. A `pid` of 0 means a failed fork.
    pub(super) fn child(&self, number: u64, pid: u64) {
        self.copies.born(self.key, number, u32::try_from(pid).unwrap_or(0));
    }
}

impl Table {
    /// Approximate number of bytes taken by the table.
    pub fn bytes(&self) -> usize {
        self.heaps().map(|(_, heap)| heap.bytes()).sum::<usize>() + self.stacks.bytes() + self.codes.bytes()
    }

    /// Removes and returns the process ids of the first children forked since the last look.
    pub fn take_born(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.born)
    }

    /// Applies a record about a fork.
    pub(super) fn forked(&mut self, what: u32, arguments: [u64; 2]) {
        let [number, second] = arguments;
        if what == query::CHILD && second != 0 && self.born.len() < MAX_BORN {
            self.born.push(second);
        }
        let Some(mut forks) = self.forks.take() else { return };
        match what {
            query::FORK => forks.begin(number, self),
            query::FORKED => forks.end(number, self.records),
            _ => forks.child(number, second),
        }
        self.forks = Some(forks);
    }
}

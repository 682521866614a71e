//! The forks of one process: at each, its table is copied for the child.
//!
//! Between the two records of a fork lies the real one. What other threads do in between may or may not have happened in
//! the child's memory; that is counted, and is 0 for a process with one thread.

use super::Table;
use crate::heirs::Heirs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Forks that have begun at one time. A process that claims more has none of them counted.
const MAX_OPEN: usize = 64;

/// See the module.
pub struct Forks {
    heirs: Arc<Heirs>,
    key: u64,
    /// Those that have begun: number, records by then, and where the difference goes.
    open: Vec<(u64, u64, Arc<AtomicU64>)>,
}

impl Drop for Forks {
    fn drop(&mut self) {
        // Whoever waits for a copy waits in vain.
        self.heirs.over(self.key);
    }
}

impl Forks {
    /// Of the process with this key.
    pub fn new(heirs: Arc<Heirs>, key: u64) -> Forks {
        heirs.begin(key);
        Forks { heirs, key, open: Vec::new() }
    }

    /// The process is about to fork, with `table` as it is now.
    pub(super) fn begin(&mut self, number: u64, table: &mut Table) {
        let doubt = Arc::new(AtomicU64::new(0));
        if self.open.len() < MAX_OPEN {
            self.open.push((number, table.records(), Arc::clone(&doubt)));
        }
        self.heirs.reach(self.key, number, || (table.inherited(), doubt));
    }

    /// It has forked.
    pub(super) fn end(&mut self, number: u64, records: u64) {
        if let Some(place) = self.open.iter().position(|&(open, ..)| open == number) {
            let (_, before, doubt) = self.open.swap_remove(place);
            doubt.store(records.saturating_sub(before), Ordering::Relaxed);
        }
    }

    /// The child is this process.
    pub(super) fn child(&self, number: u64, pid: u64) {
        self.heirs.born(self.key, number, u32::try_from(pid).unwrap_or(0));
    }
}

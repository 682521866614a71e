//! Copies of tables for forked children, kept from the fork until the child asks for a copy.
//!
//! A child that only runs another program never asks, and many children are of this kind. If this
//! is known before the copy would be made, no copy is made. The bytes of all waiting copies are
//! limited. Beyond the limit the oldest copies are dropped. Their children begin without inherited
//! blocks, and their snapshots say so.

use crate::table::seed::Seed;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most bytes of all copies together.
const MAX_BYTES: usize = 512 << 20;
/// Most forks that are known to need no copy before they are reached in the order of events.
const MAX_FORGONE: usize = 4096;
/// Longest time that a child waits until its parent's table reaches the fork. Usual times are
/// milliseconds, unless a debugger holds the parent's thread in the middle of an event.
const PATIENCE: Duration = Duration::from_secs(10);

/// Identifies a fork: key of the parent process, number of the fork.
pub type Fork = (u64, u64);

/// The inherited state of a forked child.
pub struct ForkCopy {
    /// What the child's table begins with.
    pub seed: Seed,
    /// Bytes of the copy, about.
    pub bytes: usize,
    /// Number of events of the parent's other threads during the fork. The count may still grow.
    pub doubt: Arc<AtomicU64>,
}

/// A process of a tree.
pub struct TreeMember {
    /// Copies for forked children of the tree.
    pub copies: Arc<ForkCopies>,
    /// Key of the process.
    pub key: u64,
    /// Set if the target began the session by itself. The inner value is the fork of the process,
    /// if the process was forked and the fork is known.
    pub adopted: Option<Option<Fork>>,
}

/// A child with a waiting copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Born {
    /// The fork of the child.
    pub fork: Fork,
    /// Process id of the child, as seen by the parent.
    pub pid: u32,
}

/// Waiting copies of a tree of processes.
pub struct ForkCopies {
    state: Mutex<State>,
    changed: Condvar,
    born: Box<dyn Fn(Born) + Send + Sync>,
}

#[derive(Default)]
struct State {
    /// Parents with records still to be applied.
    parents: HashMap<u64, Passed>,
    waiting: HashMap<Fork, ForkCopy>,
    /// Forks with copies, the oldest first. Some copies are gone.
    order: VecDeque<Fork>,
    bytes: usize,
    /// Forks with children that need no copy.
    forgone: HashSet<Fork>,
    /// Forks with children that have asked for their copy and are about to take it.
    wanted: HashSet<Fork>,
}

/// Forks already reached by one parent's table. Two forks at the same time may be reached in either
/// order.
#[derive(Default)]
struct Passed {
    highest: u64,
    last: VecDeque<u64>,
}

/// Farthest distance of a fork from the order of numbers.
const DISORDER: usize = 64;

impl Passed {
    fn add(&mut self, number: u64) {
        self.highest = self.highest.max(number);
        self.last.push_back(number);
        if self.last.len() > DISORDER {
            self.last.pop_front();
        }
    }

    fn has(&self, number: u64) -> bool {
        self.last.contains(&number) || number.saturating_add(DISORDER as u64) < self.highest
    }
}

impl ForkCopies {
    /// Returns an empty set of copies. `born` is called for each child with a waiting copy.
    pub fn new(born: impl Fn(Born) + Send + Sync + 'static) -> ForkCopies {
        ForkCopies { state: Mutex::default(), changed: Condvar::new(), born: Box::new(born) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a process: the process's forks may be reached from now on.
    pub fn begin(&self, key: u64) {
        self.state().parents.insert(key, Passed::default());
    }

    /// Removes a process: no more forks of the process will be reached.
    pub fn over(&self, key: u64) {
        let mut state = self.state();
        state.parents.remove(&key);
        state.forgone.retain(|&(parent, _)| parent != key);
        drop(state);
        self.changed.notify_all();
    }

    /// Reaches a fork in the order of events. `copy` makes the inherited state for the child.
    pub fn reach(&self, key: u64, number: u64, copy: impl FnOnce() -> ForkCopy) {
        let fork = (key, number);
        {
            let mut state = self.state();
            if state.forgone.remove(&fork) {
                state.pass(fork);
                return;
            }
        }
        let copy = copy();
        let mut state = self.state();
        state.pass(fork);
        state.order.push_back(fork);
        state.bytes += copy.bytes;
        if let Some(before) = state.waiting.insert(fork, copy) {
            // The number was given twice. No collector does this.
            state.bytes -= before.bytes;
        }
        let evicted = state.evict();
        drop(state);
        drop(evicted);
        self.changed.notify_all();
    }

    /// Announces that the child of a fork will claim the copy.
    pub fn want(&self, fork: Fork) {
        self.state().wanted.insert(fork);
    }

    /// Waits until the parent's table has reached a fork, then takes and returns the copy for the
    /// child. None if there is no such copy.
    pub fn claim(&self, fork: Fork) -> Option<ForkCopy> {
        let until = Instant::now() + PATIENCE;
        let mut state = self.state();
        let fork_copy = loop {
            let fork_copy = state.take(fork);
            let left = until.saturating_duration_since(Instant::now());
            if fork_copy.is_some() || left.is_zero() || !state.may_come(fork) {
                break fork_copy;
            }
            (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        };
        state.wanted.remove(&fork);
        fork_copy
    }

    /// Drops the copy of a fork, unless the child has asked for the copy before. The child will
    /// never ask.
    pub fn forgo(&self, fork: Fork) {
        let mut state = self.state();
        if state.wanted.contains(&fork) {
            return;
        }
        let taken = state.take(fork);
        if taken.is_none() && state.may_come(fork) && state.forgone.len() < MAX_FORGONE {
            state.forgone.insert(fork);
        }
        drop(state);
        drop(taken);
    }

    /// Reports the process id of a fork's child; 0 if the fork has failed.
    pub fn born(&self, key: u64, number: u64, pid: u32) {
        let fork = (key, number);
        if pid == 0 {
            self.forgo(fork);
        } else if self.is_waiting(fork) {
            (self.born)(Born { fork, pid });
        }
    }

    /// Whether a copy waits for the child of a fork.
    pub fn is_waiting(&self, fork: Fork) -> bool {
        self.state().waiting.contains_key(&fork)
    }
}

impl State {
    fn pass(&mut self, (key, number): Fork) {
        if let Some(passed) = self.parents.get_mut(&key) {
            passed.add(number);
        }
    }

    fn may_come(&self, (key, number): Fork) -> bool {
        self.parents.get(&key).is_some_and(|passed| !passed.has(number))
    }

    fn take(&mut self, fork: Fork) -> Option<ForkCopy> {
        let fork_copy = self.waiting.remove(&fork)?;
        self.bytes -= fork_copy.bytes;
        Some(fork_copy)
    }

    /// Removes the oldest copies until the rest is within the limit. The youngest copy stays.
    fn evict(&mut self) -> Vec<ForkCopy> {
        let mut evicted = Vec::new();
        while self.bytes > MAX_BYTES && self.waiting.len() > 1 {
            let Some(oldest) = self.order.pop_front() else { break };
            evicted.extend(self.take(oldest));
        }
        if !evicted.is_empty() {
            tracing::warn!(copies = evicted.len(), "too many forked children that were not heard of: copies dropped");
        }
        // Removes claimed forks from the front of the order.
        while self.order.front().is_some_and(|fork| !self.waiting.contains_key(fork)) {
            self.order.pop_front();
        }
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Table;
    use std::thread;

    fn nothing() -> ForkCopy {
        let mut table = Table::new(8, 0);
        ForkCopy { bytes: table.bytes(), seed: table.inherited(), doubt: Arc::default() }
    }

    #[test]
    fn a_child_waits_until_its_parents_table_is_there() {
        let copies = Arc::new(ForkCopies::new(|_| ()));
        copies.begin(1);
        let child = {
            let copies = Arc::clone(&copies);
            thread::spawn(move || copies.claim((1, 2)).is_some())
        };
        thread::sleep(Duration::from_millis(20));
        copies.reach(1, 1, nothing);
        copies.reach(1, 2, nothing);
        assert!(child.join().expect("no panic"));
        assert!(copies.claim((1, 1)).is_some());
        assert!(copies.claim((1, 1)).is_none(), "it was given away");
        assert_eq!(copies.state().bytes, 0);
    }

    #[test]
    fn nobody_waits_for_a_parent_that_is_over_or_unknown() {
        let copies = Arc::new(ForkCopies::new(|_| ()));
        assert!(copies.claim((7, 1)).is_none());
        copies.begin(1);
        let child = {
            let copies = Arc::clone(&copies);
            thread::spawn(move || copies.claim((1, 1)).is_none())
        };
        thread::sleep(Duration::from_millis(20));
        copies.over(1);
        assert!(child.join().expect("no panic"));
    }

    #[test]
    fn what_is_forgone_in_time_is_not_copied() {
        let copies = ForkCopies::new(|_| ());
        copies.begin(1);
        copies.forgo((1, 1));
        copies.reach(1, 1, || panic!("nobody wants it"));
        copies.reach(1, 2, nothing);
        copies.forgo((1, 2));
        assert!(!copies.is_waiting((1, 2)) && copies.state().bytes == 0);
        copies.forgo((1, 2));
        assert!(copies.state().forgone.is_empty(), "it cannot come any more");
        copies.reach(1, 3, nothing);
        copies.want((1, 3));
        copies.forgo((1, 3));
        assert!(copies.claim((1, 3)).is_some(), "it has asked before it ended");
    }

    #[test]
    fn children_are_told_of_while_their_copy_waits() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let copies = {
            let told = Arc::clone(&told);
            ForkCopies::new(move |born| told.lock().expect("no panic").push(born))
        };
        copies.begin(1);
        copies.reach(1, 1, nothing);
        copies.reach(1, 2, nothing);
        copies.born(1, 1, 100);
        copies.born(1, 2, 0);
        assert!(copies.claim((1, 1)).is_some());
        copies.born(1, 1, 100);
        assert_eq!(*told.lock().expect("no panic"), [Born { fork: (1, 1), pid: 100 }]);
        assert!(copies.claim((1, 2)).is_none(), "that fork has failed");
    }
}

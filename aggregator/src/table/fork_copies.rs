//! Copies of tables for forked children, from the moment of the fork until the child asks for its own.
//!
//! A child that only wants to run another program never asks, and many such are forked: once that is known before the copy
//! would be made, none is made. What waits is bounded in bytes; beyond that the oldest go, and their children begin without
//! knowing what they inherited, which their snapshots say.

use crate::table::Table;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What all copies together may take.
const MAX_BYTES: usize = 512 << 20;
/// Forks of which something is known that did not yet come by in the order of events.
const MAX_FORGONE: usize = 4096;
/// How long a child waits for its parent's table to get to the fork. It takes milliseconds, unless the parent's thread is held
/// in the middle of an event by a debugger.
const PATIENCE: Duration = Duration::from_secs(10);

/// A fork: key of the process, number of the fork.
pub type Fork = (u64, u64);

/// What a child begins with.
pub struct ForkCopy {
    /// Its table.
    pub table: Table,
    /// Events of other threads of the parent during the fork; still counted.
    pub doubt: Arc<AtomicU64>,
}

/// A process of a tree.
pub struct TreeMember {
    /// What children begin with.
    pub copies: Arc<ForkCopies>,
    /// The process.
    pub key: u64,
    /// The session was begun by the target itself; the fork that the process was made by, if it was and that is known.
    pub adopted: Option<Option<Fork>>,
}

/// A child that has a copy waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Born {
    /// The fork.
    pub fork: Fork,
    /// Its process id, as the parent sees it.
    pub pid: u32,
}

/// See the module.
pub struct ForkCopies {
    state: Mutex<State>,
    changed: Condvar,
    born: Box<dyn Fn(Born) + Send + Sync>,
}

#[derive(Default)]
struct State {
    /// Processes whose records are not all applied yet.
    parents: HashMap<u64, Passed>,
    waiting: HashMap<Fork, (ForkCopy, usize)>,
    /// In the order of the forks; some are gone.
    order: VecDeque<Fork>,
    bytes: usize,
    /// Whose children need no copy.
    forgone: HashSet<Fork>,
    /// Whose children have asked, and are about to take it.
    wanted: HashSet<Fork>,
}

/// Forks that have come by. Two threads that fork at one time may do so in either order.
#[derive(Default)]
struct Passed {
    highest: u64,
    last: VecDeque<u64>,
}

/// How far out of order forks may come by.
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
    /// None yet. `born` is told of children that have a copy waiting.
    pub fn new(born: impl Fn(Born) + Send + Sync + 'static) -> ForkCopies {
        ForkCopies { state: Mutex::default(), changed: Condvar::new(), born: Box::new(born) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forks of this process may come by.
    pub fn begin(&self, key: u64) {
        self.state().parents.insert(key, Passed::default());
    }

    /// No more forks of this process come by.
    pub fn over(&self, key: u64) {
        let mut state = self.state();
        state.parents.remove(&key);
        state.forgone.retain(|&(parent, _)| parent != key);
        drop(state);
        self.changed.notify_all();
    }

    /// A fork comes by; `copy` makes what the child begins with.
    pub fn reach(&self, key: u64, number: u64, copy: impl FnOnce() -> (Table, Arc<AtomicU64>)) {
        let fork = (key, number);
        {
            let mut state = self.state();
            if state.forgone.remove(&fork) {
                state.pass(fork);
                return;
            }
        }
        let (table, doubt) = copy();
        let bytes = table.bytes();
        let mut state = self.state();
        state.pass(fork);
        state.order.push_back(fork);
        state.bytes += bytes;
        if let Some((_, before)) = state.waiting.insert(fork, (ForkCopy { table, doubt }, bytes)) {
            // No collector gives a number twice.
            state.bytes -= before;
        }
        let evicted = state.evict();
        drop(state);
        drop(evicted);
        self.changed.notify_all();
    }

    /// The child of a fork will claim what it begins with.
    pub fn want(&self, fork: Fork) {
        self.state().wanted.insert(fork);
    }

    /// What the child of a fork begins with, once its parent's table has come to the fork. None where that is not known.
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

    /// The child of a fork will never ask, if it has not done so.
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

    /// The child of a fork is this process; 0 when there is none.
    pub fn born(&self, key: u64, number: u64, pid: u32) {
        let fork = (key, number);
        if pid == 0 {
            self.forgo(fork);
        } else if self.is_waiting(fork) {
            (self.born)(Born { fork, pid });
        }
    }

    /// Whether a copy waits for the child.
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
        let (fork_copy, bytes) = self.waiting.remove(&fork)?;
        self.bytes -= bytes;
        Some(fork_copy)
    }

    /// Takes out the oldest until the rest is within bounds; the youngest stays.
    fn evict(&mut self) -> Vec<ForkCopy> {
        let mut evicted = Vec::new();
        while self.bytes > MAX_BYTES && self.waiting.len() > 1 {
            let Some(oldest) = self.order.pop_front() else { break };
            evicted.extend(self.take(oldest));
        }
        if !evicted.is_empty() {
            tracing::warn!(copies = evicted.len(), "too many forked children that were not heard of: copies dropped");
        }
        // Those that were claimed leave their places.
        while self.order.front().is_some_and(|fork| !self.waiting.contains_key(fork)) {
            self.order.pop_front();
        }
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn nothing() -> (Table, Arc<AtomicU64>) {
        (Table::new(8, 0), Arc::default())
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

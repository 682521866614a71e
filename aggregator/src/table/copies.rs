//! Copies of all heaps of a table at one instant, made while the table goes on (`copy.rs`).

use super::Table;
use super::copy::HeapCopy;
use heapline_shared_format::snapshot::Domain;
use std::thread;
use std::time::{Duration, Instant};

impl Table {
    /// Begins a copy of each heap at this instant. [`Table::copy_some`] makes the copies.
    pub fn copy(&mut self) -> Vec<(Domain, HeapCopy)> {
        let domains: Vec<Domain> = self.heaps().map(|(domain, _)| domain).collect();
        let (heaps, shared) = self.parts();
        domains.into_iter().zip(heaps.map(|heap| heap.copy(shared))).collect()
    }

    /// Goes on with the copies of the heaps that are being made, for about `time`. Returns whether
    /// any copy is left.
    pub fn copy_some(&mut self, time: Duration) -> bool {
        let begun = Instant::now();
        let (mut heaps, shared) = self.parts();
        heaps.any(|heap| {
            while begun.elapsed() < time {
                if !heap.copy_some(shared) {
                    return false;
                }
            }
            true
        })
    }

    /// Completes all copies that are being made.
    pub fn end_copies(&mut self) {
        let (heaps, shared) = self.parts();
        heaps.for_each(|heap| heap.end_copies(shared));
    }
}

/// Whoever waits for a copy gets the copy.
impl Drop for Table {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.end_copies();
        }
    }
}

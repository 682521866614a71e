//! Threads of a snapshot: the rows of the threads, the sums per thread, and the calls that threads
//! have counted.

use crate::session::counted::{Calls, Counted};
use crate::snapshot::cut::Cut;
use crate::table::stacks::NONE;
use heapline_shared_format::event::domain;
use heapline_shared_format::snapshot::{Domain, Thread, ThreadCalls, ThreadTotals};

/// Rows of a cut's threads in the snapshot. A thread without blocks, sums and calls has no row.
pub struct ThreadIndex {
    /// Row in the snapshot, or [`NONE`], by number of the thread in the cut. Ended threads stand
    /// behind the others.
    rows: Vec<u32>,
}

impl ThreadIndex {
    /// Gives a row to each thread that is alive, owns live blocks, has sums, or has counted calls.
    pub fn of(cut: &Cut) -> ThreadIndex {
        let has_counted = |counted: &Counted| *counted != Counted::default();
        let threads = cut.threads.iter().map(|thread| thread.is_needed() || has_counted(&thread.counted));
        let mut is_shown: Vec<bool> =
            threads.chain(cut.ended.iter().map(|ended| has_counted(&ended.counted))).collect();
        for &(number, _) in cut.layers.iter().flat_map(|layer| &layer.threads) {
            is_shown[number as usize] = true;
        }
        let mut next = 0..;
        let row = |is_shown| if is_shown { next.next().unwrap_or(NONE) } else { NONE };
        ThreadIndex { rows: is_shown.into_iter().map(row).collect() }
    }

    /// Returns the row of a thread with blocks.
    pub fn row(&self, number: u32) -> u32 {
        self.rows[number as usize]
    }

    /// Returns the rows. `is_over` says that the process has ended.
    pub fn threads(&self, cut: &Cut, is_over: bool) -> Vec<Thread> {
        let threads = cut.threads.iter().map(|thread| Thread {
            tid: thread.tid,
            name: thread.name.clone(),
            alive: thread.is_alive() && !is_over,
        });
        let ended = cut.ended.iter().map(|ended| Thread { tid: 0, name: ended.name.clone(), alive: false });
        self.shown(threads.chain(ended)).map(|(_, thread)| thread).collect()
    }

    /// Returns the sums per thread, by domain as in the cut, and by thread.
    pub fn totals(&self, cut: &Cut) -> Vec<ThreadTotals> {
        let of_layer = |layer: &crate::snapshot::cut::Layer| {
            let domain = layer.domain;
            let row = move |&(number, amounts): &(u32, crate::table::totals::Amounts)| ThreadTotals {
                domain,
                thread: self.row(number),
                peak_size: amounts.peak.size,
                peak_count: amounts.peak.count,
                total_size: amounts.total.size,
                total_count: amounts.total.count,
            };
            layer.threads.iter().map(row).collect::<Vec<_>>()
        };
        let mut rows: Vec<ThreadTotals> = cut.layers.iter().flat_map(of_layer).collect();
        rows.sort_unstable_by_key(|row| (row.domain.code(), row.thread));
        rows
    }

    /// Returns the calls counted by the threads.
    pub fn calls(&self, cut: &Cut) -> Vec<ThreadCalls> {
        let threads = cut.threads.iter().map(|thread| &thread.counted);
        let counted = threads.chain(cut.ended.iter().map(|ended| &ended.counted));
        let of = |(thread, counted): (u32, &Counted)| {
            [(Domain::Native, domain::NATIVE), (Domain::Python, domain::PYTHON)].map(|(domain, number)| {
                let Calls { allocs, bytes, frees } = counted.0[usize::from(number)];
                ThreadCalls { thread, domain, allocs, bytes, frees }
            })
        };
        self.shown(counted).flat_map(of).filter(|row| row.allocs + row.frees > 0).collect()
    }

    /// Returns the items of threads with a row, with the row.
    fn shown<T>(&self, items: impl Iterator<Item = T>) -> impl Iterator<Item = (u32, T)> {
        self.rows.iter().copied().zip(items).filter(|&(row, _)| row != NONE)
    }
}

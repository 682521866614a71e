//! The view of a report: a single domain at a single moment.
//!
//! Domains are layers of the same memory and are never summed, so a view always has exactly one
//! domain.

use crate::frames::{TracebackId, Tracebacks};
use crate::input::copies::Part;
use crate::input::moment::At;
use crate::query::estimate::{Estimate, sampled};
use crate::query::statistics::{Block, Trace};
use heapline_shared_format::snapshot::{Domain, LiveGroup, Snapshot, Stack, StackTotals, Thread};
use std::collections::{BTreeSet, HashMap};

/// A domain at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The layer.
    pub domain: Domain,
    /// The moment.
    pub at: At,
}

impl View {
    /// Default layer of a report: Python's in a CPython process, malloc's otherwise.
    pub fn default_domain(snapshot: &Snapshot) -> Domain {
        match snapshot.domains.iter().any(|row| row.domain == Domain::Python && row.allocs > 0) {
            true => Domain::Python,
            false => Domain::Native,
        }
    }

    /// For each stack of the snapshot: whether the view has blocks of the stack.
    pub fn stacks(self, snapshot: &Snapshot) -> Vec<bool> {
        let mut used = vec![false; snapshot.stacks.len()];
        match self.at {
            At::Live => self.live(snapshot).for_each(|(_, row)| used[row.stack as usize] = true),
            At::Peak | At::Total | At::Instant(_) => {
                self.totals(snapshot).for_each(|(row, ..)| used[row.stack as usize] = true)
            }
        }
        used
    }

    /// The blocks in the view. `resolved` has the tracebacks of the stacks in [`View::stacks`].
    /// With `by_age`, each row of live blocks has a class of age ([`crate::input::ages::of_age`]).
    pub fn traces(
        self,
        part: Part<'_>,
        resolved: &[Option<TracebackId>],
        by_age: bool,
        names: &mut Tracebacks,
    ) -> Vec<Trace> {
        let Part { snapshot, copies } = part;
        let trace = |stack: u32, size, count, copies| {
            let traceback = resolved[stack as usize]?;
            let estimate = Estimate::of(count, sampled(snapshot, stack), copies);
            let Stack { total_nframe, truncated, .. } = snapshot.stacks[stack as usize];
            let (blamed, block, threads, stack) = (traceback, None, None, Some(stack));
            Some(Trace { traceback, blamed, size, count, estimate, total_nframe, truncated, block, threads, stack })
        };
        if self.at != At::Live {
            return self
                .totals(snapshot)
                .filter_map(|(row, size, count)| {
                    let copies = copies.of_stack(self.at, self.domain, row.stack, count);
                    trace(row.stack, size, count, copies)
                })
                .collect();
        }
        let rows = snapshot.threads.iter().zip(thread_rows(&snapshot.threads));
        let threads: Vec<_> = rows
            .map(|(thread, row)| {
                let own = names.string(&format!("{} ({})", thread.name, thread.tid));
                (own, names.string(&row))
            })
            .collect();
        let ages = if by_age { ages(snapshot) } else { Vec::new() };
        let live = |(index, row): (usize, &LiveGroup)| {
            let age = ages.get(index).copied();
            let size = sampled(snapshot, row.stack).map_or(row.size, |sampled| sampled.size);
            let (thread, threads) = threads[row.thread as usize];
            let copies = copies.of_live(index, row.count);
            let trace = trace(row.stack, row.size.saturating_mul(row.count), row.count, copies)?;
            Some(Trace { block: Some(Block { size, thread, age }), threads: Some(threads), ..trace })
        };
        self.live(snapshot).filter_map(live).collect()
    }

    /// Rows of live blocks with their index in the table.
    fn live(self, snapshot: &Snapshot) -> impl Iterator<Item = (usize, &LiveGroup)> {
        snapshot.live.iter().enumerate().filter(move |(_, row)| row.domain == self.domain && row.count > 0)
    }

    /// Rows with bytes and blocks at the moment of the view.
    fn totals(self, snapshot: &Snapshot) -> impl Iterator<Item = (&StackTotals, u64, u64)> {
        let rows = snapshot.totals.iter().filter(move |row| row.domain == self.domain);
        let rows = rows.map(move |row| match self.at {
            At::Total => (row, row.total_size, row.total_count),
            At::Live | At::Peak | At::Instant(_) => (row, row.peak_size, row.peak_count),
        });
        rows.filter(|&(_, _, count)| count > 0)
    }
}

/// The class of age of each row of live blocks.
fn ages(snapshot: &Snapshot) -> Vec<u32> {
    let mut ages = vec![0; snapshot.live.len()];
    let blocks = snapshot.ages.iter().flat_map(|ages| &ages.blocks);
    blocks.for_each(|born| ages[born.live as usize] = born.span);
    ages
}

/// Names the rows of threads: `name (id)` while a thread lives. Threads that ended share a row if
/// their names differ in digits only: `worker-* (ended)`.
pub(crate) fn thread_rows(threads: &[Thread]) -> Vec<String> {
    let mut names: HashMap<String, BTreeSet<&str>> = HashMap::new();
    for thread in threads.iter().filter(|thread| !thread.alive) {
        names.entry(without_numbers(&thread.name)).or_default().insert(&thread.name);
    }
    let row = |thread: &Thread| {
        if thread.alive {
            return format!("{} ({})", thread.name, thread.tid);
        }
        let pattern = without_numbers(&thread.name);
        // Threads of one name have this name.
        let is_one = names.get(&pattern).is_some_and(|names| names.len() == 1);
        format!("{} (ended)", if is_one { &thread.name } else { &pattern })
    };
    threads.iter().map(row).collect()
}

/// Replaces each number in a name by a `*`.
fn without_numbers(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '0'..='9' if out.ends_with('*') => {}
            '0'..='9' => out.push('*'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_ended_share_a_row_by_name() {
        let thread = |(tid, name, alive): (u32, &str, bool)| Thread { tid, name: name.to_string(), alive };
        let threads = [
            (12, "worker-3", true),
            (13, "worker-3", false),
            (14, "worker-12", false),
            (15, "pool2-t10x", false),
            (16, "pool2-t11x", false),
            (7, "python3.11", false),
            (17, "python3.11", false),
            (18, "main", false),
        ];
        let rows = thread_rows(&threads.map(thread));
        assert_eq!(rows[..3], ["worker-3 (12)", "worker-* (ended)", "worker-* (ended)"]);
        assert_eq!(rows[3..5], ["pool*-t*x (ended)", "pool*-t*x (ended)"]);
        assert_eq!(rows[5..], ["python3.11 (ended)", "python3.11 (ended)", "main (ended)"]);
    }
}

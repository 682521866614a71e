//! What a forked child's table begins with: copies of the parent's tables, put together by the
//! child's own thread.

use super::Table;
use super::codes::Described;
use super::copy::HeapCopy;
use super::heap::Heap;
use super::modules::Modules;
use super::ranges::Ranges;
use super::shared::Shared;
use super::stacks;
use super::threads::Threads;
use super::weights::Weights;
use heapline_shared_format::snapshot::Domain;
use std::collections::{BTreeMap, BTreeSet};

/// What a forked child's table begins with. The blocks are copied after the fork ([`Seed::grow`]).
pub struct Seed {
    native: HeapCopy,
    python: Option<HeapCopy>,
    tracked: BTreeMap<Domain, HeapCopy>,
    ranges: Ranges,
    stacks: stacks::Seed,
    codes: Described,
    modules: Modules,
    threads: Threads,
    weights: Weights,
    program: Option<String>,
    recorded: BTreeSet<String>,
    cleared: u64,
    is_paused: bool,
    is_whole: bool,
}

impl Seed {
    /// Waits for the copies of the blocks, and returns the table. None if the parent's table is
    /// gone.
    pub fn grow(self) -> Option<Table> {
        let heap = |copy: HeapCopy| {
            let (live, totals) = copy.live()?;
            Some(Heap::inherited(live, &totals))
        };
        let mut table = Table::new(0, 0);
        table.heap = heap(self.native)?;
        if let Some(python) = self.python {
            table.python = Some(Box::new(heap(python)?));
        }
        for (domain, tracked) in self.tracked {
            table.tracked.insert(domain, heap(tracked)?);
        }
        table.ranges = self.ranges;
        table.stacks = self.stacks.grow();
        table.codes = self.codes.into();
        table.modules = self.modules;
        table.shared = Shared { threads: self.threads, weights: self.weights, ..Shared::default() };
        table.program = self.program;
        table.recorded = self.recorded;
        table.cleared = self.cleared;
        table.is_whole = self.is_whole;
        table.said.pause(self.is_paused);
        Some(table)
    }
}

impl Table {
    /// Returns the seed of the table of a child forked at this moment.
    pub fn inherited(&mut self) -> Seed {
        let Table { heap, python, tracked, shared, .. } = self;
        let native = heap.copy(shared);
        let python = python.as_deref_mut().map(|heap| heap.copy(shared));
        let tracked = tracked.iter_mut().map(|(&domain, heap)| (domain, heap.copy(shared))).collect();
        let mut threads = shared.threads.clone();
        threads.end_all();
        Seed {
            native,
            python,
            tracked,
            ranges: self.ranges.inherited(),
            stacks: self.stacks.fork(),
            codes: self.codes.described().clone(),
            modules: self.modules.clone(),
            threads,
            weights: self.shared.weights.clone(),
            program: self.program.clone(),
            recorded: self.recorded.clone(),
            cleared: self.cleared,
            is_whole: self.is_whole,
            is_paused: self.said.is_paused_by_operator(),
        }
    }
}

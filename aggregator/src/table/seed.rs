//! What a forked child's table begins with: an empty table, and copies of the parent's blocks and
//! stacks that the child's own thread puts into the table.

use super::Table;
use super::codes::Described;
use super::copy::HeapCopy;
use super::heap::Heap;
use super::stacks;
use std::collections::BTreeMap;

/// What a forked child's table begins with. The blocks are copied after the fork ([`Seed::grow`]).
pub struct Seed {
    /// The table, without blocks and stacks.
    pub(super) table: Table,
    pub(super) native: HeapCopy,
    pub(super) python: Option<HeapCopy>,
    pub(super) tracked: BTreeMap<u32, HeapCopy>,
    pub(super) stacks: stacks::Seed,
    pub(super) codes: Described,
}

impl Seed {
    /// Waits for the copies of the blocks, and returns the table. None if the parent's table is
    /// gone.
    pub fn grow(self) -> Option<Table> {
        let Seed { mut table, native, python, tracked, stacks, codes } = self;
        let heap = |copy: HeapCopy| {
            let (live, totals) = copy.live()?;
            Some(Heap::inherited(live, &totals))
        };
        table.stacks = stacks.grow();
        table.codes = codes.into();
        table.heap = heap(native)?;
        if let Some(python) = python {
            table.python = Some(Box::new(heap(python)?));
        }
        for (number, tracked) in tracked {
            table.tracked.insert(number, heap(tracked)?);
        }
        Some(table)
    }
}

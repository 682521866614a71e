//! Records with impossible content.
//!
//! Each kind of contradiction is counted and resolved by a rule. The counts are part of every
//! snapshot. An exact trace of a healthy target has no contradictions.

use std::collections::BTreeMap;

/// Kinds of contradictions. Snapshots and reports show the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Contradiction {
    /// A ring with content written by no collector. The rest of the ring is not read.
    Corrupt,
    /// A stamp older than the previous stamp of the same ring. The record takes the previous stamp.
    Clock,
    /// A record that arrived after younger records of other threads were applied, because the
    /// record's thread stayed in the middle of an event for too long. The record is applied at
    /// once.
    Late,
    /// An allocation at the address of a live block. The older block is removed.
    AllocOverLive,
    /// A second free of a block, without an allocation in between. The free is ignored.
    DoubleFree,
    /// A realloc that began inside another realloc of the thread, or failed although the block was
    /// gone.
    Realloc,
    /// More open calls that take pages away than a thread can have. The oldest call is treated as
    /// failed.
    Unmap,
    /// An allocation by a stack that was never defined in the ring. The empty stack is used.
    UnknownStack,
    /// A full table. Effects by kind of the entry:
    ///
    /// - stack, frame: the empty stack is used.
    /// - sampled stack: the stack without interval and size is used.
    /// - module: frames show no module.
    /// - description of a code object: the code object has no name.
    /// - domain tracked by hand: the block is dropped.
    Full,
}

impl Contradiction {
    const ALL: [(Contradiction, &'static str); 9] = [
        (Contradiction::Corrupt, "corrupt"),
        (Contradiction::Clock, "clock"),
        (Contradiction::Late, "late"),
        (Contradiction::AllocOverLive, "alloc_over_live"),
        (Contradiction::DoubleFree, "double_free"),
        (Contradiction::Realloc, "realloc"),
        (Contradiction::Unmap, "unmap"),
        (Contradiction::UnknownStack, "unknown_stack"),
        (Contradiction::Full, "full"),
    ];
}

/// Counters of all kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contradictions([u64; Contradiction::ALL.len()]);

impl Contradictions {
    /// Counts a contradiction.
    pub fn count(&mut self, kind: Contradiction) {
        self.0[kind as usize] += 1;
    }

    /// Adds the counts of `others`.
    pub fn add(&mut self, others: &Contradictions) {
        self.0.iter_mut().zip(others.0).for_each(|(n, other)| *n += other);
    }

    /// Takes back at most `most` contradictions of a kind, because another reason explains them.
    /// Returns the number taken back.
    pub fn excuse(&mut self, kind: Contradiction, most: u64) -> u64 {
        let count = &mut self.0[kind as usize];
        let excused = most.min(*count);
        *count -= excused;
        excused
    }

    /// Count of a kind.
    pub fn of(&self, kind: Contradiction) -> u64 {
        self.0[kind as usize]
    }

    /// Sum over all kinds.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Counts by name, without zeros.
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        let named = Contradiction::ALL.iter().map(|&(kind, name)| (name.to_owned(), self.of(kind)));
        named.filter(|&(_, n)| n > 0).collect()
    }
}

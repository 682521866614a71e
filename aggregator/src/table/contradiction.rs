//! What the records say that cannot have happened.
//!
//! Each kind is resolved by a rule and counted before it is resolved; the counts travel with every snapshot. An
//! exact trace of a healthy target has none.

use std::collections::BTreeMap;

/// The kinds. Names are what snapshots and reports show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Contradiction {
    /// A ring held what no collector writes. The rest of that ring is not read.
    Corrupt,
    /// A stamp older than its predecessor's in the same ring. It takes the predecessor's.
    Clock,
    /// A record that arrived after younger ones of other threads were applied, because its thread stayed in the
    /// middle of an event for too long. It is applied at once.
    Late,
    /// A block allocated where one was live. The older one is removed.
    AllocOverLive,
    /// A block freed that had just been freed, with no allocation in between. Ignored.
    DoubleFree,
    /// A realloc that began inside another of the same thread, or failed although its block was gone.
    Realloc,
    /// A thread has begun more calls that take pages away than it can be in. The oldest is taken for one that failed.
    Unmap,
    /// An allocation by a stack that its thread never defined. It is booked on an empty stack.
    UnknownStack,
    /// More distinct stacks or modules than the tables hold. Booked on an empty stack, or without module.
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

/// A counter for each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contradictions([u64; Contradiction::ALL.len()]);

impl Contradictions {
    /// Counts one.
    pub fn count(&mut self, kind: Contradiction) {
        self.0[kind as usize] += 1;
    }

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, others: &Contradictions) {
        self.0.iter_mut().zip(others.0).for_each(|(n, other)| *n += other);
    }

    /// Takes back at most so many of a kind, which have another reason. Returns how many.
    pub fn excuse(&mut self, kind: Contradiction, most: u64) -> u64 {
        let count = &mut self.0[kind as usize];
        let excused = most.min(*count);
        *count -= excused;
        excused
    }

    /// How many of a kind.
    pub fn of(&self, kind: Contradiction) -> u64 {
        self.0[kind as usize]
    }

    /// All kinds together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Those that occurred, by name.
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        let named = Contradiction::ALL.iter().map(|&(kind, name)| (name.to_owned(), self.of(kind)));
        named.filter(|&(_, n)| n > 0).collect()
    }
}

//! Live blocks in groups of the same stack, thread and size: nearly all programs have many more
//! blocks than groups.

use crate::table::births::{Birth, Births, Recoding};
use crate::table::live::Block;
use crate::table::stacks::Tree;
use hashbrown::HashMap;
use std::time::Duration;

/// Number of counts from which on spans of birth are made coarser. Few in tests.
const MOST_COUNTS: usize = if cfg!(test) { 64 } else { 1 << 20 };

/// Blocks of the same stack, thread and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    /// Index of the allocating stack.
    pub stack: u32,
    /// Index of the allocating thread.
    pub thread: u32,
    /// Requested bytes of each block.
    pub size: u64,
}

/// Numbers of live blocks by group and span of birth.
///
/// Most programs have few groups, and a group has few spans. Where it is otherwise, spans are made
/// coarser, so the counts of a copy stay small beside the blocks.
#[derive(Clone, Debug)]
pub struct Groups {
    counts: HashMap<(Group, Birth), i64>,
    /// Number of counts from which on spans are made coarser.
    most: usize,
    spans: Spans,
    shared: Option<Shared>,
}

/// Spans of birth, at the instant of a copy.
#[derive(Clone, Debug)]
pub struct Spans {
    births: Births,
    now: Duration,
    /// How often the spans were made coarser.
    level: usize,
    /// Span of each code of the table.
    of_code: Recoding,
}

/// Precision of the spans at each level, as a part of their age.
const LEVELS: [u32; 7] = [1024, 512, 256, 128, 64, 32, 16];

impl Spans {
    /// Returns the spans of a table at the time `now`.
    pub fn of(births: &Births, now: Duration) -> Spans {
        Spans { births: births.clone(), now, level: 0, of_code: Recoding::default() }
    }

    /// How often the spans were made coarser.
    pub fn level(&self) -> usize {
        self.level
    }

    /// Begins of the spans, rising.
    pub fn begins(&self) -> &[Duration] {
        self.births.begins()
    }

    /// Makes the spans coarser. Returns the new span of each span; none if they are the coarsest.
    fn coarsen(&mut self) -> Option<Recoding> {
        let parts = *LEVELS.get(self.level)?;
        let recoding = self.births.coarsen(self.now, parts);
        self.of_code = self.of_code.then(&recoding);
        self.level += 1;
        Some(recoding)
    }
}

/// Addresses of the samples that other processes may have too.
#[derive(Clone, Debug)]
struct Shared {
    tree: Tree,
    /// Samples of lower stacks may also be in other tables.
    end: u32,
    addresses: HashMap<(Group, u64), i64>,
}

/// Live blocks of a domain, by rising group.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sorted {
    /// Number of blocks of each group.
    pub groups: Vec<(Group, u64)>,
    /// Number of blocks born in a span, with the place of the group.
    pub born: Vec<(usize, Birth, u64)>,
    /// Addresses of the samples that other processes may have too, with the place of the group.
    pub shared: Vec<(usize, u64)>,
}

impl Groups {
    /// Returns groups without blocks.
    pub fn new(spans: Spans) -> Groups {
        Groups { counts: HashMap::new(), most: MOST_COUNTS, spans, shared: None }
    }

    /// Keeps the addresses of samples with stacks below `end`.
    pub fn with_addresses(self, tree: Tree, end: u32) -> Groups {
        Groups { shared: Some(Shared { tree, end, addresses: HashMap::new() }), ..self }
    }

    /// Adds `count` times a block; a negative number takes away.
    pub fn add(&mut self, block: &Block, count: i64) {
        let group = Group { stack: block.stack, thread: block.thread, size: block.size };
        *self.counts.entry((group, self.spans.of_code.of(block.birth))).or_default() += count;
        if self.counts.len() > self.most {
            self.shrink();
        }
        if let Some(Shared { tree, end, addresses }) = &mut self.shared
            && block.stack < *end
            && tree.is_sampled(block.stack)
        {
            *addresses.entry((group, block.address)).or_default() += count;
        }
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u64 {
        let blocks: i64 = self.counts.values().sum();
        u64::try_from(blocks).unwrap_or(0)
    }

    /// The spans of the counts.
    pub fn spans(&self) -> &Spans {
        &self.spans
    }

    /// Makes the spans as coarse as those of other groups of the same table.
    pub fn coarsen_to(&mut self, other: &Spans) {
        while self.spans.level < other.level && self.coarsen() {}
    }

    #[cold]
    fn shrink(&mut self) {
        while self.counts.len() > self.most && self.coarsen() {
            // Many groups are no reason for coarse spans.
            if self.counts.len() > self.most / 4 * 3 {
                self.most *= 2;
            }
        }
        self.most = self.most.max(self.counts.len());
    }

    fn coarsen(&mut self) -> bool {
        let Some(recoding) = self.spans.coarsen() else { return false };
        let mut counts = HashMap::new();
        for ((group, span), count) in std::mem::take(&mut self.counts) {
            *counts.entry((group, recoding.of(span))).or_default() += count;
        }
        self.counts = counts;
        true
    }

    /// Returns the groups with blocks.
    pub fn sorted(self) -> Sorted {
        let some = |(key, count): ((Group, Birth), i64)| u64::try_from(count).ok().filter(|&n| n > 0).map(|n| (key, n));
        let mut counts: Vec<_> = self.counts.into_iter().filter_map(some).collect();
        counts.sort_unstable();
        let (mut groups, mut born): (Vec<(Group, u64)>, Vec<_>) = (Vec::new(), Vec::with_capacity(counts.len()));
        for ((group, span), count) in counts {
            match groups.last_mut() {
                Some((last, sum)) if *last == group => *sum += count,
                _ => groups.push((group, count)),
            }
            born.push((groups.len() - 1, span, count));
        }
        let shared = self.shared.map(|shared| shared.addresses).unwrap_or_default();
        let places = shared.into_iter().filter(|&(_, count)| count > 0).filter_map(|((group, address), _)| {
            let place = groups.binary_search_by_key(&group, |&(group, _)| group).ok()?;
            Some((place, address))
        });
        let mut shared: Vec<_> = places.collect();
        shared.sort_unstable();
        Sorted { groups, born, shared }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn groups() -> Groups {
        Groups::new(Spans::of(&Births::default(), Duration::ZERO))
    }

    fn block(address: u64, stack: u32) -> Block {
        Block { address, size: 8, stack, thread: 0, birth: Birth::default(), in_program: false }
    }

    #[test]
    fn equal_blocks_are_counted_together() {
        let mut groups = groups();
        for (address, stack, count) in [(16, 2, 1), (32, 1, 1), (48, 2, 1), (64, 2, -1), (64, 3, 1), (64, 3, -1)] {
            groups.add(&block(address, stack), count);
        }
        assert_eq!(groups.blocks(), 2);
        let group = |stack| Group { stack, thread: 0, size: 8 };
        let born = vec![(0, Birth::default(), 1), (1, Birth::default(), 1)];
        assert_eq!(groups.sorted(), Sorted { groups: vec![(group(1), 1), (group(2), 1)], born, shared: Vec::new() });
    }

    #[test]
    fn addresses_of_shared_samples_are_kept() {
        let mut tree = Tree::default();
        tree.sampled.push(heapline_shared_format::snapshot::Sampled { stack: 1, interval: 1, size: 8 });
        tree.sampled.push(heapline_shared_format::snapshot::Sampled { stack: 4, interval: 1, size: 8 });
        let mut groups = groups().with_addresses(tree, 4);
        for (address, stack, count) in [(48, 1, 1), (32, 1, 1), (16, 1, 1), (16, 1, -1), (64, 2, 1), (80, 4, 1)] {
            groups.add(&block(address, stack), count);
        }
        assert_eq!(groups.sorted().shared, [(0, 32), (0, 48)]);
    }

    proptest! {
        /// Blocks of many groups and spans, beside a naive count. Coarser spans contain the births.
        #[test]
        fn every_block_is_counted_in_the_span_of_its_birth(
            blocks in prop::collection::vec((0..12u32, 0..400usize, 1..4i64), 0..600),
            other in 0..9usize,
        ) {
            let mut births = Births::default();
            (1..400).for_each(|second| _ = births.begin(Duration::from_secs(second), Vec::new));
            let codes: Vec<Birth> = (0..400).map(Birth::of_bits).collect();
            let now = Duration::from_secs(400);
            let mut groups = Groups::new(Spans::of(&births, now));
            let mut other_spans = Spans::of(&births, now);
            (0..other).for_each(|_| _ = other_spans.coarsen());
            let mut model: BTreeMap<(u32, usize), i64> = BTreeMap::new();
            for &(stack, second, count) in &blocks {
                groups.add(&Block { birth: codes[second], ..block(16, stack) }, count);
                *model.entry((stack, second)).or_default() += count;
            }
            groups.coarsen_to(&other_spans);
            prop_assert!(groups.spans().level >= other_spans.level);
            let begins: Vec<Duration> = groups.spans().begins().to_vec();
            let mut wanted: BTreeMap<(u32, usize), u64> = BTreeMap::new();
            for ((stack, second), count) in model {
                let span = begins.partition_point(|&begin| begin <= Duration::from_secs(second as u64)) - 1;
                *wanted.entry((stack, span)).or_default() += count.unsigned_abs();
            }
            let blocks = groups.blocks();
            let Sorted { groups, born, .. } = groups.sorted();
            prop_assert!(groups.is_sorted() && born.is_sorted());
            let found: BTreeMap<(u32, usize), u64> =
                born.iter().map(|&(place, span, count)| ((groups[place].0.stack, usize::from(span.code())), count)).collect();
            prop_assert_eq!(found, wanted);
            prop_assert_eq!(blocks, groups.iter().map(|&(_, count)| count).sum::<u64>());
        }
    }
}

//! Live blocks in groups of the same stack, thread and size: nearly all programs have many more
//! blocks than groups.

use crate::table::live::Block;
use crate::table::stacks::Tree;
use hashbrown::HashMap;

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

/// Numbers of live blocks by group.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    counts: HashMap<Group, i64>,
    shared: Option<Shared>,
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
    /// Addresses of the samples that other processes may have too, with the place of the group.
    pub shared: Vec<(usize, u64)>,
}

impl Groups {
    /// Returns empty groups that keep the addresses of samples with stacks below `end`.
    pub fn with_addresses(tree: Tree, end: u32) -> Groups {
        Groups { counts: HashMap::new(), shared: Some(Shared { tree, end, addresses: HashMap::new() }) }
    }

    /// Adds `count` times a block; a negative number takes away.
    pub fn add(&mut self, block: &Block, count: i64) {
        let group = Group { stack: block.stack, thread: block.thread, size: block.size };
        *self.counts.entry(group).or_default() += count;
        if let Some(Shared { tree, end, addresses }) = &mut self.shared
            && block.stack < *end
            && tree.is_sampled(block.stack)
        {
            *addresses.entry((group, block.address)).or_default() += count;
        }
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u64 {
        self.counts.values().filter_map(|&count| u64::try_from(count).ok()).sum()
    }

    /// Returns the groups with blocks.
    pub fn sorted(self) -> Sorted {
        let some = |(group, count): (Group, i64)| u64::try_from(count).ok().filter(|&n| n > 0).map(|n| (group, n));
        let mut groups: Vec<_> = self.counts.into_iter().filter_map(some).collect();
        groups.sort_unstable();
        let shared = self.shared.map(|shared| shared.addresses).unwrap_or_default();
        let places = shared.into_iter().filter(|&(_, count)| count > 0).filter_map(|((group, address), _)| {
            let place = groups.binary_search_by_key(&group, |&(group, _)| group).ok()?;
            Some((place, address))
        });
        let mut shared: Vec<_> = places.collect();
        shared.sort_unstable();
        Sorted { groups, shared }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(address: u64, stack: u32) -> Block {
        Block { address, size: 8, stack, thread: 0, in_program: false }
    }

    #[test]
    fn equal_blocks_are_counted_together() {
        let mut groups = Groups::default();
        for (address, stack, count) in [(16, 2, 1), (32, 1, 1), (48, 2, 1), (64, 2, -1), (64, 3, 1), (64, 3, -1)] {
            groups.add(&block(address, stack), count);
        }
        assert_eq!(groups.blocks(), 2);
        let group = |stack| Group { stack, thread: 0, size: 8 };
        assert_eq!(groups.sorted(), Sorted { groups: vec![(group(1), 1), (group(2), 1)], shared: Vec::new() });
    }

    #[test]
    fn addresses_of_shared_samples_are_kept() {
        let mut tree = Tree::default();
        tree.sampled.push(heapline_shared_format::snapshot::Sampled { stack: 1, interval: 1, size: 8 });
        tree.sampled.push(heapline_shared_format::snapshot::Sampled { stack: 4, interval: 1, size: 8 });
        let mut groups = Groups::with_addresses(tree, 4);
        for (address, stack, count) in [(48, 1, 1), (32, 1, 1), (16, 1, 1), (16, 1, -1), (64, 2, 1), (80, 4, 1)] {
            groups.add(&block(address, stack), count);
        }
        assert_eq!(groups.sorted().shared, [(0, 32), (0, 48)]);
    }
}

//! What is lost: directly, or held by lost blocks only.
//!
//! The words of valgrind are used. A lost block that no other lost block points to is lost
//! directly. Of a circle of lost blocks, one block is lost directly, unless a lost block outside of
//! the circle points into the circle. All other lost blocks are lost
//! indirectly, each held by a directly lost block.

use super::blocks::Blocks;
use super::mark::Reached;
use super::memory::{Memory, Span};
use super::pages::Pages;
use std::collections::BTreeMap;
use std::io;
use std::ops::AddAssign;

/// Blocks read at a time.
const BATCH: usize = 4096;
/// The leader of a block without a leader.
const NOBODY: u32 = u32::MAX;

/// A number of blocks and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sum {
    /// Bytes.
    pub bytes: u64,
    /// Number of blocks.
    pub blocks: u64,
}

impl AddAssign<Sum> for Sum {
    fn add_assign(&mut self, other: Sum) {
        self.bytes += other.bytes;
        self.blocks += other.blocks;
    }
}

/// The lost blocks of a stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Blocks lost directly.
    pub direct: Sum,
    /// Blocks held by lost blocks only.
    pub indirect: Sum,
    /// Blocks of any stack that the directly lost blocks of this stack hold.
    pub held: Sum,
}

/// Sums the lost blocks by stack. `lost` are indexes of `blocks`, rising.
pub fn verdict(
    blocks: &Blocks,
    lost: &[usize],
    pages: &Pages,
    memory: &mut impl Memory,
) -> io::Result<BTreeMap<u32, Lost>> {
    let leaders = Pointers::of(blocks, lost, pages, memory)?.leaders();
    let mut sums: BTreeMap<u32, Lost> = BTreeMap::new();
    for (place, &leader) in leaders.iter().enumerate() {
        let row = blocks.row(lost[place]);
        let sum = Sum { bytes: row.size, blocks: 1 };
        if leader as usize == place {
            sums.entry(row.stack).or_default().direct += sum;
        } else {
            sums.entry(row.stack).or_default().indirect += sum;
            sums.entry(blocks.row(lost[leader as usize]).stack).or_default().held += sum;
        }
    }
    Ok(sums)
}

/// The pointers of lost blocks to lost blocks. Blocks are numbered by rising address.
struct Pointers {
    /// Place of each block's first pointer in `targets`, and the number of all.
    firsts: Vec<usize>,
    targets: Vec<u32>,
}

impl Pointers {
    fn of(blocks: &Blocks, lost: &[usize], pages: &Pages, memory: &mut impl Memory) -> io::Result<Pointers> {
        let mut is_lost = Reached::none(blocks.len());
        lost.iter().for_each(|&index| _ = is_lost.add(index));
        let (mut firsts, mut targets) = (Vec::with_capacity(lost.len() + 1), Vec::new());
        for batch in lost.chunks(BATCH) {
            let spans: Vec<Span> = batch.iter().flat_map(|&index| pages.within(blocks.reach(index))).collect();
            memory.read(&spans, &mut |address, words| {
                let found = words.iter().filter_map(|&word| blocks.find(word)).filter(|&index| is_lost.has(index));
                for target in found.filter_map(|index| lost.binary_search(&index).ok()) {
                    // The spans come by rising address, so blocks without pointers begin here too.
                    while lost.get(firsts.len()).is_some_and(|&from| blocks.address(from) <= address) {
                        firsts.push(targets.len());
                    }
                    targets.push(u32::try_from(target).unwrap_or(u32::MAX));
                }
            })?;
        }
        firsts.resize(lost.len() + 1, targets.len());
        Ok(Pointers { firsts, targets })
    }

    fn len(&self) -> usize {
        self.firsts.len() - 1
    }

    fn of_block(&self, block: u32) -> &[u32] {
        &self.targets[self.firsts[block as usize]..self.firsts[block as usize + 1]]
    }

    /// Returns the block that leads each block. A block that leads itself is lost directly.
    ///
    /// Blocks are taken in the order of the end of their search, the last first. The search of a
    /// block ends after the searches of all blocks that the block leads to, unless these lead back.
    /// So a block that no earlier block leads to is led by no other block, or is the first of a
    /// circle.
    fn leaders(&self) -> Vec<u32> {
        let mut leaders = vec![NOBODY; self.len()];
        let mut pending = Vec::new();
        for leader in self.ends().into_iter().rev() {
            pending.push(leader);
            while let Some(block) = pending.pop() {
                if leaders[block as usize] == NOBODY {
                    leaders[block as usize] = leader;
                    pending.extend_from_slice(self.of_block(block));
                }
            }
        }
        leaders
    }

    /// Searches from each block, by rising address, the blocks that are not searched yet. Returns
    /// the blocks in the order of the end of their search.
    fn ends(&self) -> Vec<u32> {
        let mut ends = Vec::with_capacity(self.len());
        let mut is_seen = vec![false; self.len()];
        // Blocks under search, each with the number of followed pointers.
        let mut path: Vec<(u32, usize)> = Vec::new();
        for start in (0u32..).take(self.len()) {
            if !is_seen[start as usize] {
                is_seen[start as usize] = true;
                path.push((start, 0));
            }
            while let Some((block, followed)) = path.last_mut() {
                match self.of_block(*block).get(*followed) {
                    Some(&target) => {
                        *followed += 1;
                        if !std::mem::replace(&mut is_seen[target as usize], true) {
                            path.push((target, 0));
                        }
                    }
                    None => {
                        ends.push(*block);
                        path.pop();
                    }
                }
            }
        }
        ends
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own making")]
mod tests {
    use super::super::blocks::{Builder, Row};
    use super::super::mark::Marking;
    use super::super::memory::Synthetic;
    use super::*;
    use crate::table::births::Birth;
    use proptest::prelude::*;

    /// A heap of blocks of 32 bytes, each with a stack of its own: block `n` lies at `at(n)`.
    struct World {
        blocks: Blocks,
        memory: Synthetic,
    }

    const ROOT: Span = Span { start: 0x100, end: 0x180 };

    fn at(block: u64) -> u64 {
        0x1000 + 48 * block
    }

    impl World {
        /// Each pointer stands in a block, in a word of its own, and leads to a block and a byte
        /// of the block.
        fn new(blocks: u64, pointers: &[(u64, u64, u64)]) -> World {
            let mut builder = Builder::default();
            (0..blocks).for_each(|n| {
                builder.add(Row { address: at(n), size: 32, stack: n as u32, birth: Birth::default() }, 1)
            });
            let mut memory = Synthetic::default();
            for (word, &(from, to, byte)) in (0..).zip(pointers) {
                memory.0.insert(at(from) + word % 4 * 8, at(to) + byte);
            }
            World { blocks: builder.finish(), memory }
        }

        fn lost(&mut self, registers: &[u64]) -> Vec<usize> {
            let pages = Pages::all();
            let mut marking = Marking::new(&self.blocks, &pages, &mut self.memory);
            marking.words(registers).expect("readable");
            marking.roots(std::iter::once(ROOT)).expect("readable");
            let reached = marking.finish();
            (0..self.blocks.len()).filter(|&index| !reached.has(index)).collect()
        }

        /// Directly lost blocks with the number of held blocks, and indirectly lost blocks.
        fn verdict(&mut self) -> (Vec<(u32, u64)>, Vec<u32>) {
            let lost = self.lost(&[]);
            let sums = verdict(&self.blocks, &lost, &Pages::all(), &mut self.memory).expect("readable");
            let direct = sums.iter().filter(|(_, lost)| lost.direct == Sum { bytes: 32, blocks: 1 });
            let direct = direct.map(|(&stack, lost)| (stack, lost.held.blocks)).collect();
            let indirect = sums.iter().filter(|(_, lost)| lost.indirect.blocks == 1).map(|(&stack, _)| stack);
            (direct, indirect.collect())
        }
    }

    #[test]
    fn roots_registers_and_interior_pointers_reach_blocks() {
        let mut world = World::new(6, &[(0, 1, 0), (1, 2, 31), (4, 3, 0)]);
        world.memory.0.insert(ROOT.start + 8, at(0) + 5);
        assert_eq!(world.lost(&[]), [3, 4, 5]);
        assert_eq!(world.lost(&[at(4)]), [5]);
        world.memory.0.insert(ROOT.end, at(5));
        world.memory.0.insert(ROOT.start, at(5) + 44);
        assert_eq!(world.lost(&[at(4)]), [5], "words outside of the roots, and pointers behind a block");
    }

    #[test]
    fn a_list_without_its_head_is_one_block_and_what_it_holds() {
        let mut world = World::new(4, &[(2, 0, 0), (0, 3, 0), (3, 1, 0)]);
        assert_eq!(world.verdict(), (vec![(2, 3)], vec![0, 1, 3]));
    }

    #[test]
    fn one_block_of_a_circle_is_direct_unless_the_circle_is_held() {
        let circle = [(0, 1, 0), (1, 2, 0), (2, 0, 0)];
        assert_eq!(World::new(3, &circle).verdict(), (vec![(0, 2)], vec![1, 2]));
        let held = [&circle[..], &[(3, 1, 0), (4, 4, 8)]].concat();
        assert_eq!(World::new(5, &held).verdict(), (vec![(3, 3), (4, 0)], vec![0, 1, 2]));
    }

    #[test]
    fn a_block_held_twice_is_held_once() {
        assert_eq!(World::new(3, &[(0, 2, 0), (1, 2, 0)]).verdict(), (vec![(0, 0), (1, 1)], vec![2]));
    }
    proptest! {
        /// By the definition: a block is lost directly if all blocks that lead to the block are led
        /// to by the block, one for each circle.
        #[test]
        fn one_block_leads_each_circle_that_nothing_leads_to(
            edges in prop::collection::vec((0..12u64, 0..12u64), 0..30),
        ) {
            let mut world = World::new(12, &[]);
            let mut words = [0; 12];
            let mut leads = [[false; 12]; 12];
            for (from, to) in edges {
                if words[from as usize] < 4 {
                    world.memory.0.insert(at(from) + words[from as usize] * 8, at(to));
                    words[from as usize] += 1;
                    leads[from as usize][to as usize] = true;
                }
            }
            (0..12).for_each(|n| leads[n][n] = true);
            for by in 0..12 {
                for from in 0..12 {
                    (0..12).for_each(|to| leads[from][to] |= leads[from][by] && leads[by][to]);
                }
            }
            let (direct, indirect) = world.verdict();
            for (n, led) in leads.iter().enumerate() {
                let is_source = (0..12).all(|from: usize| !leads[from][n] || led[from]);
                let circle = (0..12).filter(|&other: &usize| led[other] && leads[other][n]);
                let leaders = circle.filter(|&other| direct.iter().any(|&(stack, _)| stack as usize == other)).count();
                prop_assert_eq!(leaders, usize::from(is_source), "{}: {:?} {:?}", n, &direct, &indirect);
            }
            prop_assert_eq!(direct.len() + indirect.len(), 12);
            prop_assert_eq!(direct.iter().map(|&(_, held)| held).sum::<u64>(), indirect.len() as u64);
        }
    }
}

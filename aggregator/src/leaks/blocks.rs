//! The index of the live blocks: from any address to the block around the address.
//!
//! 18 bytes a block, by rising address, and an entry for each page of the heap. A lookup reads the
//! entry of the page, and searches the few blocks that begin on the page.
//!
//! - A pointer into the middle of a block counts.
//! - The contents of a block reach as far as an allocator's rounding goes, since programs ask by
//!   `malloc_usable_size` and use the rest. A pointer into the rest does not count: lists of free
//!   memory point there, to the header of the next block.

use super::memory::{PAGE, Span};
use crate::table::births::Birth;
use std::collections::HashMap;

/// Empty pages that a group of pages has at most between two pages with blocks.
const MOST_EMPTY: i64 = 16;
/// Rounding of glibc's and musl's blocks: so many bytes, less the header.
const ROUNDING: u64 = 16;
const HEADER: u64 = 8;
/// Size of a block whose size is in [`Blocks::large`].
const LARGE: u32 = u32::MAX;

/// A live block, without the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// First address.
    pub address: u64,
    /// Requested bytes.
    pub size: u64,
    /// Index of the allocating stack.
    pub stack: u32,
    /// Time of the allocation.
    pub birth: Birth,
}

/// A block in a [`Builder`]: address, size, stack, birth.
type Stored = (u64, u32, u32, Birth);

/// Collects the blocks of a copy of the table, and makes an index.
#[derive(Debug, Default)]
pub struct Builder {
    blocks: Vec<Stored>,
    /// Blocks that came after the instant of the copy.
    taken: Vec<Stored>,
    large: HashMap<u64, u64>,
}

impl Builder {
    /// Adds a block, or takes a block away if `count` is negative.
    pub fn add(&mut self, row: Row, count: i64) {
        let size = u32::try_from(row.size).unwrap_or(LARGE);
        if size == LARGE && count > 0 {
            self.large.insert(row.address, row.size);
        }
        let list = if count < 0 { &mut self.taken } else { &mut self.blocks };
        list.push((row.address, size, row.stack, row.birth));
    }

    /// Returns the index.
    pub fn finish(mut self) -> Blocks {
        self.blocks.sort_unstable();
        self.taken.sort_unstable();
        let mut taken = self.taken.iter().peekable();
        self.blocks.retain(|block| {
            while taken.next_if(|taken| *taken < block).is_some() {}
            taken.next_if_eq(&block).is_none()
        });
        Blocks::of(self.blocks, self.large)
    }
}

/// A run of pages on which blocks begin.
#[derive(Clone, Copy, Debug)]
struct Group {
    /// Number of the first page.
    page: u64,
    /// Place of the first page in [`Blocks::firsts`].
    at: usize,
    /// Number of pages.
    pages: u64,
}

/// The live blocks by address.
#[derive(Debug, Default)]
pub struct Blocks {
    addresses: Vec<u64>,
    sizes: Vec<u32>,
    stacks: Vec<u32>,
    births: Vec<Birth>,
    /// Sizes of 4 GiB and more, by address.
    large: HashMap<u64, u64>,
    groups: Vec<Group>,
    /// Index of the first block that begins on a page or behind it, for each page of a group and
    /// one more.
    firsts: Vec<u32>,
    /// Number of blocks that reach into the next block.
    overlaps: u64,
}

impl Blocks {
    fn of(rows: Vec<Stored>, large: HashMap<u64, u64>) -> Blocks {
        let mut blocks = Blocks { large, ..Blocks::default() };
        blocks.addresses = rows.iter().map(|row| row.0).collect();
        blocks.sizes = rows.iter().map(|row| row.1).collect();
        blocks.stacks = rows.iter().map(|row| row.2).collect();
        blocks.births = rows.iter().map(|row| row.3).collect();
        drop(rows);
        let ends = (1..blocks.len()).filter(|&i| blocks.address(i - 1) + blocks.size(i - 1) > blocks.address(i));
        blocks.overlaps = ends.count() as u64;
        blocks.enter_pages();
        blocks
    }

    fn enter_pages(&mut self) {
        for (index, &address) in (0u32..).zip(&self.addresses) {
            let page = address / PAGE;
            // Number of pages from the last group's end to the page; negative within the group.
            let beyond = self.groups.last().map(|group| page.cast_signed() - (group.page + group.pages).cast_signed());
            match (beyond, self.groups.last_mut()) {
                (Some(..0), Some(_)) => {
                    self.firsts.pop();
                }
                (Some(empty @ 0..MOST_EMPTY), Some(group)) => {
                    group.pages += empty.cast_unsigned() + 1;
                    let behind = self.firsts.len() + usize::try_from(empty).unwrap_or(0);
                    self.firsts.resize(behind, index);
                }
                _ => {
                    self.groups.push(Group { page, at: self.firsts.len(), pages: 1 });
                    self.firsts.push(index);
                }
            }
            self.firsts.push(index + 1);
        }
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Number of blocks that reach into the next block.
    pub fn overlaps(&self) -> u64 {
        self.overlaps
    }

    /// Returns the first address of a block.
    pub fn address(&self, index: usize) -> u64 {
        self.addresses[index]
    }

    /// Returns the requested bytes of a block.
    pub fn size(&self, index: usize) -> u64 {
        match self.sizes[index] {
            LARGE => self.large.get(&self.addresses[index]).copied().unwrap_or(LARGE.into()),
            size => size.into(),
        }
    }

    /// Returns a block.
    pub fn row(&self, index: usize) -> Row {
        Row {
            address: self.address(index),
            size: self.size(index),
            stack: self.stacks[index],
            birth: self.births[index],
        }
    }

    /// Returns the addresses of a block's contents, with the rest up to the next block.
    pub fn reach(&self, index: usize) -> Span {
        let start = self.address(index);
        let rounded = (self.size(index).max(1).saturating_add(HEADER)).checked_next_multiple_of(ROUNDING);
        let end = start.saturating_add(rounded.map_or(u64::MAX, |bytes| bytes - HEADER).max(ROUNDING + HEADER));
        let next = self.addresses.get(index + 1).copied().unwrap_or(u64::MAX);
        Span { start, end: end.min(next) }
    }

    /// Returns the first block that begins at an address or behind it.
    fn first_from(&self, address: u64) -> usize {
        self.addresses.partition_point(|&start| start < address)
    }

    /// Returns the block around an address.
    #[inline]
    pub fn find(&self, address: u64) -> Option<usize> {
        let first = *self.addresses.first()?;
        if address < first {
            return None;
        }
        let page = address / PAGE;
        let group = self.groups[self.groups.partition_point(|group| group.page <= page).checked_sub(1)?];
        let behind = if page - group.page < group.pages {
            let offset = usize::try_from(page - group.page).ok()?;
            let bounds =
                [self.firsts[group.at + offset], self.firsts[group.at + offset + 1]].map(|first| first as usize);
            bounds[0] + self.addresses[bounds[0]..bounds[1]].partition_point(|&start| start <= address)
        } else {
            self.firsts[group.at + usize::try_from(group.pages).ok()?] as usize
        };
        let index = behind.checked_sub(1)?;
        (address - self.address(index) < self.size(index).max(1)).then_some(index)
    }

    /// Returns the block that begins at an address.
    pub fn at(&self, address: u64) -> Option<usize> {
        self.find(address).filter(|&index| self.address(index) == address)
    }

    /// Whether a block begins in the span.
    pub fn begins_in(&self, span: Span) -> bool {
        self.addresses.get(self.first_from(span.start)).is_some_and(|&start| start < span.end)
    }

    /// Returns the parts of a span that belong to no block.
    pub fn gaps(&self, span: Span) -> impl Iterator<Item = Span> + '_ {
        let mut index = self.first_from(span.start).saturating_sub(1);
        let mut at = span.start;
        std::iter::from_fn(move || {
            while at < span.end {
                let reach = (index < self.len()).then(|| self.reach(index)).filter(|reach| reach.start < span.end);
                let Some(reach) = reach else {
                    let rest = Span::between(at, span.end);
                    at = span.end;
                    return rest;
                };
                index += 1;
                let gap = Span::between(at, reach.start);
                at = at.max(reach.end);
                if gap.is_some() {
                    return gap;
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn index(rows: &[(u64, u64)]) -> Blocks {
        let mut builder = Builder::default();
        rows.iter()
            .for_each(|&(address, size)| builder.add(Row { address, size, stack: 7, birth: Birth::default() }, 1));
        builder.finish()
    }

    #[test]
    fn a_block_is_found_by_any_of_its_bytes_and_by_no_other() {
        let blocks = index(&[(0x10_000, 24), (0x10_020, 5 << 30), (0x9_0000_0000, 0)]);
        let found = |address| blocks.find(address);
        assert_eq!(
            [0xffff, 0x10_000, 0x10_017, 0x10_018, 0x10_020].map(found),
            [None, Some(0), Some(0), None, Some(1)]
        );
        assert_eq!(found(0x10_020 + (5 << 30) - 1), Some(1));
        assert_eq!(found(0x10_020 + (5 << 30) + 64), None);
        assert_eq!([0x9_0000_0000, 0x9_0000_0001].map(found), [Some(2), None], "an empty block has an address");
        assert_eq!((blocks.size(1), blocks.row(0).stack, blocks.overlaps()), (5 << 30, 7, 0));
        assert_eq!(index(&[(64, 64), (96, 8)]).overlaps(), 1);
    }

    #[test]
    fn blocks_taken_away_are_not_in_the_index() {
        let mut builder = Builder::default();
        let row = |address| Row { address, size: 16, stack: 1, birth: Birth::default() };
        builder.add(row(32), 1);
        builder.add(row(64), 1);
        builder.add(row(64), -1);
        builder.add(Row { size: 17, ..row(64) }, 1);
        let blocks = builder.finish();
        assert_eq!(
            (0..blocks.len()).map(|i| blocks.row(i)).collect::<Vec<_>>(),
            [row(32), Row { size: 17, ..row(64) }]
        );
    }

    proptest! {
        #[test]
        fn the_index_is_a_search_over_all_blocks(
            steps in prop::collection::vec((prop_oneof![0..4u64, 0..3000u64, 0..300_000u64], 0..9000u64), 0..60),
            looks in prop::collection::vec(any::<u64>(), 200),
        ) {
            let (mut rows, mut at) = (Vec::new(), 0x1000);
            for (gap, size) in steps {
                let address = at + gap * 16;
                rows.push((address, size));
                at = (address + size.max(1) + 8 + 16) & !15;
            }
            let blocks = index(&rows);
            for look in looks {
                let address = look % (at + 0x3000);
                let naive = rows.iter().position(|&(start, size)| (start..start + size.max(1)).contains(&address));
                prop_assert_eq!(blocks.find(address), naive);
            }
            for &(address, size) in &rows {
                let i = blocks.find(address).expect("its first byte");
                prop_assert_eq!((blocks.row(i).address, blocks.find(address + size.max(1) - 1)), (address, Some(i)));
            }
            let whole = Span { start: 0x900, end: at + 77 };
            let gaps: u64 = blocks.gaps(whole).map(|gap| gap.end - gap.start).sum();
            let held: u64 = (0..blocks.len()).filter_map(|i| blocks.reach(i).and(whole)).map(|s| s.end - s.start).sum();
            prop_assert_eq!(gaps + held, whole.end - whole.start);
            let is_free = |gap: Span| (0..blocks.len()).all(|i| blocks.reach(i).and(gap).is_none());
            prop_assert!(blocks.gaps(whole).all(is_free));
        }
    }
}

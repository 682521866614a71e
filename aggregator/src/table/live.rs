//! The live blocks of one domain, by address.
//!
//! ```text
//!              63             48 47                                    0
//! row, 16 B    | stack, low 16   | address                             |
//!              | stack, high 11 | in program 1 | thread 20 | size 32   |
//! ```
//!
//! Four rows are a bucket, which is a cache line, and a full bucket passes rows on to the next. 256 shards, chosen by
//! the hash, grow one after another: so no event waits for more than one of them to be moved, and the table as a
//! whole holds 20 to 30 bytes a block at any size. A block whose numbers do not fit a row (4 GiB and more, a thread
//! beyond the millionth) is kept beside them. Nothing else in the aggregator grows with the number of blocks.
//!
//! Looking up is a cache miss at a million blocks, so whoever knows an address early says so ([`Live::prefetch`]).

use crate::base::prefetch::prefetch;
use std::collections::HashMap;

const SHARD_BITS: u32 = 8;
const SHARDS: usize = 1 << SHARD_BITS;
/// Rows of a bucket.
const ROWS: usize = 4;
/// Buckets of the smallest shard.
const LEAST: usize = 8;
/// A shard grows by half when four of five rows are taken, and shrinks to twice its blocks when one of five is.
const FULL: (usize, usize) = (4, 5);
const SPARSE: (usize, usize) = (1, 5);
/// A bucket that has passed on so many rows counts them no more, until its shard is moved.
const MANY: u8 = u8::MAX;

const ADDRESS_BITS: u32 = 48;
const ADDRESS_MASK: u64 = (1 << ADDRESS_BITS) - 1;
const STACK_BITS: u32 = 27;
const PROGRAM_BITS: u32 = 1;
const THREAD_BITS: u32 = 20;
const SIZE_BITS: u32 = 32;
const _: () = assert!(ADDRESS_BITS + STACK_BITS + PROGRAM_BITS + THREAD_BITS + SIZE_BITS == 128);
/// In the second word: the program's own tracemalloc counts the block.
const IN_PROGRAM: u64 = 1 << (THREAD_BITS + SIZE_BITS);

/// A live block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Where it is.
    pub address: u64,
    /// Bytes that were asked for.
    pub size: u64,
    /// Index of the stack that asked.
    pub stack: u32,
    /// Index of the thread that asked.
    pub thread: u32,
    /// Whether the program's own tracemalloc counts it.
    pub in_program: bool,
}

/// A block, packed; all zeros are an empty row.
#[derive(Clone, Copy, Default)]
#[repr(align(16))]
struct Row([u64; 2]);

impl Row {
    /// None when a number does not fit.
    #[inline]
    fn pack(block: &Block) -> Option<Row> {
        let fits = block.size >> SIZE_BITS == 0
            && block.thread >> THREAD_BITS == 0
            && block.stack >> STACK_BITS == 0
            && block.address != 0
            && block.address <= ADDRESS_MASK;
        let stack = u64::from(block.stack);
        let in_program = if block.in_program { IN_PROGRAM } else { 0 };
        let high = stack >> 16 << (PROGRAM_BITS + THREAD_BITS + SIZE_BITS);
        let rest = high | in_program | u64::from(block.thread) << SIZE_BITS | block.size;
        fits.then_some(Row([block.address | stack << ADDRESS_BITS, rest]))
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "fields of fewer bits")]
    fn unpack(self) -> Block {
        let Row([first, rest]) = self;
        let stack = first >> ADDRESS_BITS | rest >> (PROGRAM_BITS + THREAD_BITS + SIZE_BITS) << 16;
        let thread = rest >> SIZE_BITS & ((1 << THREAD_BITS) - 1);
        let size = rest & ((1 << SIZE_BITS) - 1);
        let in_program = rest & IN_PROGRAM != 0;
        Block { address: self.address(), size, stack: stack as u32, thread: thread as u32, in_program }
    }

    #[inline]
    fn address(self) -> u64 {
        self.0[0] & ADDRESS_MASK
    }

    #[inline]
    fn is_empty(self) -> bool {
        self.0[0] == 0
    }
}

/// See the module.
#[derive(Clone)]
pub struct Live {
    shards: Box<[Shard]>,
    /// Blocks that fit no row.
    odd: HashMap<u64, Block>,
    len: usize,
}

impl Default for Live {
    fn default() -> Live {
        // Of different sizes from the first on, so that they never grow all at once.
        Live {
            shards: (0..SHARDS).map(|i| Shard::new(LEAST + i * LEAST / 2 / SHARDS)).collect(),
            odd: HashMap::new(),
            len: 0,
        }
    }
}

impl Live {
    /// Says that an address will be looked up soon.
    #[inline]
    pub fn prefetch(&self, address: u64) {
        let hash = hash(address);
        let shard = &self.shards[shard_of(hash)];
        let home = shard.home(hash);
        prefetch(&shard.buckets, home);
        prefetch(&shard.passed, home);
    }

    /// Adds a block. Returns the one that was at the same address, which is then gone.
    #[inline]
    pub fn insert(&mut self, block: Block) -> Option<Block> {
        let hash = hash(block.address);
        let shard = &mut self.shards[shard_of(hash)];
        let old = match Row::pack(&block) {
            Some(row) => {
                let old = shard.insert(hash, row);
                if old.is_none() && !self.odd.is_empty() { self.odd.remove(&block.address) } else { old }
            }
            None => {
                let old = shard.remove(hash, block.address);
                self.odd.insert(block.address, block).or(old)
            }
        };
        self.len += usize::from(old.is_none());
        old
    }

    /// Removes the block at an address.
    #[inline]
    pub fn remove(&mut self, address: u64) -> Option<Block> {
        let hash = hash(address);
        let mut block = self.shards[shard_of(hash)].remove(hash, address);
        if block.is_none() && !self.odd.is_empty() {
            block = self.odd.remove(&address);
        }
        self.len -= usize::from(block.is_some());
        block
    }

    /// The block at an address.
    pub fn get(&self, address: u64) -> Option<Block> {
        let hash = hash(address);
        let shard = &self.shards[shard_of(hash)];
        let found = shard.find(hash, address).map(|(bucket, row)| shard.buckets[bucket].0[row].unpack());
        found.or_else(|| self.odd.get(&address).copied())
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that the rows take.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| size_of_val(&*shard.buckets) + size_of_val(&*shard.passed)).sum()
    }

    /// All blocks, in no order.
    pub fn iter(&self) -> impl Iterator<Item = Block> + '_ {
        let rows = self.shards.iter().flat_map(|shard| shard.buckets.iter().flat_map(|bucket| bucket.0));
        rows.filter(|row| !row.is_empty()).map(|row| row.unpack()).chain(self.odd.values().copied())
    }

    /// No block is in the program's own trace any more.
    pub fn leave_program(&mut self) {
        let rows = self.shards.iter_mut().flat_map(|shard| shard.buckets.iter_mut().flat_map(|bucket| &mut bucket.0));
        // An empty row has no bits at all.
        rows.for_each(|row| row.0[1] &= !IN_PROGRAM);
        self.odd.values_mut().for_each(|block| block.in_program = false);
    }

    /// Forgets all blocks and their memory.
    pub fn clear(&mut self) {
        *self = Live::default();
    }
}

/// Rows on one cache line.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Bucket([Row; ROWS]);

impl Bucket {
    /// The row of an address, without a branch for each.
    #[inline]
    fn find(&self, address: u64) -> Option<usize> {
        self.first(|row| row.address() == address)
    }

    #[inline]
    fn empty(&self) -> Option<usize> {
        self.first(Row::is_empty)
    }

    #[inline]
    fn first(&self, is_it: impl Fn(Row) -> bool) -> Option<usize> {
        let bits = (0..ROWS).fold(0u32, |bits, i| bits | u32::from(is_it(self.0[i])) << i);
        (bits != 0).then(|| bits.trailing_zeros() as usize)
    }
}

/// Some of the blocks. A row lies in the first bucket from its home on that had room for it.
#[derive(Clone)]
struct Shard {
    buckets: Box<[Bucket]>,
    /// Rows that each bucket has passed on: where there are none, a search ends.
    passed: Box<[u8]>,
    used: usize,
}

impl Shard {
    fn new(buckets: usize) -> Shard {
        Shard {
            buckets: vec![Bucket::default(); buckets].into_boxed_slice(),
            passed: vec![0; buckets].into_boxed_slice(),
            used: 0,
        }
    }

    /// Where a row belongs: a part of the hash, scaled down.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        (((hash & u64::from(u32::MAX)) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline]
    fn next(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets.len() { 0 } else { bucket + 1 }
    }

    /// Bucket and row of an address.
    #[inline]
    fn find(&self, hash: u64, address: u64) -> Option<(usize, usize)> {
        if address == 0 {
            // That would be an empty row.
            return None;
        }
        let mut bucket = self.home(hash);
        // All buckets may have passed rows on once.
        for _ in 0..self.buckets.len() {
            if let Some(row) = self.buckets[bucket].find(address) {
                return Some((bucket, row));
            }
            if self.passed[bucket] == 0 {
                return None;
            }
            bucket = self.next(bucket);
        }
        None
    }

    #[inline]
    fn insert(&mut self, hash: u64, row: Row) -> Option<Block> {
        if let Some((bucket, i)) = self.find(hash, row.address()) {
            return Some(std::mem::replace(&mut self.buckets[bucket].0[i], row).unpack());
        }
        self.place(hash, row);
        self.used += 1;
        if self.used * FULL.1 > self.buckets.len() * ROWS * FULL.0 {
            self.resize(self.buckets.len() * 3 / 2);
        }
        None
    }

    /// A shard has empty rows, so this ends.
    #[inline]
    fn place(&mut self, hash: u64, row: Row) {
        let mut bucket = self.home(hash);
        loop {
            if let Some(i) = self.buckets[bucket].empty() {
                self.buckets[bucket].0[i] = row;
                return;
            }
            let passed = &mut self.passed[bucket];
            *passed = passed.saturating_add(1);
            bucket = self.next(bucket);
        }
    }

    #[inline]
    fn remove(&mut self, hash: u64, address: u64) -> Option<Block> {
        let (bucket, row) = self.find(hash, address)?;
        let block = std::mem::take(&mut self.buckets[bucket].0[row]).unpack();
        let mut passed_by = self.home(hash);
        while passed_by != bucket {
            let passed = &mut self.passed[passed_by];
            *passed -= u8::from(*passed != MANY);
            passed_by = self.next(passed_by);
        }
        self.used -= 1;
        if self.buckets.len() > 2 * LEAST && self.used * SPARSE.1 < self.buckets.len() * ROWS * SPARSE.0 {
            self.resize(LEAST + self.used * 2 / ROWS);
        }
        Some(block)
    }

    #[cold]
    #[inline(never)]
    fn resize(&mut self, buckets: usize) {
        let old = std::mem::replace(self, Shard::new(buckets));
        for row in old.buckets.iter().flat_map(|bucket| bucket.0).filter(|row| !row.is_empty()) {
            self.place(self::hash(row.address()), row);
        }
        self.used = old.used;
    }
}

/// Both halves of a full product: addresses in any stride come out spread.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "two halves")]
fn hash(address: u64) -> u64 {
    let product = u128::from(address ^ 0xa076_1d64_78bd_642f) * 0x9e37_79b9_7f4a_7c15;
    product as u64 ^ (product >> 64) as u64
}

/// Which of some parts of all addresses an address belongs to. Independent of its place within a part.
#[inline]
pub fn part_of(address: u64, parts: usize) -> usize {
    ((hash(address) >> 40 & 0xff) as usize * parts) >> 8
}

#[inline]
fn shard_of(hash: u64) -> usize {
    (hash >> (u64::BITS - SHARD_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn block(address: u64, size: u64) -> Block {
        Block { address, size, stack: (1 << STACK_BITS) - 1, thread: (1 << THREAD_BITS) - 1, in_program: size % 2 == 1 }
    }

    #[test]
    fn rows_hold_the_largest_numbers_and_the_rest_is_kept_too() {
        let mut live = Live::default();
        let widest = block(ADDRESS_MASK, u64::from(u32::MAX));
        let odd = [
            block(16, 1 << 32),
            Block { thread: 1 << THREAD_BITS, ..block(32, 1) },
            Block { stack: u32::MAX, ..block(48, 1) },
            block(0, 5),
        ];
        assert_eq!(live.insert(widest), None);
        for block in odd {
            assert_eq!(live.insert(block), None);
        }
        assert_eq!(live.odd.len(), odd.len());
        for block in odd.into_iter().chain([widest]) {
            assert_eq!(live.get(block.address), Some(block));
        }
        assert_eq!((live.len(), live.iter().count()), (5, 5));
        // From beside the rows into a row, and back.
        let small = block(16, 7);
        assert_eq!(live.insert(small), Some(odd[0]));
        assert_eq!(live.insert(odd[0]), Some(small));
        assert_eq!(live.remove(16), Some(odd[0]));
        assert_eq!((live.remove(16), live.len()), (None, 4));
    }

    #[test]
    fn a_block_takes_less_than_32_bytes_at_any_size_and_memory_comes_back() {
        let mut live = Live::default();
        let address = |i: usize| 0x7f00_0000_0000 + 48 * i as u64;
        for i in 1..=400_000 {
            live.insert(block(address(i), 8));
            if i >= 10_000 && i.is_multiple_of(1_000) {
                assert!(live.bytes() < 32 * i, "{} bytes for {i} blocks", live.bytes());
            }
        }
        for i in 1..=400_000 {
            assert!(live.remove(address(i)).is_some());
        }
        assert!(live.is_empty() && live.bytes() < 1 << 18, "{} bytes are left", live.bytes());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u64),
        Remove(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Few addresses, in strides that allocators use, so that they meet again; some sizes fit no row.
        let address = (0u64..600, prop_oneof![Just(16u64), Just(4096)]).prop_map(|(i, stride)| (i + 1) * stride);
        let size = prop_oneof![9 => 0u64..1 << 32, 1 => 1u64 << 32..1 << 40];
        prop_oneof![(address.clone(), size).prop_map(|(a, s)| Step::Insert(a, s)), address.prop_map(Step::Remove)]
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec(step(), 0..3000)) {
            let mut live = Live::default();
            let mut model = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Insert(address, size) => {
                        let block = block(address, size);
                        prop_assert_eq!(live.insert(block), model.insert(address, block));
                    }
                    Step::Remove(address) => prop_assert_eq!(live.remove(address), model.remove(&address)),
                }
                prop_assert_eq!(live.len(), model.len());
            }
            let mut all: Vec<Block> = live.iter().collect();
            all.sort_by_key(|block| block.address);
            prop_assert_eq!(all, model.into_values().collect::<Vec<_>>());
        }

        /// Buckets that pass rows on, around the end of the shard, with holes in every place.
        #[test]
        fn a_crowded_shard_behaves_like_a_map(steps in prop::collection::vec((0u64..60, any::<bool>()), 0..2000)) {
            let mut shard = Shard::new(LEAST / 4);
            let mut model = BTreeMap::new();
            for (i, insert) in steps {
                let address = (i + 1) * 16;
                let block = block(address, i);
                let row = Row::pack(&block).expect("small numbers");
                if insert {
                    prop_assert_eq!(shard.insert(hash(address), row), model.insert(address, block));
                } else {
                    prop_assert_eq!(shard.remove(hash(address), address), model.remove(&address));
                }
                prop_assert_eq!(shard.used, model.len());
            }
            for (&address, &block) in &model {
                let (bucket, row) = shard.find(hash(address), address).expect("it is in the model");
                prop_assert_eq!(shard.buckets[bucket].0[row].unpack(), block);
            }
            let passed: usize = shard.passed.iter().map(|&n| usize::from(n)).sum();
            for &address in model.keys() {
                shard.remove(hash(address), address);
            }
            prop_assert!(shard.passed.iter().all(|&n| n == 0), "{} of {} are left", shard.passed.iter().map(|&n| usize::from(n)).sum::<usize>(), passed);
        }
    }
}

//! The live blocks of one domain, by address.
//!
//! ```text
//!              63             48 47                                    0
//! row, 16 B    | stack, low 16   | address                             |
//!              | stack, high 11 | in program 1 | thread 20 | size 32   |
//! ```
//!
//! - Bucket: four rows, on one cache line. A full bucket passes rows on to the next bucket.
//! - Shard: one of 256 tables of buckets, chosen by the hash. Shards grow one after another, so an
//!   event waits for the move of at most one shard.
//! - Memory: 20 to 30 bytes a block, at any size of the table.
//! - Odd blocks: a block with a number too large for a row (4 GiB and more, a thread beyond the
//!   millionth) is kept beside the rows.
//!
//! Nothing else in the aggregator grows with the number of blocks.
//!
//! A lookup is a cache miss at a million blocks, so a caller with an early known address announces
//! the address ([`Live::prefetch`]).

use crate::arch::cache::prefetch;
use std::collections::HashMap;

const SHARD_BITS: u32 = 8;
const SHARDS: usize = 1 << SHARD_BITS;
/// Pieces of a shard that are copied one after another.
const PIECE_BITS: u32 = 2;
/// Number of pieces of a table, with the odd blocks as one more.
pub const PIECES: usize = (SHARDS << PIECE_BITS) + 1;
/// Rows of a bucket.
const ROWS: usize = 4;
/// Buckets of the smallest shard.
const LEAST: usize = 8;
/// Fill limits of a shard, as fractions. Above `FULL` the shard grows by half. Below `SPARSE` the
/// shard shrinks to twice the room of its blocks.
const FULL: (usize, usize) = (4, 5);
const SPARSE: (usize, usize) = (1, 5);
/// Largest count of passed rows. A bucket with this count no longer counts, until the shard is
/// moved.
const MANY: u8 = u8::MAX;

const ADDRESS_BITS: u32 = 48;
const ADDRESS_MASK: u64 = (1 << ADDRESS_BITS) - 1;
const STACK_BITS: u32 = 27;
const PROGRAM_BITS: u32 = 1;
const THREAD_BITS: u32 = 20;
const SIZE_BITS: u32 = 32;
const _: () = assert!(ADDRESS_BITS + STACK_BITS + PROGRAM_BITS + THREAD_BITS + SIZE_BITS == 128);
/// Flag in the second word: the program's own tracemalloc counts the block.
const IN_PROGRAM: u64 = 1 << (THREAD_BITS + SIZE_BITS);

/// A live block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    /// Address of the first byte.
    pub address: u64,
    /// Requested bytes.
    pub size: u64,
    /// Index of the allocating stack.
    pub stack: u32,
    /// Index of the allocating thread.
    pub thread: u32,
    /// Whether the program's own tracemalloc counts the block.
    pub in_program: bool,
}

/// A packed block. An empty row is all zeros.
#[derive(Clone, Copy, Default)]
#[repr(align(16))]
struct Row([u64; 2]);

impl Row {
    /// Packs a block. None if a number does not fit.
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

    /// Clears the mark of the program's own trace.
    #[inline]
    fn unmarked(self) -> Row {
        Row([self.0[0], self.0[1] & !IN_PROGRAM])
    }

    #[inline]
    fn is_empty(self) -> bool {
        self.0[0] == 0
    }
}

/// Blocks in 16 bytes each, without the mark of the program's own trace.
#[derive(Clone, Default)]
pub struct Packed {
    rows: Vec<Row>,
    /// Blocks with numbers too large for a row.
    odd: Vec<Block>,
}

impl Packed {
    /// Adds a block.
    pub fn push(&mut self, block: &Block) {
        let block = Block { in_program: false, ..*block };
        match Row::pack(&block) {
            Some(row) => self.rows.push(row),
            None => self.odd.push(block),
        }
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.rows.len() + self.odd.len()
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All blocks.
    pub fn iter(&self) -> impl Iterator<Item = Block> + '_ {
        self.rows.iter().map(|row| row.unpack()).chain(self.odd.iter().copied())
    }
}

/// Hash table of live blocks by address.
pub struct Live {
    shards: Box<[Shard]>,
    /// Blocks with numbers too large for a row.
    odd: HashMap<u64, Block>,
    len: usize,
}

impl Default for Live {
    fn default() -> Live {
        Live::with_room(0)
    }
}

impl Live {
    /// Returns an empty table with room for some blocks.
    ///
    /// Room is needed by blocks that come in the order of another table: all blocks with near
    /// hashes come together, and would crowd a part of a small shard.
    pub fn with_room(blocks: u64) -> Live {
        let rows = usize::try_from(blocks).unwrap_or(0) / SHARDS;
        let least = LEAST + rows * 3 / 2 / ROWS;
        // The shards start with different sizes, so that no two grow at the same time.
        let shards = (0..SHARDS).map(|i| Shard::new(least + i * least / 2 / SHARDS)).collect();
        Live { shards, odd: HashMap::new(), len: 0 }
    }

    /// Announces the lookup of an address.
    #[inline]
    pub fn prefetch(&self, address: u64) {
        let hash = hash(address);
        let shard = &self.shards[shard_of(hash)];
        let home = shard.home(hash);
        prefetch(&shard.buckets, home);
        prefetch(&shard.passed, home);
    }

    /// Adds a block. Returns the previous block at the address, which is replaced.
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

    /// Removes and returns the block at an address.
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

    /// Returns the block at an address.
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

    /// Whether the table holds no block.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes taken by the rows.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| size_of_val(&*shard.buckets) + size_of_val(&*shard.passed)).sum()
    }

    /// Adds the blocks of a piece to `copied`, i.e. the blocks with this number by [`piece`].
    pub fn copy(&self, piece: usize, copied: &mut Packed) {
        match self.shards.get(piece >> PIECE_BITS) {
            Some(shard) => shard.copy((piece & ((1 << PIECE_BITS) - 1)) as u64, &mut copied.rows),
            None => self.odd.values().for_each(|block| copied.push(block)),
        }
    }

    /// All blocks, in no order.
    pub fn iter(&self) -> impl Iterator<Item = Block> + '_ {
        let rows = self.shards.iter().flat_map(|shard| shard.buckets.iter().flat_map(|bucket| bucket.0));
        rows.filter(|row| !row.is_empty()).map(|row| row.unpack()).chain(self.odd.values().copied())
    }

    /// Clears the mark of the program's own trace in all blocks.
    pub fn leave_program(&mut self) {
        let rows = self.shards.iter_mut().flat_map(|shard| shard.buckets.iter_mut().flat_map(|bucket| &mut bucket.0));
        // An empty row has no bit set.
        rows.for_each(|row| *row = row.unmarked());
        self.odd.values_mut().for_each(|block| block.in_program = false);
    }

    /// Forgets all blocks, and frees the memory.
    pub fn clear(&mut self) {
        *self = Live::default();
    }
}

/// Rows on one cache line.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Bucket([Row; ROWS]);

impl Bucket {
    /// Finds the row of an address, without a branch for each row.
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

/// A part of the blocks. A row lies in the home bucket, or in the first later bucket with room at
/// the time of the insertion.
struct Shard {
    buckets: Box<[Bucket]>,
    /// Number of rows passed on by each bucket. A search ends at a bucket with the count 0.
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

    /// Home bucket of a hash: the low half, scaled down to the number of buckets.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        (((hash & u64::from(u32::MAX)) * self.buckets.len() as u64) >> 32) as usize
    }

    /// Copies the rows of a piece. Their home buckets are next to each other.
    fn copy(&self, piece: u64, rows: &mut Vec<Row>) {
        let piece_of = |row: &Row| self::hash(row.address()) << 32 >> (u64::BITS - PIECE_BITS);
        let ends = [piece << (32 - PIECE_BITS), ((piece + 1) << (32 - PIECE_BITS)) - 1];
        let [first, last] = ends.map(|hash| self.home(hash));
        if self.used == 0 {
            return;
        }
        rows.reserve(self.used.div_ceil(1 << PIECE_BITS));
        let mut bucket = first;
        for number in first..first + self.buckets.len() {
            let row_of_piece = |row: &Row| !row.is_empty() && piece_of(row) == piece;
            rows.extend(self.buckets[bucket].0.into_iter().filter(row_of_piece).map(Row::unmarked));
            if number >= last && self.passed[bucket] == 0 {
                break;
            }
            bucket = self.next(bucket);
        }
    }

    #[inline]
    fn next(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets.len() { 0 } else { bucket + 1 }
    }

    /// Returns bucket and row of an address.
    #[inline]
    fn find(&self, hash: u64, address: u64) -> Option<(usize, usize)> {
        if address == 0 {
            // Address 0 means an empty row.
            return None;
        }
        let mut bucket = self.home(hash);
        // Bounded, because every bucket may have passed rows on.
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

    /// Writes a row into the first bucket with room. The loop ends, because a shard always has
    /// empty rows.
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

/// Combines both halves of a full product, so that addresses in any stride are spread.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "two halves")]
fn hash(address: u64) -> u64 {
    let product = u128::from(address ^ 0xa076_1d64_78bd_642f) * 0x9e37_79b9_7f4a_7c15;
    product as u64 ^ (product >> 64) as u64
}

/// Part of an address among `parts` parts. Independent of the place of the address within a part.
#[inline]
pub fn part_of(address: u64, parts: usize) -> usize {
    ((hash(address) >> 40 & 0xff) as usize * parts) >> 8
}

/// Number of the piece of a block. The number depends on the block alone.
#[inline]
pub fn piece(block: &Block) -> usize {
    let hash = hash(block.address);
    match Row::pack(block) {
        Some(_) => shard_of(hash) << PIECE_BITS | (hash << 32 >> (u64::BITS - PIECE_BITS)) as usize,
        None => PIECES - 1,
    }
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
        // The block moves from the odd blocks into a row, and back.
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

    #[test]
    fn the_pieces_of_a_table_are_its_blocks() {
        for blocks in [0, 5, 3000, 100_000] {
            let mut live = Live::default();
            (1..=blocks).for_each(|i| _ = live.insert(block(48 * i, i)));
            live.insert(block(16, 1 << 40));
            let mut again = Live::with_room(blocks);
            for number in 0..PIECES {
                let mut copied = Packed::default();
                live.copy(number, &mut copied);
                for block in copied.iter() {
                    assert_eq!(piece(&block), number);
                    assert_eq!(again.insert(block), None, "no block is in two pieces");
                }
            }
            assert_eq!(again.len(), live.len());
            for block in live.iter() {
                assert_eq!(again.get(block.address), Some(Block { in_program: false, ..block }));
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u64),
        Remove(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Few addresses, in strides used by allocators, so that addresses meet again. Some sizes
        // fit no row.
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

        /// Buckets pass rows on, around the end of the shard, with holes in every place.
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
            let mut rows = Vec::new();
            (0..1 << PIECE_BITS).for_each(|piece| shard.copy(piece, &mut rows));
            prop_assert!(rows.len() == model.len() && rows.iter().all(|row| model.contains_key(&row.address())));
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

//! The live blocks of one domain, by address.
//!
//! A row is 24 bytes, and nothing else in the aggregator grows with the number of blocks. Behind these few methods
//! any other table can take its place.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

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
}

/// See the module.
#[derive(Default)]
pub struct Live {
    blocks: HashTable<Block>,
}

impl Live {
    /// Adds a block. Returns the one that was at the same address, which is then gone.
    #[inline]
    pub fn insert(&mut self, block: Block) -> Option<Block> {
        match self.blocks.entry(hash(block.address), |b| b.address == block.address, |b| hash(b.address)) {
            Entry::Occupied(mut entry) => Some(std::mem::replace(entry.get_mut(), block)),
            Entry::Vacant(entry) => {
                entry.insert(block);
                None
            }
        }
    }

    /// Removes the block at an address.
    #[inline]
    pub fn remove(&mut self, address: u64) -> Option<Block> {
        let entry = self.blocks.find_entry(hash(address), |b| b.address == address).ok()?;
        Some(entry.remove().0)
    }

    /// The block at an address.
    pub fn get(&self, address: u64) -> Option<&Block> {
        self.blocks.find(hash(address), |b| b.address == address)
    }

    /// All blocks, in no order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Block> {
        self.blocks.iter()
    }

    /// Forgets all blocks and their memory.
    pub fn clear(&mut self) {
        self.blocks = HashTable::new();
    }
}

/// Blocks are 16 bytes apart at least; the product's high half feeds both parts of hashbrown's hash.
#[inline]
fn hash(address: u64) -> u64 {
    let product = (address >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product >> 32
}

//! Random events for tests of heaps.

use super::blocks::Call;
use super::heap::Heap;
use super::live::Block;
use super::shared::Shared;

/// Number of addresses.
pub const ADDRESSES: u64 = 700;

/// A random mix of events, some of them contradictory, from a few numbers.
pub struct Stream {
    state: u64,
    calls: Vec<Call>,
}

impl Stream {
    /// Returns the stream of a seed.
    pub fn new(seed: u64) -> Stream {
        Stream { state: seed, calls: Vec::new() }
    }

    /// Returns the next random number below `bound`.
    pub fn next(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % bound
    }

    /// Applies a random event.
    pub fn step(&mut self, heap: &mut Heap, shared: &mut Shared) {
        let address = 16 * (1 + self.next(ADDRESSES));
        let block = Block {
            address,
            size: self.next(5000),
            stack: u32::try_from(self.next(40)).expect("< 40"),
            thread: 0,
            birth: shared.births.now(),
            in_program: self.next(2) == 0,
        };
        match self.next(20) {
            0 => {
                let before = if self.next(8) == 0 { self.calls.pop() } else { None };
                self.calls.push(heap.realloc(address, before, shared));
            }
            1 => heap.reallocated(self.calls.pop(), block, shared),
            2 => heap.realloc_ended(self.calls.pop(), block.size.is_multiple_of(2), shared),
            3 if block.size.is_multiple_of(3) => heap.forget(address, shared),
            3 => heap.reuse(block, shared),
            4..=10 => heap.alloc(block, shared),
            11 => heap.free(address, Some(0), shared),
            _ => heap.free(address, None, shared),
        }
    }
}

//! An arena in ordinary memory, and a ledger that checks every claim a ring makes about its segments.

use heapline_shared_format::arena::{Arena, Geometry, PAGE_BYTES};
use heapline_shared_format::ring::Ledger;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Zeroed pages, as a fresh memory file gives them.
pub struct Memory {
    base: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    pub fn zeroed(bytes: usize) -> Memory {
        let layout = Layout::from_size_align(bytes, PAGE_BYTES).expect("a small size");
        // SAFETY: the layout's size is not zero: every caller asks for at least a byte.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("memory for a test");
        Memory { base, layout }
    }

    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Copies the bytes out. Nobody else may use the memory meanwhile.
    #[allow(dead_code, reason = "each test binary includes this module and uses its part")]
    pub fn bytes(&mut self) -> Vec<u8> {
        // SAFETY: `layout.size()` bytes were allocated and zeroed at `base`, and `&mut self` keeps others away.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.layout.size()) }.to_vec()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// An arena whose free lists are full, as an aggregator hands it out.
#[allow(dead_code, reason = "each test binary includes this module and uses its part")]
pub fn fresh_arena(geometry: Geometry) -> (Memory, Arena) {
    let memory = Memory::zeroed(geometry.bytes());
    // SAFETY: page-aligned, zeroed, of the geometry's size; the caller keeps `memory` for as long as the arena.
    let arena = unsafe { Arena::create(memory.base(), geometry) };
    (0..geometry.slots).rev().for_each(|i| arena.free_slots().push(i));
    (0..geometry.segments).rev().for_each(|i| arena.free_segments().push(i));
    (memory, arena)
}

/// Knows which ring owns which segment, and panics when a ring takes what is another's or gives back what is not its.
#[allow(dead_code, reason = "each test binary includes this module and uses its part")]
pub struct CheckedLedger<'a> {
    pub arena: Arena,
    pub owners: &'a mut [Option<u32>],
    pub ring: u32,
}

impl Ledger for CheckedLedger<'_> {
    fn enter(&mut self, segment: u32) -> bool {
        let owner = &mut self.owners[segment as usize];
        assert_eq!(*owner, None, "ring {} entered segment {segment}, which another one holds", self.ring);
        *owner = Some(self.ring);
        true
    }

    fn leave(&mut self, segment: u32) {
        let owner = self.owners[segment as usize].take();
        assert_eq!(owner, Some(self.ring), "ring {} left segment {segment} that it does not hold", self.ring);
        self.arena.free_segments().push(segment);
    }
}

//! An arena in ordinary memory, and a ledger that checks every segment taken or given back by a
//! ring.

use heapline_shared_format::arena::{Arena, Geometry, PAGE_BYTES};
use heapline_shared_format::ring::Ledger;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Zeroed pages, like a fresh memory file.
pub struct Memory {
    base: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    pub fn zeroed(bytes: usize) -> Memory {
        let layout = Layout::from_size_align(bytes, PAGE_BYTES).expect("a small size");
        // SAFETY: the size of the layout is not zero, because every caller asks for at least a
        // byte.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("memory for a test");
        Memory { base, layout }
    }

    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Copies the bytes out. Nobody else may use the memory during the copy.
    #[allow(dead_code, reason = "each test binary includes this module and uses its part")]
    pub fn bytes(&mut self) -> Vec<u8> {
        // SAFETY: `layout.size()` bytes were allocated and zeroed at `base`, and `&mut self`
        // excludes other users.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.layout.size()) }.to_vec()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `zeroed` allocated `base` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// Returns an arena with full free lists, as handed out by an aggregator.
#[allow(dead_code, reason = "each test binary includes this module and uses its part")]
pub fn fresh_arena(geometry: Geometry) -> (Memory, Arena) {
    let memory = Memory::zeroed(geometry.bytes());
    // SAFETY: `memory` is page-aligned, zeroed and of the geometry's size; the caller keeps
    // `memory` for as long as the arena.
    let arena = unsafe { Arena::create(memory.base(), geometry) };
    (0..geometry.slots).rev().for_each(|i| arena.free_slots().push(i));
    (0..geometry.segments).rev().for_each(|i| arena.free_segments().push(i));
    (memory, arena)
}

/// A ledger that knows the ring of each segment. Panics when a ring takes a segment of another
/// ring, or gives back a segment it does not hold.
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

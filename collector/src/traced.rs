//! [`Traced`]: an allocator whose blocks are recorded, for programs that nothing can be preloaded into, or whose allocator
//! is their own.

use crate::embedded::way;
use core::alloc::{GlobalAlloc, Layout};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, Ordering};
use heapline_shared_format::arena::state;

// The collector, as build.rs has built it: see `embedded/`.
unsafe extern "C" {
    static heapline_embedded_state: AtomicPtr<AtomicU32>;
    fn heapline_embedded_allocated(block: *mut u8, size: usize, way: *const AtomicU8);
    fn heapline_embedded_freeing(block: *mut u8, way: *const AtomicU8);
    fn heapline_embedded_reallocating(block: *mut u8, way: *const AtomicU8);
    fn heapline_embedded_reallocated(old: *mut u8, block: *mut u8, size: usize, way: *const AtomicU8);
}

/// An allocator whose every block is recorded while an aggregator listens.
///
/// ```
/// use heapline_collector::Traced;
/// use std::alloc::System;
///
/// #[global_allocator]
/// static ALLOCATOR: Traced<System> = Traced::new(System);
/// # fn main() { drop(vec![1, 2, 3]) }
/// ```
///
/// Such a program is traced by `aggregator --attach PID` and `aggregator run`, also when it is statically linked or when `A` never
/// calls `malloc`. Until then a call costs two loads and a comparison.
///
/// Guarantees, beyond the crate's:
/// - sizes are those of the [`Layout`]s; a block that is reallocated stays live until the call has succeeded;
/// - `A` is called as without the wrapper, with the same arguments and results, and is never called by the collector;
/// - nothing is counted twice: where a collector is preloaded too (`aggregator run` does that with programs that have a
///   loader) and `A` ends in `malloc`, as [`std::alloc::System`](https://doc.rust-lang.org/std/alloc/struct.System.html) does, this
///   wrapper passes through; if it does not, blocks go through the preloaded collector.
///
/// Limits: without a preloaded collector nobody sees `dlclose`, `mlockall` and `exec`. Code that a program unloads spoils later
/// tracebacks through code at the same place, a program that locks its memory locks the rings as well (up to 64 MiB), and what
/// `exec` begins is not traced. An allocator that passes on blocks of several kinds is judged by its first.
pub struct Traced<A> {
    inner: A,
    way: AtomicU8,
}

impl<A> Traced<A> {
    /// Wraps an allocator.
    pub const fn new(inner: A) -> Traced<A> {
        Traced { inner, way: AtomicU8::new(way::UNKNOWN) }
    }

    /// The wrapped allocator. What is asked of it directly is not recorded.
    pub const fn inner(&self) -> &A {
        &self.inner
    }

    #[inline(always)]
    fn is_recording(&self) -> bool {
        // SAFETY: the collector's own word, which points to another that is never unmapped.
        let state = unsafe { (*heapline_embedded_state.load(Ordering::Relaxed)).load(Ordering::Relaxed) };
        state != state::IDLE && self.way.load(Ordering::Relaxed) != way::PASS
    }

    #[inline(always)]
    fn allocated(&self, block: *mut u8, size: usize) {
        if self.is_recording() && !block.is_null() {
            // SAFETY: reads `way` only, which outlives the call.
            unsafe { heapline_embedded_allocated(block, size, &raw const self.way) };
        }
    }
}

// SAFETY: every method is the inner allocator's, with the caller's arguments and its result.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Traced<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise; so for all below.
        let block = unsafe { self.inner.alloc(layout) };
        self.allocated(block, layout.size());
        block
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on.
        let block = unsafe { self.inner.alloc_zeroed(layout) };
        self.allocated(block, layout.size());
        block
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if self.is_recording() {
            // SAFETY: reads `way` only, which outlives the call.
            unsafe { heapline_embedded_freeing(block, &raw const self.way) };
        }
        // SAFETY: passed on.
        unsafe { self.inner.dealloc(block, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !self.is_recording() {
            // SAFETY: passed on.
            return unsafe { self.inner.realloc(old, layout, size) };
        }
        // SAFETY: the collector reads `way` only; the rest is passed on.
        unsafe {
            heapline_embedded_reallocating(old, &raw const self.way);
            let block = self.inner.realloc(old, layout, size);
            heapline_embedded_reallocated(old, block, size, &raw const self.way);
            block
        }
    }
}

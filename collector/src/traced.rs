//! [`Traced`]: an allocator with recorded blocks, for two kinds of programs:
//!
//! - programs without a loader, into which nothing can be preloaded;
//! - programs with an allocator of their own.

use crate::embedded::way;
use core::alloc::{GlobalAlloc, Layout};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, Ordering};
use heapline_shared_format::arena::state;

// The collector, as built by build.rs: see `embedded/`.
unsafe extern "C" {
    static heapline_embedded_state: AtomicPtr<AtomicU32>;
    fn heapline_embedded_allocated(block: *mut u8, size: usize, way: *const AtomicU8);
    fn heapline_embedded_freeing(block: *mut u8, way: *const AtomicU8);
    fn heapline_embedded_reallocating(block: *mut u8, way: *const AtomicU8);
    fn heapline_embedded_reallocated(old: *mut u8, block: *mut u8, size: usize, way: *const AtomicU8);
}

/// An allocator wrapper. Every block is recorded while an aggregator listens.
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
/// The program is traced by `aggregator --attach PID` and `aggregator run`, also if the program is
/// statically linked and if `A` never calls `malloc`. While nobody listens, a call costs two loads
/// and a comparison.
///
/// # Guarantees
///
/// In addition to the guarantees of the crate:
///
/// - Sizes are the sizes of the [`Layout`]s.
/// - A reallocated block stays live until the call has succeeded.
/// - `A` is called as without the wrapper, with the same arguments and results.
/// - The collector never calls `A`.
/// - No block is counted twice, also where a second collector is preloaded (`aggregator run`
///   preloads a collector into programs with a loader). If `A` ends in `malloc`, as
///   [`std::alloc::System`](https://doc.rust-lang.org/std/alloc/struct.System.html) does, the
///   preloaded collector records the blocks and this wrapper passes calls through. Otherwise this
///   wrapper hands its blocks to the preloaded collector.
///
/// # Limits
///
/// Without a preloaded collector nobody sees `dlclose`, `mlockall` and `exec`:
///
/// - Unloaded code spoils later tracebacks through code at the same place.
/// - A program with locked memory locks the rings as well (up to 64 MiB).
/// - A program begun by `exec` is not traced.
///
/// An allocator with blocks of several kinds (some from `malloc`, some not) is judged by the first
/// block.
pub struct Traced<A> {
    inner: A,
    way: AtomicU8,
}

impl<A> Traced<A> {
    /// Wraps an allocator.
    pub const fn new(inner: A) -> Traced<A> {
        Traced { inner, way: AtomicU8::new(way::UNKNOWN) }
    }

    /// The wrapped allocator. Direct calls of the wrapped allocator are not recorded.
    pub const fn inner(&self) -> &A {
        &self.inner
    }

    #[inline(always)]
    fn is_recording(&self) -> bool {
        // SAFETY: the word belongs to the collector and points to a state word, which is never
        // unmapped.
        let state = unsafe { (*heapline_embedded_state.load(Ordering::Relaxed)).load(Ordering::Relaxed) };
        state != state::IDLE && self.way.load(Ordering::Relaxed) != way::PASS
    }

    #[inline(always)]
    fn allocated(&self, block: *mut u8, size: usize) {
        if self.is_recording() && !block.is_null() {
            // SAFETY: the collector reads `way` only, which outlives the call.
            unsafe { heapline_embedded_allocated(block, size, &raw const self.way) };
        }
    }
}

// SAFETY: every method calls the inner allocator with the caller's arguments and returns the
// result.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Traced<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `GlobalAlloc::alloc`.
        let block = unsafe { self.inner.alloc(layout) };
        self.allocated(block, layout.size());
        block
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `GlobalAlloc::alloc_zeroed`.
        let block = unsafe { self.inner.alloc_zeroed(layout) };
        self.allocated(block, layout.size());
        block
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if self.is_recording() {
            // SAFETY: the collector reads `way` only, which outlives the call.
            unsafe { heapline_embedded_freeing(block, &raw const self.way) };
        }
        // SAFETY: the caller upholds the contract of `GlobalAlloc::dealloc`.
        unsafe { self.inner.dealloc(block, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !self.is_recording() {
            // SAFETY: the caller upholds the contract of `GlobalAlloc::realloc`.
            return unsafe { self.inner.realloc(old, layout, size) };
        }
        // SAFETY: the caller upholds the contract of `GlobalAlloc::realloc`; the collector reads
        // `way` only.
        unsafe {
            heapline_embedded_reallocating(old, &raw const self.way);
            let block = self.inner.realloc(old, layout, size);
            heapline_embedded_reallocated(old, block, size, &raw const self.way);
            block
        }
    }
}

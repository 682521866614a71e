//! What a Python program says of itself: pools of its own, and pauses.

use pyo3::prelude::*;

/// Records a block of a pool: `size` bytes at `address`.
#[pyfunction]
pub fn track(pool: &str, address: usize, size: usize) {
    heapline::track(pool, address as *const u8, size);
}

/// Records that a block of a pool is given back.
#[pyfunction]
pub fn untrack(pool: &str, address: usize) {
    heapline::untrack(pool, address as *const u8);
}

/// Begins a pause of the calling thread.
#[pyfunction]
pub fn pause() {
    heapline::begin_pause();
}

/// Ends a pause of the calling thread.
#[pyfunction]
pub fn resume() {
    heapline::end_pause();
}

//! The progress counter of a child process that may hold threads of a traced process.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// The progress counter in the child; null in every other process.
static BEATS: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

fn beats() -> Option<&'static AtomicU32> {
    // SAFETY: the pointer is null, or was set by `count_in`, whose caller keeps the word until the
    // end of the process.
    unsafe { BEATS.load(Ordering::Relaxed).as_ref() }
}

/// Sets the counter of this process.
///
/// # Safety
/// The word stays valid until the end of the process.
pub unsafe fn count_in(word: &AtomicU32) {
    BEATS.store((&raw const *word).cast_mut(), Ordering::Relaxed);
}

/// Notes progress of a process that may hold a thread.
pub fn beat() {
    if let Some(beats) = beats() {
        beats.store(beats.load(Ordering::Relaxed).wrapping_add(1).max(1), Ordering::Relaxed);
    }
}

/// Notes that this process holds no thread.
pub fn rest() {
    if let Some(beats) = beats() {
        beats.store(0, Ordering::Relaxed);
    }
}

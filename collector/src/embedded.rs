//! What [`Traced`](crate::Traced) calls in the collector that the program carries in itself, behind the entries of
//! `embedded/`.
//!
//! Where a collector is preloaded too, there is one arena, the preload's ([`crate::preloaded`]), and each `Traced` finds out with
//! its first block whether that has recorded the block already. If so it is never heard of again.

use crate::platform::{alone, symbols};
use crate::preloaded::Preloaded;
use crate::start;
use crate::{fail, preloaded, process};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};

/// What becomes of the blocks of one `Traced` beside a preloaded collector.
pub mod way {
    /// Its first block, with tracing on, will tell; where samples are recorded, the first that no other allocator counted.
    pub const UNKNOWN: u8 = 0;
    /// Its blocks are no other allocator's: recorded here.
    pub const RECORD: u8 = 1;
    /// Its allocator ends in `malloc`, where they are recorded.
    pub const PASS: u8 = 2;
}

static PRELOADED: AtomicPtr<Preloaded> = AtomicPtr::new(ptr::null_mut());
static HAS_LOOKED: AtomicBool = AtomicBool::new(false);

/// Starts the collector before `main`, unless one is preloaded: also in programs that never allocate, so that an aggregator
/// can find it.
pub fn start(slot: usize) {
    if joined().is_none() {
        let _ = start::get_or_start(slot);
    }
}

/// The preloaded collector, if there is one.
#[inline]
fn joined() -> Option<&'static Preloaded> {
    if !HAS_LOOKED.load(Ordering::Acquire) {
        look();
    }
    // SAFETY: null, or what the preload exports, which is never unloaded.
    unsafe { PRELOADED.load(Ordering::Relaxed).as_ref() }
}

#[cold]
fn look() {
    let found = fail::guard(|| if alone::look() { None } else { symbols::find(preloaded::SYMBOL) }).flatten();
    if let Some(address) = found {
        // SAFETY: exported under this name by a collector, as a pointer to a table whose version comes first in any of them.
        let (table, version) = unsafe {
            let table = (address as *const *const Preloaded).read();
            (table, (*table).version)
        };
        if version == preloaded::VERSION {
            PRELOADED.store(table.cast_mut(), Ordering::Relaxed);
        } else {
            // Another build's: it records what it sees, and we do not speak to it.
            process::follow(None);
        }
    }
    HAS_LOOKED.store(true, Ordering::Release);
}

/// Whether the preloaded collector records at all; takes over where it says so.
fn is_recording(preloaded: &Preloaded) -> bool {
    // SAFETY: null, or a word that is never unmapped.
    if let Some(state) = unsafe { (preloaded.state)().as_ref() } {
        process::follow(Some(state));
    }
    !process::is_quiet()
}

/// Whether blocks of this `Traced` are to be recorded beside the preloaded collector; `block` is what it has just given.
fn is_ours(preloaded: &Preloaded, way: &AtomicU8, block: Option<*mut u8>) -> bool {
    if !is_recording(preloaded) {
        return false;
    }
    if let (way::UNKNOWN, Some(block)) = (way.load(Ordering::Relaxed), block) {
        let found = match (preloaded.has_recorded)(block) {
            false => way::RECORD,
            true if process::is_sampling() => way::UNKNOWN,
            true => way::PASS,
        };
        way.store(found, Ordering::Relaxed);
    }
    way.load(Ordering::Relaxed) == way::RECORD
}

/// A block was allocated; not null.
pub fn allocated(block: *mut u8, size: usize, way: &AtomicU8, slot: usize, rbp: usize) {
    match joined() {
        None => preloaded::allocated(block, size, slot, rbp),
        Some(preloaded) if is_ours(preloaded, way, Some(block)) => (preloaded.allocated)(block, size, slot, rbp),
        Some(_) => {}
    }
}

/// A block is about to be freed.
pub fn freeing(block: *mut u8, way: &AtomicU8, slot: usize) {
    match joined() {
        None => preloaded::freeing(block, slot),
        Some(preloaded) if is_ours(preloaded, way, None) => (preloaded.freeing)(block, slot),
        Some(_) => {}
    }
}

/// A block is about to be reallocated.
pub fn reallocating(block: *mut u8, way: &AtomicU8, slot: usize) {
    match joined() {
        None => preloaded::reallocating(block, slot),
        Some(preloaded) if is_ours(preloaded, way, None) => (preloaded.reallocating)(block, slot),
        Some(_) => {}
    }
}

/// The block is now this one; null when that failed.
pub fn reallocated(old: *mut u8, block: *mut u8, size: usize, way: &AtomicU8, slot: usize, rbp: usize) {
    match joined() {
        None => preloaded::reallocated(old, block, size, slot, rbp),
        Some(preloaded) => {
            let was_known = way.load(Ordering::Relaxed) != way::UNKNOWN;
            if !is_ours(preloaded, way, (!block.is_null()).then_some(block)) {
            } else if was_known {
                (preloaded.reallocated)(old, block, size, slot, rbp);
            } else {
                // That it was about to happen was not told, and the old block is older than the tracing.
                (preloaded.allocated)(block, size, slot, rbp);
            }
        }
    }
}

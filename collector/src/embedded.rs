//! Functions of an embedded collector, called by [`Traced`](crate::Traced) through the entries of
//! `embedded/`. An embedded collector is linked into the program.
//!
//! If a collector is preloaded too, the process has one arena, the arena of the preload
//! ([`crate::preloaded`]). Each `Traced` finds out with the first block whether the preloaded
//! collector has recorded the block already. If so, the `Traced` passes all later calls through.

use crate::platform::{alone, symbols};
use crate::preloaded::Preloaded;
use crate::start;
use crate::{fail, offered, preloaded, process};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};

/// Ways for the blocks of a `Traced` beside a preloaded collector.
pub mod way {
    /// Not known yet. The first block allocated with tracing on will tell. With sampling: the first
    /// block not counted by another allocator.
    pub const UNKNOWN: u8 = 0;
    /// No other allocator records the blocks: they are recorded here.
    pub const RECORD: u8 = 1;
    /// The allocator ends in `malloc`, where the blocks are recorded.
    pub const PASS: u8 = 2;
}

static PRELOADED: AtomicPtr<Preloaded> = AtomicPtr::new(ptr::null_mut());
static HAS_LOOKED: AtomicBool = AtomicBool::new(false);

/// Starts the collector before `main`, unless a collector is preloaded. Also starts in programs
/// without allocations, so that an aggregator can find the arena.
pub fn start(slot: usize) {
    if joined().is_none() {
        let _ = start::get_or_start(slot);
        offered::offer_to_all();
    }
}

/// The preloaded collector. None if there is none.
#[inline]
fn joined() -> Option<&'static Preloaded> {
    if !HAS_LOOKED.load(Ordering::Acquire) {
        look();
    }
    // SAFETY: the pointer is null or points to the table exported by the preload, which is never
    // unloaded.
    unsafe { PRELOADED.load(Ordering::Relaxed).as_ref() }
}

#[cold]
fn look() {
    let found = fail::guard(|| if alone::look() { None } else { symbols::find(preloaded::SYMBOL) }).flatten();
    if let Some(address) = found {
        // SAFETY: a collector exports a pointer to a table under this name. In every build the
        // version comes first in the table.
        let (table, version) = unsafe {
            let table = (address as *const *const Preloaded).read();
            (table, (*table).version)
        };
        if version == preloaded::VERSION {
            PRELOADED.store(table.cast_mut(), Ordering::Relaxed);
        } else {
            // The preload is another build: the preload records what it sees, and is not used from
            // here.
            process::follow(None);
        }
    }
    HAS_LOOKED.store(true, Ordering::Release);
}

/// Whether the preloaded collector records at all. Follows the preload's state word if there is
/// one.
fn is_recording(preloaded: &Preloaded) -> bool {
    // SAFETY: the pointer is null or points to a word, which is never unmapped.
    if let Some(state) = unsafe { (preloaded.state)().as_ref() } {
        process::follow(Some(state));
    }
    !process::is_quiet()
}

/// Whether blocks of this `Traced` are to be recorded beside the preloaded collector. `block` is
/// the block just allocated; None at a free and before a reallocation.
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

/// Records an allocated block. `block` is not null.
pub fn allocated(block: *mut u8, size: usize, way: &AtomicU8, slot: usize, bp: usize) {
    match joined() {
        None => preloaded::allocated(block, size, slot, bp),
        Some(preloaded) if is_ours(preloaded, way, Some(block)) => (preloaded.allocated)(block, size, slot, bp),
        Some(_) => {}
    }
}

/// Records a block as about to be freed.
pub fn freeing(block: *mut u8, way: &AtomicU8, slot: usize) {
    match joined() {
        None => preloaded::freeing(block, slot),
        Some(preloaded) if is_ours(preloaded, way, None) => (preloaded.freeing)(block, slot),
        Some(_) => {}
    }
}

/// Records a block as about to be reallocated.
pub fn reallocating(block: *mut u8, way: &AtomicU8, slot: usize) {
    match joined() {
        None => preloaded::reallocating(block, slot),
        Some(preloaded) if is_ours(preloaded, way, None) => (preloaded.reallocating)(block, slot),
        Some(_) => {}
    }
}

/// Records the end of a reallocation: `old` has become `block`. A null `block` means failure.
pub fn reallocated(old: *mut u8, block: *mut u8, size: usize, way: &AtomicU8, slot: usize, bp: usize) {
    match joined() {
        None => preloaded::reallocated(old, block, size, slot, bp),
        Some(preloaded) => {
            let was_known = way.load(Ordering::Relaxed) != way::UNKNOWN;
            if !is_ours(preloaded, way, (!block.is_null()).then_some(block)) {
            } else if was_known {
                (preloaded.reallocated)(old, block, size, slot, bp);
            } else {
                // No record announced the reallocation, and the old block is older than the
                // tracing.
                (preloaded.allocated)(block, size, slot, bp);
            }
        }
    }
}

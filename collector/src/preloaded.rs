//! The table offered by a preloaded collector to an embedded collector, so that a process has one
//! collector.
//!
//! The preload exports a pointer to [`PRELOADED`] as `heapline_preloaded`. The embedded collector
//! finds the pointer in the loader's tables and then keeps no arena of its own. Blocks of
//! allocators on top of `malloc` are recorded by the preload already. Other blocks are recorded
//! through this table, into the same rings.

use crate::unwind::Entry;
use crate::{hooks, process, thread};
use core::ptr;
use core::sync::atomic::AtomicU32;
use heapline_shared_format::event::{self, Event};

/// Name of the exported pointer to the table.
pub const SYMBOL: &[u8] = b"heapline_preloaded";
/// Version of the table. Changes with the layout and the meaning of [`Preloaded`].
pub const VERSION: u32 = 2;

/// Table of functions. `slot` and `bp` are the fields of an [`Entry`].
#[repr(C)]
pub struct Preloaded {
    /// [`VERSION`]. If the number differs, the table is from another build and the fields behind
    /// are unknown.
    pub version: u32,
    /// Returns the state word (`arena::state`), or null before the collector's start.
    pub state: extern "C" fn() -> *const AtomicU32,
    /// Whether the last record of this thread is an allocation with `block` inside. With sampling:
    /// whether the thread has counted any block since the last question, so that only a no is
    /// certain.
    pub has_recorded: extern "C" fn(block: *mut u8) -> bool,
    /// Records an allocated block.
    pub allocated: extern "C" fn(block: *mut u8, size: usize, slot: usize, bp: usize),
    /// Records a block as about to be freed.
    pub freeing: extern "C" fn(block: *mut u8, slot: usize),
    /// Records a block as about to be reallocated.
    pub reallocating: extern "C" fn(block: *mut u8, slot: usize),
    /// Records the end of a reallocation: `old` has become `block`. A null `block` means failure.
    pub reallocated: extern "C" fn(old: *mut u8, block: *mut u8, size: usize, slot: usize, bp: usize),
}

/// The table exported by the preload.
pub static PRELOADED: Preloaded =
    Preloaded { version: VERSION, state, has_recorded, allocated, freeing, reallocating, reallocated };

extern "C" fn state() -> *const AtomicU32 {
    process::state().map_or(ptr::null(), ptr::from_ref)
}

extern "C" fn has_recorded(block: *mut u8) -> bool {
    if process::is_sampling() {
        return thread::has_counted();
    }
    let Some(words) = thread::last_record::<3>() else { return false };
    match event::decode(&words) {
        Ok((Event::Alloc { address, size, .. } | Event::Reallocated { address, size, .. }, 3)) => {
            (block.addr() as u64).wrapping_sub(address) < size.max(1)
        }
        _ => false,
    }
}

pub(crate) extern "C" fn allocated(block: *mut u8, size: usize, slot: usize, bp: usize) {
    hooks::record_alloc(block, size, Entry { slot, bp });
}

pub(crate) extern "C" fn freeing(block: *mut u8, slot: usize) {
    hooks::record_free(block, slot);
}

pub(crate) extern "C" fn reallocating(block: *mut u8, slot: usize) {
    hooks::record_realloc_begins(block, slot);
}

pub(crate) extern "C" fn reallocated(old: *mut u8, block: *mut u8, size: usize, slot: usize, bp: usize) {
    if block.is_null() {
        hooks::record_realloc_ended(old, false, slot);
    } else {
        hooks::record_reallocated(block, size, Entry { slot, bp });
    }
}

//! One process, one collector: what a preloaded collector offers to one that the program carries in itself.
//!
//! The preload exports a pointer to [`PRELOADED`] as `heapline_preloaded`; the embedded collector finds it in the loader's tables and
//! then keeps no arena of its own. Blocks whose allocator ends in `malloc` are the preload's already; others are
//! recorded through this table, into the same rings.

use crate::unwind::Entry;
use crate::{hooks, process, thread};
use core::ptr;
use core::sync::atomic::AtomicU32;
use heapline_shared_format::event::{self, Event};

/// The name under which the preload exports its table.
pub const SYMBOL: &[u8] = b"heapline_preloaded";
/// Changes with the layout and the meaning of [`Preloaded`].
pub const VERSION: u32 = 2;

/// The table. `slot` and `rbp` are an [`Entry`]'s.
#[repr(C)]
pub struct Preloaded {
    /// [`VERSION`]; all behind it is another build's matter if that differs.
    pub version: u32,
    /// The word that tells whether anything is recorded (`arena::state`); null before the collector's start.
    pub state: extern "C" fn() -> *const AtomicU32,
    /// Whether the last that this thread recorded is an allocation that the block lies in. Where samples are recorded: whether
    /// it has counted any block since it was asked last, so only a no is sure.
    pub has_recorded: extern "C" fn(block: *mut u8) -> bool,
    /// A block was allocated.
    pub allocated: extern "C" fn(block: *mut u8, size: usize, slot: usize, rbp: usize),
    /// A block is about to be freed.
    pub freeing: extern "C" fn(block: *mut u8, slot: usize),
    /// A block is about to be reallocated.
    pub reallocating: extern "C" fn(block: *mut u8, slot: usize),
    /// The block is now this one; null when that failed.
    pub reallocated: extern "C" fn(old: *mut u8, block: *mut u8, size: usize, slot: usize, rbp: usize),
}

/// What the preload exports.
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

pub(crate) extern "C" fn allocated(block: *mut u8, size: usize, slot: usize, rbp: usize) {
    hooks::record_alloc(block, size, Entry { slot, rbp });
}

pub(crate) extern "C" fn freeing(block: *mut u8, slot: usize) {
    hooks::record_free(block, slot);
}

pub(crate) extern "C" fn reallocating(block: *mut u8, slot: usize) {
    hooks::record_realloc_begins(block, slot);
}

pub(crate) extern "C" fn reallocated(old: *mut u8, block: *mut u8, size: usize, slot: usize, rbp: usize) {
    if block.is_null() {
        hooks::record_realloc_ended(old, false, slot);
    } else {
        hooks::record_reallocated(block, size, Entry { slot, rbp });
    }
}

//! Doors: entries for calls of allocators other than the allocator behind the hooks.
//!
//! The calls of `malloc` of a process lead to one allocator, but a process may have more
//! allocators:
//!
//! - a library opened with RTLD_DEEPBIND calls the C library's allocator past a preloaded jemalloc;
//! - a namespace of `dlmopen` has a C library of its own;
//! - a library brings a `malloc` for itself.
//!
//! An allocator may also have more functions than the C library knows ([`shapes`]). For each such
//! function there is a door, made when the first place that leads to the function is met.
//!
//! ```text
//! caller ──> place (GOT) ──> door n ──> [`before`] ──> the function ──> [`after`] ──> caller
//! ```
//!
//! While a function runs, the thread is marked. Hooked functions called by the allocator itself are
//! part of the same call.

#[cfg(not(feature = "embedded"))]
mod entry;
pub mod shapes;

use crate::arch::entries;
use crate::platform::elf;
use crate::sampling::Held;
use crate::unwind::Entry;
use crate::{hooks, process, real, sampling, thread};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use heapline_shared_format::event::domain;
use shapes::{Act, ONCE, Shape};

/// Greatest number of doors.
pub(crate) const MOST: usize = 512;

/// A door. The code of the entries relies on the layout.
#[repr(C)]
struct Door {
    /// Address of the function behind the door.
    function: AtomicUsize,
    shape: AtomicPtr<Shape>,
}

const _: () = assert!(size_of::<Door>() == 16);

static DOORS: [Door; MOST] =
    [const { Door { function: AtomicUsize::new(0), shape: AtomicPtr::new(ptr::null_mut()) } }; MOST];
static USED: AtomicUsize = AtomicUsize::new(0);

/// A call through a door. The code of the entries relies on the layout.
#[repr(C)]
pub(crate) struct Call {
    arguments: [usize; 6],
    door: &'static Door,
    /// Bits set by [`before`].
    note: usize,
}

/// Bit of [`Call::note`]: samples are recorded.
const SAMPLES: usize = 1;
/// Bit of [`Call::note`]: the reallocated block was a sample.
const WAS_SAMPLE: usize = 2;
/// Bit of [`Call::note`]: the thread was marked.
const MARKED: usize = 4;

/// Returns the entry of the door for a function of this name. Makes the door if there is none yet.
/// Returns `None` where all doors are in use, or the name belongs to no allocator. Only one thread
/// at a time runs this function, because the loader's lock is held.
pub fn entry_for(name: &[u8], function: usize) -> Option<usize> {
    let shape = shapes::of(name)?;
    let used = USED.load(Ordering::Relaxed);
    let is_same = |door: &Door| {
        door.function.load(Ordering::Relaxed) == function && ptr::eq(door.shape.load(Ordering::Relaxed), shape)
    };
    if let Some(index) = DOORS[..used].iter().position(is_same) {
        return entry_at(index);
    }
    let door = DOORS.get(used)?;
    door.shape.store(ptr::from_ref(shape).cast_mut(), Ordering::Relaxed);
    door.function.store(function, Ordering::Release);
    USED.store(used + 1, Ordering::Release);
    entry_at(used)
}

/// Returns the function behind the door with this entry; `None` for another address.
pub fn function_behind(entry: usize) -> Option<usize> {
    let index = entry.checked_sub(entry_at(0)?)?;
    let is_entry = index.is_multiple_of(ENTRY_BYTES) && index / ENTRY_BYTES < USED.load(Ordering::Acquire);
    is_entry.then(|| DOORS[index / ENTRY_BYTES].function.load(Ordering::Relaxed))
}

/// Returns whether the code at an address belongs to an object with an allocator led here, or to
/// the collector. The collector counts because the collector calls allocators only: a function of
/// an allocator that jumps on to another function leaves the collector as the caller.
pub fn is_allocators(address: usize) -> bool {
    let object = elf::object_identity;
    let Some(asked) = object(address) else { return false };
    if object((entry_for as *const ()).addr()) == Some(asked) {
        return true;
    }
    // glibc's allocator calls nobody; the rest of the C library calls the program's allocator.
    if object(real::errno_location()) == Some(asked) {
        return real::is_in_musls_allocator(address);
    }
    let others = DOORS[..USED.load(Ordering::Acquire)].iter().map(|door| door.function.load(Ordering::Relaxed));
    [real::provider_address()].into_iter().chain(others).any(|function| object(function) == Some(asked))
}

/// Returns whether a function belongs to the process's own allocator.
pub fn is_of_provider(function: usize) -> bool {
    let object = elf::object_identity;
    object(function).is_some() && object(function) == object(real::provider_address())
}

/// Bytes of the code of an entry.
const ENTRY_BYTES: usize = entries::DOOR_BYTES;

#[cfg(not(feature = "embedded"))]
fn entry_at(index: usize) -> Option<usize> {
    Some(entry::first() + index * ENTRY_BYTES)
}

/// Returns `None`: no call is led to a collector embedded in the program.
#[cfg(feature = "embedded")]
fn entry_at(_: usize) -> Option<usize> {
    None
}

impl Call {
    fn shape(&self) -> Shape {
        // SAFETY: `shape` was set before the door was used, and never changes.
        unsafe { *self.door.shape.load(Ordering::Relaxed) }
    }

    fn argument(&self, number: u8) -> usize {
        self.arguments.get(usize::from(number)).copied().unwrap_or(0)
    }

    fn block(&self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.argument(self.shape().block))
    }

    fn size(&self) -> usize {
        let Shape { size, count, .. } = self.shape();
        let times = if count == ONCE { 1 } else { self.argument(count) };
        // An overflowing product makes the function fail.
        self.argument(size).saturating_mul(times)
    }

    fn has(&self, note: usize) -> bool {
        self.note & note != 0
    }
}

/// Records the part before the call of a function, called at `slot`. Returns the function.
#[cfg_attr(feature = "embedded", expect(dead_code, reason = "there are no doors"))]
extern "C" fn before(call: &mut Call, slot: usize) -> usize {
    let errno = real::errno();
    let block = call.block();
    match call.shape().act {
        Act::Frees => hooks::record_free(block, slot),
        Act::Reallocates | Act::Expands | Act::Resizes if !block.is_null() => {
            if process::is_sampling() {
                let was_sample = sampling::reallocation_begins(block, domain::NATIVE, slot);
                call.note = SAMPLES | if was_sample { WAS_SAMPLE } else { 0 };
            } else {
                hooks::record_realloc_begins(block, slot);
            }
        }
        _ => {}
    }
    if thread::enter_allocator(slot) {
        call.note |= MARKED;
    }
    real::set_errno(errno);
    call.door.function.load(Ordering::Relaxed)
}

/// Records the part after the call, which has returned `result`.
#[cfg_attr(feature = "embedded", expect(dead_code, reason = "there are no doors"))]
extern "C" fn after(call: &Call, result: usize, slot: usize, bp: usize) {
    if call.has(MARKED) {
        thread::leave_allocator();
    }
    let errno = real::errno();
    let entry = Entry { slot, bp };
    let (given, old, size) = (ptr::with_exposed_provenance_mut(result), call.block(), call.size());
    match call.shape().act {
        Act::Allocates => hooks::record_alloc(given, size, entry),
        Act::AllocatesText => {
            let shape = call.shape();
            let is_block = shape.count == ONCE || call.argument(shape.size) == 0;
            if is_block && !given.is_null() {
                // SAFETY: the function returns a text that ends with a zero byte.
                let text = unsafe { core::ffi::CStr::from_ptr(given.cast()) };
                hooks::record_alloc(given, text.count_bytes() + 1, entry);
            }
        }
        Act::AllocatesTo => {
            if result == 0 {
                // SAFETY: the function has succeeded, so the first argument points to the new
                // block's address.
                let block = unsafe { ptr::with_exposed_provenance::<*mut u8>(call.argument(0)).read() };
                hooks::record_alloc(block, size, entry);
            }
        }
        Act::Frees => {}
        Act::Reallocates if old.is_null() => hooks::record_alloc(given, size, entry),
        // A null result with size 0 means a freed block. A failure leaves the block alone.
        Act::Reallocates => reallocated(call, Moved { old, given, size }, given.is_null() && size == 0, entry),
        Act::Expands if old.is_null() => {}
        Act::Expands => reallocated(call, Moved { old, given, size }, false, entry),
        Act::Resizes => {
            let given = if result >= size { old } else { ptr::null_mut() };
            reallocated(call, Moved { old, given, size }, false, entry);
        }
    }
    real::set_errno(errno);
}

/// A block that a function was given, and the block that the function gave back.
struct Moved {
    old: *mut u8,
    given: *mut u8,
    size: usize,
}

fn reallocated(call: &Call, moved: Moved, is_freed: bool, entry: Entry) {
    let Moved { old, given, size } = moved;
    if call.has(SAMPLES) {
        let is_gone = is_freed || !given.is_null();
        sampling::reallocation_ends(
            Held { block: old, domain: domain::NATIVE },
            call.has(WAS_SAMPLE),
            is_gone,
            entry.slot,
        );
        hooks::record_alloc(given, size, entry);
    } else if given.is_null() {
        hooks::record_realloc_ended(old, is_freed, entry.slot);
    } else {
        hooks::record_reallocated(given, size, entry);
    }
}

//! Hooks of the allocator: each function records events around one call of the real allocator.
//!
//! Order of records:
//!
//! 1. A free is recorded before the real free.
//! 2. An allocation is recorded after the real call has returned.
//! 3. A realloc is two records around the real call. Until the second record the old block is
//!    alive.
//!
//! For one address the stamps therefore follow the order of events, whichever threads took part.
//! Only successful calls count, with the size requested by the caller.
//!
//! While nothing is traced, the most frequent functions go straight to the real allocator
//! ([`process::is_quiet`]).
//!
//! Each function here is the libc function of the same name with an additional [`Entry`]: the place
//! where `preload/` found the hook entered. Functions without need of a traceback take only the
//! slot of the entry.

use crate::real::{real, set_errno};
use crate::sampling::{Allocation, Call};
use crate::thread::record::record;
use crate::unwind::Entry;
use crate::{process, sampling};
use core::ffi::c_int;
use core::ptr;
use heapline_shared_format::arena::state;
use heapline_shared_format::event::{self, domain};

const ENOMEM: c_int = 12;

/// Records a block just returned by the real allocator.
#[inline(always)]
pub fn record_alloc(block: *mut u8, size: usize, entry: Entry) {
    if block.is_null() {
        return;
    }
    if process::is_sampling() {
        sampling::native_allocated(block, size, entry);
    } else {
        record(entry.slot, |thread| {
            thread
                .publish_with_stack(entry, |stamp, stack| event::alloc(stamp, block.addr() as u64, size as u64, stack))
        });
    }
}

/// Records the coming free of a block, by a hook entered at `slot`.
#[inline(always)]
pub fn record_free(block: *mut u8, slot: usize) {
    if block.is_null() {
        return;
    }
    if process::is_sampling() {
        let call = sampling::freeing(block, domain::NATIVE);
        if call != Call::Plain {
            sampling::native_sample_freeing(block, slot, call);
        }
    } else {
        record(slot, |thread| thread.publish_plain(|stamp| event::free(stamp, block.addr() as u64)));
    }
}

/// Records the coming reallocation of a block.
pub(crate) fn record_realloc_begins(block: *mut u8, slot: usize) {
    record(slot, |thread| thread.publish_plain(|stamp| event::realloc(stamp, block.addr() as u64)));
}

/// Records the new address and size of a reallocated block.
pub(crate) fn record_reallocated(block: *mut u8, size: usize, entry: Entry) {
    record(entry.slot, |thread| {
        thread.publish_with_stack(entry, |stamp, stack| {
            event::reallocated(stamp, block.addr() as u64, size as u64, stack)
        })
    });
}

/// Records the reallocation of a block by a call that has nearly ended. The old place is not free
/// yet.
pub(crate) fn record_moved(old: *mut u8, block: *mut u8, size: usize, entry: Entry) {
    if process::is_sampling() {
        record_free(old, entry.slot);
        record_alloc(block, size, entry);
    } else {
        record_realloc_begins(old, entry.slot);
        record_reallocated(block, size, entry);
    }
}

/// Records the end of a realloc without a new block. The old block lives on, or was freed.
pub(crate) fn record_realloc_ended(old: *mut u8, freed: bool, slot: usize) {
    record(slot, |thread| thread.publish_plain(|stamp| event::realloc_end(stamp, old.addr() as u64, freed)));
}

/// `malloc`.
///
/// # Safety
/// The caller upholds the contract of the C function `malloc`.
#[inline(always)]
pub unsafe fn malloc(size: usize, entry: Entry) -> *mut u8 {
    // SAFETY: the caller upholds the contract of the C function `malloc`.
    unsafe {
        match process::mode() {
            state::IDLE => real().malloc(size),
            state::SAMPLING => sampled_malloc(size, entry),
            _ => traced_malloc(size, entry),
        }
    }
}

#[inline(always)]
unsafe fn sampled_malloc(size: usize, entry: Entry) -> *mut u8 {
    // SAFETY: the caller upholds the contract of the C function `malloc`.
    sampling::native_allocating(size, entry, move || unsafe { real().malloc(size) })
}

/// Not inlined, so that the idle and the sampled path of `malloc` spill no registers.
#[inline(never)]
unsafe fn traced_malloc(size: usize, entry: Entry) -> *mut u8 {
    // SAFETY: the caller upholds the contract of the C function `malloc`.
    let block = unsafe { real().malloc(size) };
    record_alloc(block, size, entry);
    block
}

/// `calloc`.
///
/// # Safety
/// The caller upholds the contract of the C function `calloc`.
#[inline(always)]
pub unsafe fn calloc(count: usize, size: usize, entry: Entry) -> *mut u8 {
    // SAFETY: the caller upholds the contract of the C function `calloc`.
    let call = move || unsafe { real().calloc(count, size) };
    // An overflowing product makes the real `calloc` fail.
    let bytes = count.saturating_mul(size);
    match process::mode() {
        state::IDLE => call(),
        state::SAMPLING => sampling::native_allocating(bytes, entry, call),
        _ => {
            let block = call();
            record_alloc(block, bytes, entry);
            block
        }
    }
}

/// `realloc`.
///
/// # Safety
/// The caller upholds the contract of the C function `realloc`.
#[inline(always)]
pub unsafe fn realloc(old: *mut u8, size: usize, entry: Entry) -> *mut u8 {
    if process::is_quiet() {
        // SAFETY: the caller upholds the contract of the C function `realloc`.
        return unsafe { real().realloc(old, size) };
    }
    // SAFETY: the caller upholds the contract of the C function `realloc`.
    unsafe { traced_realloc(old, size, entry) }
}

#[inline(never)]
unsafe fn traced_realloc(old: *mut u8, size: usize, entry: Entry) -> *mut u8 {
    if old.is_null() {
        // SAFETY: the caller upholds the contract of the C function `realloc`.
        let block = unsafe { real().realloc(old, size) };
        record_alloc(block, size, entry);
        return block;
    }
    if process::is_sampling() {
        let allocated = |block| record_alloc(block, size, entry);
        // SAFETY: the caller upholds the contract of the C function `realloc`.
        let call = || unsafe { real().realloc(old, size) };
        return sampling::reallocating(
            Allocation { block: old, size, domain: domain::NATIVE },
            entry.slot,
            call,
            allocated,
        );
    }
    record_realloc_begins(old, entry.slot);
    // SAFETY: the caller upholds the contract of the C function `realloc`.
    let block = unsafe { real().realloc(old, size) };
    if block.is_null() {
        // A null result with size 0 means a freed block (glibc, tcmalloc). A failure leaves the old
        // block alone.
        record_realloc_ended(old, size == 0, entry.slot);
    } else {
        record_reallocated(block, size, entry);
    }
    block
}

/// `reallocarray`.
///
/// # Safety
/// The caller upholds the contract of the C function `reallocarray`.
#[inline(always)]
pub unsafe fn reallocarray(old: *mut u8, count: usize, size: usize, entry: Entry) -> *mut u8 {
    match count.checked_mul(size) {
        // SAFETY: the caller upholds the contract of `reallocarray`, which covers `realloc` of
        // `bytes` bytes.
        Some(bytes) => unsafe { realloc(old, bytes, entry) },
        None => {
            set_errno(ENOMEM);
            ptr::null_mut()
        }
    }
}

/// `free`, `cfree`, and C23's `free_sized` and `free_aligned_sized`. The sizes given to the C23
/// functions are not used.
///
/// # Safety
/// The caller upholds the contract of the C function `free`.
#[inline(always)]
pub unsafe fn free(block: *mut u8, slot: usize) {
    // SAFETY: the caller upholds the contract of the C function `free`.
    unsafe {
        match process::mode() {
            state::IDLE => real().free(block),
            state::SAMPLING => sampled_free(block, slot),
            _ => traced_free(block, slot),
        }
    }
}

#[inline(always)]
unsafe fn sampled_free(block: *mut u8, slot: usize) {
    if !block.is_null() {
        let call = sampling::freeing(block, domain::NATIVE);
        if call != Call::Plain {
            // SAFETY: the caller upholds the contract of the C function `free`.
            return unsafe { sampled_free_slowly(block, slot, call) };
        }
    }
    // SAFETY: the caller upholds the contract of the C function `free`.
    unsafe { real().free(block) }
}

#[cold]
#[inline(never)]
unsafe fn sampled_free_slowly(block: *mut u8, slot: usize, call: Call) {
    sampling::native_sample_freeing(block, slot, call);
    // SAFETY: the caller upholds the contract of the C function `free`.
    unsafe { real().free(block) }
}

#[inline(never)]
unsafe fn traced_free(block: *mut u8, slot: usize) {
    record_free(block, slot);
    // SAFETY: the caller upholds the contract of the C function `free`.
    unsafe { real().free(block) }
}

/// `posix_memalign`.
///
/// # Safety
/// The caller upholds the contract of the C function `posix_memalign`.
#[inline(always)]
pub unsafe fn posix_memalign(result: *mut *mut u8, align: usize, size: usize, entry: Entry) -> c_int {
    // SAFETY: the caller upholds the contract of the C function `posix_memalign`. After status 0
    // the real function has written `*result`.
    unsafe {
        let status = real().posix_memalign(result, align, size);
        if status == 0 {
            record_alloc(*result, size, entry);
        }
        status
    }
}

/// `aligned_alloc`.
///
/// # Safety
/// The caller upholds the contract of the C function `aligned_alloc`.
#[inline(always)]
pub unsafe fn aligned_alloc(align: usize, size: usize, entry: Entry) -> *mut u8 {
    // SAFETY: the caller upholds the contract of the C function `aligned_alloc`.
    let block = unsafe { real().aligned_alloc(align, size) };
    record_alloc(block, size, entry);
    block
}

/// `memalign`.
///
/// # Safety
/// The caller upholds the contract of the C function `memalign`.
#[inline(always)]
pub unsafe fn memalign(align: usize, size: usize, entry: Entry) -> *mut u8 {
    // SAFETY: the caller upholds the contract of the C function `memalign`.
    let block = unsafe { real().memalign(align, size) };
    record_alloc(block, size, entry);
    block
}

/// `valloc`.
///
/// # Safety
/// The caller upholds the contract of the C function `valloc`.
#[inline(always)]
pub unsafe fn valloc(size: usize, entry: Entry) -> *mut u8 {
    // SAFETY: the caller upholds the contract of the C function `valloc`.
    let block = unsafe { real().valloc(size) };
    record_alloc(block, size, entry);
    block
}

/// `pvalloc`. The recorded size is the size requested by the caller, not rounded up to pages.
///
/// # Safety
/// The caller upholds the contract of the C function `pvalloc`.
#[inline(always)]
pub unsafe fn pvalloc(size: usize, entry: Entry) -> *mut u8 {
    // SAFETY: the caller upholds the contract of the C function `pvalloc`.
    let block = unsafe { real().pvalloc(size) };
    record_alloc(block, size, entry);
    block
}

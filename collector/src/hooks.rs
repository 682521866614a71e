//! What happens around each call of the allocator.
//!
//! A free is recorded before the real free, an allocation after the real call returned: so for one address the
//! stamps follow what happened, whichever threads took part. Only successful calls count, with the size that was
//! asked for. A realloc is two records around the call: until the second, the old block lives on.
//!
//! While nothing is traced the most frequent ones go straight on ([`process::is_quiet`]).
//!
//! Each function here is the libc function of its name plus the [`Entry`] that `preload/` found it entered with; those
//! that need no traceback take only its slot.

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

/// Records a block that the real allocator has just returned.
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

/// Records that a block is about to be freed, by a hook entered at `slot`.
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

/// Records that a block is about to be reallocated.
pub(crate) fn record_realloc_begins(block: *mut u8, slot: usize) {
    record(slot, |thread| thread.publish_plain(|stamp| event::realloc(stamp, block.addr() as u64)));
}

/// Records where it is now.
pub(crate) fn record_reallocated(block: *mut u8, size: usize, entry: Entry) {
    record(entry.slot, |thread| {
        thread.publish_with_stack(entry, |stamp, stack| {
            event::reallocated(stamp, block.addr() as u64, size as u64, stack)
        })
    });
}

/// Records that a block was reallocated by a call that has nearly ended: its old place is not free yet.
pub(crate) fn record_moved(old: *mut u8, block: *mut u8, size: usize, entry: Entry) {
    if process::is_sampling() {
        record_free(old, entry.slot);
        record_alloc(block, size, entry);
    } else {
        record_realloc_begins(old, entry.slot);
        record_reallocated(block, size, entry);
    }
}

/// Records that there is no new block: the old one lives on, or was freed.
pub(crate) fn record_realloc_ended(old: *mut u8, freed: bool, slot: usize) {
    record(slot, |thread| thread.publish_plain(|stamp| event::realloc_end(stamp, old.addr() as u64, freed)));
}

/// `malloc`.
///
/// # Safety
/// As the C function's; so for all below.
#[inline(always)]
pub unsafe fn malloc(size: usize, entry: Entry) -> *mut u8 {
    // SAFETY: the caller's promise is the C function's; so for all below.
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
    // SAFETY: passed on.
    sampling::native_allocating(size, entry, move || unsafe { real().malloc(size) })
}

/// Apart, so that the other ways save no registers; so for those below.
#[inline(never)]
unsafe fn traced_malloc(size: usize, entry: Entry) -> *mut u8 {
    // SAFETY: passed on.
    let block = unsafe { real().malloc(size) };
    record_alloc(block, size, entry);
    block
}

/// `calloc`.
///
/// # Safety
/// As the C function's.
#[inline(always)]
pub unsafe fn calloc(count: usize, size: usize, entry: Entry) -> *mut u8 {
    // SAFETY: passed on.
    let call = move || unsafe { real().calloc(count, size) };
    // A product that overflows fails.
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
/// As the C function's.
#[inline(always)]
pub unsafe fn realloc(old: *mut u8, size: usize, entry: Entry) -> *mut u8 {
    if process::is_quiet() {
        // SAFETY: passed on.
        return unsafe { real().realloc(old, size) };
    }
    // SAFETY: passed on.
    unsafe { traced_realloc(old, size, entry) }
}

#[inline(never)]
unsafe fn traced_realloc(old: *mut u8, size: usize, entry: Entry) -> *mut u8 {
    if old.is_null() {
        // SAFETY: passed on.
        let block = unsafe { real().realloc(old, size) };
        record_alloc(block, size, entry);
        return block;
    }
    if process::is_sampling() {
        let allocated = |block| record_alloc(block, size, entry);
        // SAFETY: passed on.
        let call = || unsafe { real().realloc(old, size) };
        return sampling::reallocating(
            Allocation { block: old, size, domain: domain::NATIVE },
            entry.slot,
            call,
            allocated,
        );
    }
    record_realloc_begins(old, entry.slot);
    // SAFETY: passed on.
    let block = unsafe { real().realloc(old, size) };
    if block.is_null() {
        // With size 0 nothing came back because the block was freed (glibc, tcmalloc); a failure leaves it alone.
        record_realloc_ended(old, size == 0, entry.slot);
    } else {
        record_reallocated(block, size, entry);
    }
    block
}

/// `reallocarray`.
///
/// # Safety
/// As the C function's.
#[inline(always)]
pub unsafe fn reallocarray(old: *mut u8, count: usize, size: usize, entry: Entry) -> *mut u8 {
    match count.checked_mul(size) {
        // SAFETY: passed on.
        Some(bytes) => unsafe { realloc(old, bytes, entry) },
        None => {
            set_errno(ENOMEM);
            ptr::null_mut()
        }
    }
}

/// `free`, `cfree`, and C23's `free_sized` and `free_aligned_sized`, whose sizes are a mere promise.
///
/// # Safety
/// As the C function's.
#[inline(always)]
pub unsafe fn free(block: *mut u8, slot: usize) {
    // SAFETY: passed on.
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
            // SAFETY: passed on.
            return unsafe { sampled_free_slowly(block, slot, call) };
        }
    }
    // SAFETY: passed on.
    unsafe { real().free(block) }
}

#[cold]
#[inline(never)]
unsafe fn sampled_free_slowly(block: *mut u8, slot: usize, call: Call) {
    sampling::native_sample_freeing(block, slot, call);
    // SAFETY: passed on.
    unsafe { real().free(block) }
}

#[inline(never)]
unsafe fn traced_free(block: *mut u8, slot: usize) {
    record_free(block, slot);
    // SAFETY: passed on.
    unsafe { real().free(block) }
}

/// `posix_memalign`.
///
/// # Safety
/// As the C function's.
#[inline(always)]
pub unsafe fn posix_memalign(result: *mut *mut u8, align: usize, size: usize, entry: Entry) -> c_int {
    // SAFETY: passed on; on success the real function has written the result.
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
/// As the C function's.
#[inline(always)]
pub unsafe fn aligned_alloc(align: usize, size: usize, entry: Entry) -> *mut u8 {
    // SAFETY: passed on.
    let block = unsafe { real().aligned_alloc(align, size) };
    record_alloc(block, size, entry);
    block
}

/// `memalign`.
///
/// # Safety
/// As the C function's.
#[inline(always)]
pub unsafe fn memalign(align: usize, size: usize, entry: Entry) -> *mut u8 {
    // SAFETY: passed on.
    let block = unsafe { real().memalign(align, size) };
    record_alloc(block, size, entry);
    block
}

/// `valloc`.
///
/// # Safety
/// As the C function's.
#[inline(always)]
pub unsafe fn valloc(size: usize, entry: Entry) -> *mut u8 {
    // SAFETY: passed on.
    let block = unsafe { real().valloc(size) };
    record_alloc(block, size, entry);
    block
}

/// `pvalloc`. The size that counts is the one that was asked for, not the pages that it becomes.
///
/// # Safety
/// As the C function's.
#[inline(always)]
pub unsafe fn pvalloc(size: usize, entry: Entry) -> *mut u8 {
    // SAFETY: passed on.
    let block = unsafe { real().pvalloc(size) };
    record_alloc(block, size, entry);
    block
}

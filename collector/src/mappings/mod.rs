//! mmap and its family: the program's explicit changes of its address space.
//!
//! What may take pages away is announced before the real call, since the kernel may give the addresses to another thread
//! at once, and ended after it; what gives pages is recorded after it. Only successful calls count.
//!
//! glibc's own mappings (malloc's arenas, threads' stacks, the loader) and the collector's do not come by here: they call
//! the kernel, or names that cannot be interposed. The C library's functions are called by what the search order has, like
//! malloc, once that is known; before, which is before the program's first instruction, the kernel is called.
//!
//! Each function here is the libc function of its name plus the [`Entry`] that `preload/` found it entered with.

mod next;

pub use next::look_up;

use crate::thread::{Published, Thread};
use crate::unwind::Entry;
use crate::{process, python, thread};
use core::ffi::c_int;
use heapline_shared_format::event;
use heapline_shared_format::mapping::{self, PAGE_BYTES, Pages};

/// `MAP_FAILED`, and what sbrk returns when it fails.
const FAILED: usize = usize::MAX;

/// Publishes what `publish` makes of a hook that was entered at `slot`, also for an allocator that is at work.
fn record(slot: usize, publish: impl Fn(&mut Thread) -> Published) {
    thread::out_of_allocator(|| thread::record::record(slot, publish));
}

/// Whether pages with this protection are only reserved.
fn is_reserved(protection: c_int) -> bool {
    const READ_WRITE_EXECUTE: c_int = 7;
    protection & READ_WRITE_EXECUTE == 0
}

/// Records what `asked_for` makes of pages that a call was given; none where there is nothing to record. Apart, since a walk
/// is much code, and these calls are no part of any inner loop.
#[inline(never)]
fn record_given(asked_for: AskedFor, pages: Option<Pages>, reserved: bool, entry: Entry) {
    let Some(pages) = pages.filter(|pages| !pages.is_empty()) else { return };
    record(entry.slot, |thread| {
        thread.publish_with_stack(entry, |stamp, stack| asked_for(event::mapping(stamp), pages, reserved, stack))
    });
}

/// [`mapping::map`] or [`mapping::protect`].
type AskedFor = fn(u64, Pages, bool, u32) -> [u64; 4];

/// Makes a call that takes `pages` away, between the records for that; `failed` tells by its result whether it did.
fn take_away<R>(pages: Option<Pages>, slot: usize, call: impl FnOnce() -> R, failed: impl FnOnce(&R) -> bool) -> R {
    // The kernel refuses all others.
    let Some(pages) = pages.filter(|pages| !pages.is_empty() && !process::is_quiet()) else { return call() };
    record_leaving(pages, slot);
    let result = call();
    record_left(pages, failed(&result), slot);
    result
}

#[inline(never)]
fn record_leaving(pages: Pages, slot: usize) {
    record(slot, |thread| thread.publish_plain(|stamp| mapping::unmap(event::mapping(stamp), pages)));
}

#[inline(never)]
fn record_left(pages: Pages, failed: bool, slot: usize) {
    record(slot, |thread| thread.publish_plain(|stamp| mapping::unmap_ended(event::mapping(stamp), pages, failed)));
}

/// Bytes that the kernel maps for so many: huge pages are whole too.
fn mapped_bytes(bytes: usize, flags: c_int) -> u64 {
    const MAP_HUGETLB: c_int = 0x40000;
    const SIZE_SHIFT: c_int = 26;
    const USUAL_HUGE_BITS: c_int = 21;
    let bits = match flags >> SIZE_SHIFT & 63 {
        _ if flags & MAP_HUGETLB == 0 => PAGE_BYTES.ilog2(),
        0 => USUAL_HUGE_BITS.cast_unsigned(),
        bits => bits.cast_unsigned(),
    };
    (bytes as u64).checked_next_multiple_of(1 << bits).unwrap_or(bytes as u64)
}

/// `mmap`.
///
/// # Safety
/// As the C function's; so for all below.
pub unsafe fn mmap(
    address: usize,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: isize,
    entry: Entry,
) -> usize {
    // SAFETY: the caller's promise is the C function's; so for all below.
    let mapped = unsafe { next::mmap(address, bytes, protection, flags, fd, offset) };
    record_mmap(mapped, bytes, protection, flags, entry);
    mapped
}

/// `mmap64`: the same function in the C library, but another library may have one and not the other.
///
/// # Safety
/// As the C function's.
pub unsafe fn mmap64(
    address: usize,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: isize,
    entry: Entry,
) -> usize {
    // SAFETY: passed on.
    let mapped = unsafe { next::mmap64(address, bytes, protection, flags, fd, offset) };
    record_mmap(mapped, bytes, protection, flags, entry);
    mapped
}

fn record_mmap(mapped: usize, bytes: usize, protection: c_int, flags: c_int, entry: Entry) {
    // SAFETY: the entry's own return address.
    python::called_from(unsafe { (entry.slot as *const usize).read() });
    if mapped != FAILED && !process::is_quiet() {
        let pages = Pages::covering(mapped as u64, mapped_bytes(bytes, flags));
        record_given(mapping::map, pages, is_reserved(protection), entry);
    }
}

/// `munmap`.
///
/// # Safety
/// As the C function's.
pub unsafe fn munmap(address: usize, bytes: usize, entry: Entry) -> c_int {
    let pages = Pages::covering(address as u64, bytes as u64);
    // SAFETY: passed on.
    take_away(pages, entry.slot, || unsafe { next::munmap(address, bytes) }, |&status| status != 0)
}

/// `mremap`, whose last argument counts only with some flags.
///
/// # Safety
/// As the C function's.
pub unsafe fn mremap(old: usize, old_bytes: usize, bytes: usize, flags: c_int, wanted: usize, entry: Entry) -> usize {
    const MREMAP_DONTUNMAP: c_int = 4;
    // SAFETY: passed on.
    let call = || unsafe { next::mremap(old, old_bytes, bytes, flags, wanted) };
    let Some(pages) = Pages::covering(old as u64, old_bytes as u64).filter(|_| !process::is_quiet()) else {
        return call();
    };
    let stays = flags & MREMAP_DONTUNMAP != 0 || pages.is_empty();
    if !stays {
        record_leaving(pages, entry.slot);
    }
    let new = call();
    match Pages::covering(new as u64, bytes as u64).filter(|new| !new.is_empty()) {
        Some(new) => record(entry.slot, |thread| {
            thread.publish_with_stack(entry, |stamp, stack| {
                mapping::remapped(event::mapping(stamp), pages, new, stays, stack)
            })
        }),
        None if stays => {}
        None => record_left(pages, new == FAILED, entry.slot),
    }
    new
}

/// `mprotect`.
///
/// # Safety
/// As the C function's.
pub unsafe fn mprotect(address: usize, bytes: usize, protection: c_int, entry: Entry) -> c_int {
    // SAFETY: passed on.
    let status = unsafe { next::mprotect(address, bytes, protection) };
    record_protect(status, address, bytes, protection, entry);
    status
}

/// `pkey_mprotect`.
///
/// # Safety
/// As the C function's.
pub unsafe fn pkey_mprotect(address: usize, bytes: usize, protection: c_int, key: c_int, entry: Entry) -> c_int {
    // SAFETY: passed on.
    let status = unsafe { next::pkey_mprotect(address, bytes, protection, key) };
    record_protect(status, address, bytes, protection, entry);
    status
}

fn record_protect(status: c_int, address: usize, bytes: usize, protection: c_int, entry: Entry) {
    if status == 0 && !process::is_quiet() {
        let pages = Pages::covering(address as u64, bytes as u64);
        record_given(mapping::protect, pages, is_reserved(protection), entry);
    }
}

/// `brk`.
///
/// # Safety
/// As the C function's.
pub unsafe fn brk(end: usize, entry: Entry) -> c_int {
    // SAFETY: asks only; then passed on.
    unsafe { move_break(next::sbrk(0), end, || next::brk(end), |&status| status != 0, entry) }
}

/// `sbrk`.
///
/// # Safety
/// As the C function's.
pub unsafe fn sbrk(increment: isize, entry: Entry) -> usize {
    if increment == 0 || process::is_quiet() {
        // SAFETY: passed on.
        return unsafe { next::sbrk(increment) };
    }
    // SAFETY: asks only; then passed on.
    unsafe {
        let before = next::sbrk(0);
        let after = before.wrapping_add_signed(increment);
        move_break(before, after, || next::sbrk(increment), |&old| old == FAILED, entry)
    }
}

/// The program's break moves: whole pages come, or go, at the end of what it had.
fn move_break<R>(
    before: usize,
    after: usize,
    call: impl FnOnce() -> R,
    failed: impl FnOnce(&R) -> bool,
    entry: Entry,
) -> R {
    let page = |address: usize| (address as u64).checked_next_multiple_of(PAGE_BYTES);
    let (Some(from), Some(to)) = (page(before), page(after)) else { return call() };
    if to <= from {
        return take_away(Pages::covering(to, from - to), entry.slot, call, failed);
    }
    let result = call();
    if !failed(&result) && !process::is_quiet() {
        record_given(mapping::map, Pages::covering(from, to - from), false, entry);
    }
    result
}

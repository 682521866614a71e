//! Hooks of mmap and its family: explicit changes of the address space by the program.
//!
//! Only successful calls count. The order of records and real calls:
//!
//! - Pages may be taken away: a record before the call announces the change, since the kernel may
//!   give the addresses to another thread at once. A second record after the call ends the change.
//! - Pages are given: a record after the call.
//!
//! Mappings by glibc itself (malloc's arenas, threads' stacks, the loader) and by the collector are
//! not seen: these calls go to the kernel directly, or by names that cannot be interposed.
//!
//! Each hook calls the next function in the search order, once the function is known. Before, which
//! means before the program's first instruction, the hook calls the kernel.
//!
//! Each function here is the libc function of the same name, with an additional [`Entry`] from
//! `preload/`: stack address and the base pointer at the entry of the hook.

mod next;

pub use next::look_up;

use crate::thread::{Published, Thread};
use crate::unwind::Entry;
use crate::{modules, process, python, thread};
use core::ffi::c_int;
use heapline_shared_format::event;
use heapline_shared_format::mapping::{self, PAGE_BYTES, Pages};

/// Result of a failed call: `MAP_FAILED`, also returned by sbrk.
const FAILED: usize = usize::MAX;

/// Publishes the records of a hook entered at stack address `slot`, also if the caller is an
/// allocator at work.
fn record(slot: usize, publish: impl Fn(&mut Thread) -> Published) {
    thread::out_of_allocator(|| thread::record::record(slot, publish));
}

/// Whether pages with this protection are only reserved.
fn is_reserved(protection: c_int) -> bool {
    const READ_WRITE_EXECUTE: c_int = 7;
    protection & READ_WRITE_EXECUTE == 0
}

/// Records pages given by a call, with the record made by `asked_for`. Records nothing for no
/// pages.
///
/// Not inlined: a stack walk is much code, and these calls are not part of any inner loop.
#[inline(never)]
fn record_given(asked_for: AskedFor, pages: Option<Pages>, reserved: bool, entry: Entry) {
    let Some(pages) = pages.filter(|pages| !pages.is_empty()) else { return };
    record(entry.slot, |thread| {
        thread.publish_with_stack(entry, |stamp, stack| asked_for(event::mapping(stamp), pages, reserved, stack))
    });
}

/// Maker of a record: [`mapping::map`] or [`mapping::protect`].
type AskedFor = fn(u64, Pages, bool, u32) -> [u64; 4];

/// Makes a call that takes `pages` away, between two records. `failed` tells from the result
/// whether the call failed.
fn take_away<R>(pages: Option<Pages>, slot: usize, call: impl FnOnce() -> R, failed: impl FnOnce(&R) -> bool) -> R {
    // The kernel refuses all other ranges.
    let Some(pages) = pages.filter(|pages| !pages.is_empty() && !process::is_quiet()) else { return call() };
    forget_code(pages);
    record_leaving(pages, slot);
    let result = call();
    record_left(pages, failed(&result), slot);
    result
}

/// Forgets code of the program in pages that are replaced.
fn forget_code(pages: Pages) {
    let address = |address: u64| usize::try_from(address).unwrap_or(usize::MAX);
    modules::replaced(address(pages.start())..address(pages.end()));
}

#[inline(never)]
fn record_leaving(pages: Pages, slot: usize) {
    record(slot, |thread| thread.publish_plain(|stamp| mapping::unmap(event::mapping(stamp), pages)));
}

#[inline(never)]
fn record_left(pages: Pages, failed: bool, slot: usize) {
    record(slot, |thread| thread.publish_plain(|stamp| mapping::unmap_ended(event::mapping(stamp), pages, failed)));
}

/// Returns the bytes mapped by the kernel for a request of `bytes`: whole pages, or whole huge
/// pages.
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
/// The caller upholds the contract of the C function `mmap`.
pub unsafe fn mmap(
    address: usize,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: isize,
    entry: Entry,
) -> usize {
    // SAFETY: the caller upholds the contract of the C function `mmap`.
    let mapped = unsafe { next::mmap(address, bytes, protection, flags, fd, offset) };
    record_mmap(mapped, bytes, protection, flags, entry);
    mapped
}

/// `mmap64`. The C library has the same function under both names, but another library may
/// interpose only one of the names.
///
/// # Safety
/// The caller upholds the contract of the C function `mmap64`.
pub unsafe fn mmap64(
    address: usize,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: isize,
    entry: Entry,
) -> usize {
    // SAFETY: the caller upholds the contract of the C function `mmap64`.
    let mapped = unsafe { next::mmap64(address, bytes, protection, flags, fd, offset) };
    record_mmap(mapped, bytes, protection, flags, entry);
    mapped
}

fn record_mmap(mapped: usize, bytes: usize, protection: c_int, flags: c_int, entry: Entry) {
    // SAFETY: the slot holds the return address of the hook's entry.
    python::called_from(unsafe { (entry.slot as *const usize).read() });
    if mapped != FAILED && !process::is_quiet() {
        let pages = Pages::covering(mapped as u64, mapped_bytes(bytes, flags));
        pages.into_iter().for_each(forget_code);
        record_given(mapping::map, pages, is_reserved(protection), entry);
    }
}

/// `munmap`.
///
/// # Safety
/// The caller upholds the contract of the C function `munmap`.
pub unsafe fn munmap(address: usize, bytes: usize, entry: Entry) -> c_int {
    let pages = Pages::covering(address as u64, bytes as u64);
    // SAFETY: the caller upholds the contract of the C function `munmap`.
    take_away(pages, entry.slot, || unsafe { next::munmap(address, bytes) }, |&status| status != 0)
}

/// `mremap`. The last argument counts only with some flags.
///
/// # Safety
/// The caller upholds the contract of the C function `mremap`.
pub unsafe fn mremap(old: usize, old_bytes: usize, bytes: usize, flags: c_int, wanted: usize, entry: Entry) -> usize {
    const MREMAP_DONTUNMAP: c_int = 4;
    // SAFETY: the caller upholds the contract of the C function `mremap`.
    let call = || unsafe { next::mremap(old, old_bytes, bytes, flags, wanted) };
    let Some(pages) = Pages::covering(old as u64, old_bytes as u64).filter(|_| !process::is_quiet()) else {
        return call();
    };
    let stays = flags & MREMAP_DONTUNMAP != 0 || pages.is_empty();
    if !stays {
        forget_code(pages);
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
/// The caller upholds the contract of the C function `mprotect`.
pub unsafe fn mprotect(address: usize, bytes: usize, protection: c_int, entry: Entry) -> c_int {
    // SAFETY: the caller upholds the contract of the C function `mprotect`.
    let status = unsafe { next::mprotect(address, bytes, protection) };
    record_protect(status, address, bytes, protection, entry);
    status
}

/// `pkey_mprotect`.
///
/// # Safety
/// The caller upholds the contract of the C function `pkey_mprotect`.
pub unsafe fn pkey_mprotect(address: usize, bytes: usize, protection: c_int, key: c_int, entry: Entry) -> c_int {
    // SAFETY: the caller upholds the contract of the C function `pkey_mprotect`.
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
/// The caller upholds the contract of the C function `brk`.
pub unsafe fn brk(end: usize, entry: Entry) -> c_int {
    // SAFETY: `sbrk(0)` only asks; the caller upholds the contract of the C function `brk`.
    unsafe { move_break(next::sbrk(0), end, || next::brk(end), |&status| status != 0, entry) }
}

/// `sbrk`.
///
/// # Safety
/// The caller upholds the contract of the C function `sbrk`.
pub unsafe fn sbrk(increment: isize, entry: Entry) -> usize {
    if increment == 0 || process::is_quiet() {
        // SAFETY: the caller upholds the contract of the C function `sbrk`.
        return unsafe { next::sbrk(increment) };
    }
    // SAFETY: `sbrk(0)` only asks; the caller upholds the contract of the C function `sbrk`.
    unsafe {
        let before = next::sbrk(0);
        let after = before.wrapping_add_signed(increment);
        move_break(before, after, || next::sbrk(increment), |&old| old == FAILED, entry)
    }
}

/// Moves the program's break, and records the pages added or removed at the end of the data
/// segment.
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

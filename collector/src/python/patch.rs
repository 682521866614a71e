//! Jumps at the entries of the interpreter's functions, to replacements in the collector.
//!
//! A function may be patched only if no thread can stand at its first bytes. Two kinds of functions
//! qualify:
//!
//! - a function called with the interpreter's lock only;
//! - any function, before the interpreter runs its first module.
//!
//! The overwritten bytes are kept, for calls of the function itself ([`lifted`]) and for taking the
//! jump back ([`undo`]).

use crate::platform::sys;
use core::cell::UnsafeCell;
use core::ptr;
use heapline_shared_format::arch::instructions;

/// Length of a jump.
const BYTES: usize = instructions::JUMP_BYTES;
const MOST: usize = 8;
const PAGE: usize = 4096;

/// Purpose of a jump. All jumps of a purpose are taken back together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Replace the functions of CPython's tracemalloc.
    Tracemalloc,
    /// Keep the interpreter's statements about its allocators unchanged.
    View,
    /// Notice the moment in which `-X tracemalloc` begins.
    Beginning,
}

#[derive(Clone, Copy)]
struct Patch {
    purpose: Purpose,
    at: usize,
    before: [u8; BYTES],
    jump: [u8; BYTES],
}

struct Patches(UnsafeCell<[Option<Patch>; MOST]>);

// SAFETY: used with the interpreter's lock only, or while no interpreter runs.
unsafe impl Sync for Patches {}

static PATCHES: Patches = Patches(UnsafeCell::new([None; MOST]));

/// Makes the function at `at` jump to `to`, if it does not jump yet. False, and nothing done, if
/// the system forbids the change or all places are taken.
///
/// # Safety
/// 1. `at` is the entry of a function of at least [`BYTES`] bytes, and no thread runs the first
///    bytes of the function.
/// 2. `to` is a function with the same signature.
/// 3. The interpreter's lock is held.
pub unsafe fn jump(purpose: Purpose, at: usize, to: usize) -> bool {
    if patch_at(at).is_some() {
        return true;
    }
    // SAFETY: promise 3 of the caller: the interpreter's lock is held.
    let patches = unsafe { &mut *PATCHES.0.get() };
    let Some(place) = patches.iter_mut().find(|place| place.is_none()) else { return false };
    let jump = instructions::jump_to(to as u64);
    // SAFETY: promise 1 of the caller: `at` has at least `BYTES` bytes, and no thread runs them.
    unsafe {
        let before = (at as *const [u8; BYTES]).read_unaligned();
        let is_done = write(at, &jump);
        *place = is_done.then_some(Patch { purpose, at, before, jump });
        is_done
    }
}

/// Takes all jumps of a purpose back.
///
/// # Safety
/// 1. No thread stands at the first bytes of a patched function.
/// 2. The interpreter's lock is held.
pub unsafe fn undo(purpose: Purpose) {
    // SAFETY: the caller gives promises 1 and 2; the bytes written are the original bytes.
    unsafe {
        let patches = &mut *PATCHES.0.get();
        for place in patches.iter_mut().filter(|place| place.is_some_and(|patch| patch.purpose == purpose)) {
            if let Some(patch) = place.take() {
                write(patch.at, &patch.before);
            }
        }
    }
}

/// Runs `call` while the function at `at` does not jump. None, and no call, if the system forbids
/// the change.
///
/// # Safety
/// 1. No thread stands at the first bytes of the function.
/// 2. The interpreter's lock is held, and the function is called with the lock only.
pub unsafe fn lifted<R>(at: usize, call: impl FnOnce() -> R) -> Option<R> {
    let Some(patch) = patch_at(at) else { return Some(call()) };
    // SAFETY: the caller gives promises 1 and 2.
    unsafe {
        if !write(at, &patch.before) {
            return None;
        }
        let result = call();
        // The call itself may have taken the jump back.
        if patch_at(at).is_some() {
            write(at, &patch.jump);
        }
        Some(result)
    }
}

/// Forgets all jumps after the interpreter's code was unloaded.
///
/// # Safety
/// No interpreter runs.
pub unsafe fn forget_all() {
    // SAFETY: the caller guarantees that no interpreter runs, so nobody uses `PATCHES`.
    unsafe { *PATCHES.0.get() = [None; MOST] };
}

fn patch_at(at: usize) -> Option<Patch> {
    // SAFETY: used with the interpreter's lock only (see `Patches`).
    let patches = unsafe { &*PATCHES.0.get() };
    patches.iter().flatten().find(|patch| patch.at == at).copied()
}

unsafe fn write(at: usize, code: &[u8; BYTES]) -> bool {
    let page = at & !(PAGE - 1);
    let bytes = (at + BYTES).next_multiple_of(PAGE) - page;
    // SAFETY: the callers guarantee that `at` has `BYTES` bytes and that no thread runs them. The
    // pages are code of a loaded object, and stay executable all the time.
    unsafe {
        if !sys::protect(page, bytes, sys::READ_WRITE_EXECUTE) {
            return false;
        }
        ptr::copy_nonoverlapping(code.as_ptr(), at as *mut u8, BYTES);
        sys::protect(page, bytes, sys::READ_EXECUTE);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    extern "C" fn own(number: u64) -> u64 {
        // Longer than a jump.
        std::format!("{number}").len() as u64 + core::hint::black_box(40)
    }

    extern "C" fn ours(number: u64) -> u64 {
        core::hint::black_box(number) + 1000
    }

    #[test]
    fn a_function_jumps_is_called_by_itself_and_is_let_go() {
        let call = |number| core::hint::black_box(own as extern "C" fn(u64) -> u64)(number);
        let (at, to) = (own as *const () as usize, ours as *const () as usize);
        assert_eq!(call(7), 41);
        // SAFETY: no other thread calls the function during this test.
        unsafe {
            assert!(jump(Purpose::Beginning, at, to));
            assert!(jump(Purpose::Beginning, at, to), "once more is no other jump");
            assert_eq!(call(7), 1007);
            assert_eq!(lifted(at, || call(7)), Some(41));
            assert_eq!(call(7), 1007, "as before the call");
            undo(Purpose::View);
            assert_eq!(call(7), 1007, "another purpose's");
            assert_eq!(lifted(at, || undo(Purpose::Beginning)), Some(()));
            assert_eq!(call(7), 41, "taken back from inside");
            assert_eq!(lifted(at, || call(123)), Some(43), "a function that does not jump");
        }
    }
}

//! A jump at the entry of one of the interpreter's functions, to a function of ours.
//!
//! Only before the interpreter runs its first module: no thread stands in these functions then. What was there is kept,
//! for a forked child, which has to get on without us.

use crate::sys;
use core::cell::UnsafeCell;
use core::ptr;

/// `jmp qword ptr [rip]`, and the address.
const BYTES: usize = 14;
const OPCODE: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];
const MOST: usize = 4;
const PAGE: usize = 4096;

#[derive(Clone, Copy)]
struct Patch {
    at: usize,
    before: [u8; BYTES],
}

struct Patches(UnsafeCell<([Patch; MOST], usize)>);

// SAFETY: used with the interpreter's lock only.
unsafe impl Sync for Patches {}

static PATCHES: Patches = Patches(UnsafeCell::new(([Patch { at: 0, before: [0; BYTES] }; MOST], 0)));

/// Makes the function at `at` jump to `to`. False, and nothing done, where the system forbids it.
///
/// # Safety
/// 1. `at` is the entry of a function of at least [`BYTES`] bytes, which no thread runs, and `to` one with its signature.
/// 2. The interpreter's lock is held.
pub unsafe fn jump(at: usize, to: usize) -> bool {
    // SAFETY: promise 2.
    let (patches, count) = unsafe { &mut *PATCHES.0.get() };
    let Some(place) = patches.get_mut(*count) else { return false };
    let mut code = [0; BYTES];
    code[..OPCODE.len()].copy_from_slice(&OPCODE);
    code[OPCODE.len()..].copy_from_slice(&to.to_le_bytes());
    // SAFETY: promise 1; so for below.
    unsafe {
        *place = Patch { at, before: (at as *const [u8; BYTES]).read_unaligned() };
        let is_done = write(at, &code);
        *count += usize::from(is_done);
        is_done
    }
}

/// Takes all jumps back.
///
/// # Safety
/// No thread stands at the first bytes of a function that was changed; the interpreter's lock is held.
pub unsafe fn undo() {
    // SAFETY: the caller's promise; what is written is what was there.
    unsafe {
        let (patches, count) = &mut *PATCHES.0.get();
        for patch in patches.iter().take(core::mem::take(count)) {
            write(patch.at, &patch.before);
        }
    }
}

unsafe fn write(at: usize, code: &[u8; BYTES]) -> bool {
    let page = at & !(PAGE - 1);
    let bytes = (at + BYTES).next_multiple_of(PAGE) - page;
    // SAFETY: the callers' promise; the pages are code of a loaded object, and stay executable all the time.
    unsafe {
        if !sys::protect(page, bytes, sys::READ_WRITE_EXECUTE) {
            return false;
        }
        ptr::copy_nonoverlapping(code.as_ptr(), at as *mut u8, BYTES);
        sys::protect(page, bytes, sys::READ_EXECUTE);
    }
    true
}

//! The word that the collector fills, and the note that names the word (`heapline.h` has the same).

use core::sync::atomic::{AtomicPtr, Ordering};

/// The functions of the collector. A text is bytes with a length.
#[repr(C)]
pub struct Functions {
    version: u64,
    pub mark: extern "C" fn(text: *const u8, bytes: usize),
    pub track: extern "C" fn(pool: *const u8, bytes: usize, address: *const u8, size: usize),
    pub untrack: extern "C" fn(pool: *const u8, bytes: usize, address: *const u8),
    pub pause: extern "C" fn(),
    pub resume: extern "C" fn(),
}

/// The word of this executable or library; null where nobody traces.
static FUNCTIONS: AtomicPtr<Functions> = AtomicPtr::new(core::ptr::null_mut());

core::arch::global_asm!(
    ".pushsection .note.heapline.calls,\"a\",%note",
    ".balign 4",
    ".long 9",
    ".long 8",
    ".long 2",
    ".asciz \"Heapline\"",
    ".balign 4",
    "0: .quad {word} - 0b",
    ".popsection",
    word = sym FUNCTIONS,
);

/// Returns the functions; `None` where nobody traces.
#[inline]
pub fn functions() -> Option<&'static Functions> {
    // SAFETY: the word is null, or the collector has stored the address of a table of functions
    // that stays for ever.
    unsafe { FUNCTIONS.load(Ordering::Acquire).as_ref() }
}

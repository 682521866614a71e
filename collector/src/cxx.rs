//! C++ operators new and delete of a program with its own allocator, for direct calls led to the
//! collector.
//!
//! The operators of the C++ library end in `malloc` and `free`, where the hooks record the calls.
//! These operators need no hook of their own. Doors ([`crate::doors`]) record the operators of an
//! allocator. Only direct calls have entries of their own (`preload/src/direct.rs`).

use crate::hooks;
use crate::platform::symbols;
use crate::unwind::Entry;
use core::ffi::CStr;
use core::sync::atomic::{AtomicPtr, Ordering};

/// The operators, in the order of the entry points: eight of new, twelve of delete.
pub const SYMBOLS: [&CStr; 20] = [
    c"_Znwm",
    c"_Znam",
    c"_ZnwmRKSt9nothrow_t",
    c"_ZnamRKSt9nothrow_t",
    c"_ZnwmSt11align_val_t",
    c"_ZnamSt11align_val_t",
    c"_ZnwmSt11align_val_tRKSt9nothrow_t",
    c"_ZnamSt11align_val_tRKSt9nothrow_t",
    c"_ZdlPv",
    c"_ZdaPv",
    c"_ZdlPvm",
    c"_ZdaPvm",
    c"_ZdlPvSt11align_val_t",
    c"_ZdaPvSt11align_val_t",
    c"_ZdlPvmSt11align_val_t",
    c"_ZdaPvmSt11align_val_t",
    c"_ZdlPvRKSt9nothrow_t",
    c"_ZdaPvRKSt9nothrow_t",
    c"_ZdlPvSt11align_val_tRKSt9nothrow_t",
    c"_ZdaPvSt11align_val_tRKSt9nothrow_t",
];

/// The operators called before calls were led here.
static ORIGINALS: [AtomicPtr<()>; SYMBOLS.len()] = [const { AtomicPtr::new(core::ptr::null_mut()) }; SYMBOLS.len()];

/// Finds the original operators. To be called before any call is led here, while the list of
/// objects does not change.
pub fn find_originals() {
    for (place, name) in ORIGINALS.iter().zip(SYMBOLS) {
        let found = symbols::find(name.to_bytes()).unwrap_or(0);
        place.store(core::ptr::with_exposed_provenance_mut(found), Ordering::Release);
    }
}

/// Returns the original operator number `index`.
pub extern "C" fn original(index: usize) -> *mut () {
    ORIGINALS[index].load(Ordering::Acquire)
}

/// Records the block of an operator new that recorded nothing itself. To be called after the
/// operator.
pub extern "C" fn record_new(block: *mut u8, size: usize, slot: usize, bp: usize) -> *mut u8 {
    hooks::record_alloc(block, size, Entry { slot, bp });
    block
}

/// Records the free of an operator delete that records nothing itself. To be called before the
/// operator.
pub extern "C" fn record_delete(block: *mut u8, slot: usize) {
    hooks::record_free(block, slot);
}

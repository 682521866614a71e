//! C++ operator new and delete.
//!
//! The standard library's end in `malloc` and `free`, where they are recorded; then these hooks are a jump. Only
//! where the provider of `malloc` brings operators of its own (tcmalloc, jemalloc, mimalloc), which never call it by
//! name, are blocks recorded here. Which of the two holds is found out at the first call, when a C++ runtime is sure
//! to be loaded.
//!
//! The entry points are in `preload/`, in assembly, since an exception (`bad_alloc`) must pass through them.

use crate::elf;
use crate::hooks;
use crate::unwind::Entry;
use crate::{real, thread};
use core::ffi::CStr;
use core::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

/// [`MODE`]: not yet known.
pub const UNKNOWN: u8 = 0;
/// [`MODE`]: the operators end in malloc and free; jump.
pub const PASS: u8 = 1;
/// [`MODE`]: record here.
pub const RECORD: u8 = 2;

/// Which of the above; read by the entry points.
pub static MODE: AtomicU8 = AtomicU8::new(UNKNOWN);

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

const FIRST_DELETE: usize = 8;

/// The real operators; read by the entry points once [`MODE`] is [`PASS`].
pub static REAL: [AtomicPtr<()>; SYMBOLS.len()] = [const { AtomicPtr::new(core::ptr::null_mut()) }; SYMBOLS.len()];

/// Looks the operators up for a first call from `caller`; returns the one asked for.
pub extern "C" fn resolve(index: usize, caller: usize) -> *mut () {
    let known = REAL[index].load(Ordering::Acquire);
    if !known.is_null() && MODE.load(Ordering::Acquire) != UNKNOWN {
        return known;
    }
    let errno = real::errno();
    for (i, (place, symbol)) in REAL.iter().zip(SYMBOLS).enumerate() {
        let found = find(symbol, caller);
        let fallback = if i < FIRST_DELETE { fallback_new as *mut () } else { fallback_delete as *mut () };
        place.store(if found.is_null() { fallback } else { found }, Ordering::Release);
    }
    let provider = |address: usize| elf::find_object(address).map(|object| object.start);
    let operators = provider(REAL[0].load(Ordering::Relaxed).addr());
    let mode = if operators.is_some() && operators == provider(real::malloc_address()) { RECORD } else { PASS };
    MODE.store(mode, Ordering::Release);
    real::set_errno(errno);
    REAL[index].load(Ordering::Relaxed)
}

/// The next operator in the search order. A library that was opened locally (a Python extension, say) brings its C++
/// runtime in a scope of its own, so then it is asked for what it depends on.
fn find(symbol: &CStr, caller: usize) -> *mut () {
    let next = real::next(symbol);
    if !next.is_null() {
        return next;
    }
    match elf::find_object(caller) {
        Some(object) => real::inside(object.handle(), symbol),
        None => core::ptr::null_mut(),
    }
}

/// For a program that uses operator new but has no C++ runtime that could be found.
unsafe extern "C" fn fallback_new(size: usize) -> *mut u8 {
    // SAFETY: any size may be asked for.
    unsafe { real::real().malloc(size.max(1)) }
}

unsafe extern "C" fn fallback_delete(block: *mut u8) {
    // SAFETY: the block came from `fallback_new`.
    unsafe { real::real().free(block) }
}

/// After an operator new that recorded nothing itself.
pub extern "C" fn record_new(block: *mut u8, size: usize, slot: usize, rbp: usize) -> *mut u8 {
    if MODE.load(Ordering::Relaxed) == RECORD {
        hooks::record_alloc(block, size, Entry { slot, rbp });
    }
    block
}

/// Before an operator delete that records nothing itself.
pub extern "C" fn record_delete(block: *mut u8) {
    if MODE.load(Ordering::Relaxed) == RECORD {
        hooks::record_free(block, thread::stack_pointer());
    }
}

//! Which C library the process has.
//!
//! The collector needs little of the C library, and gets the same from glibc and from musl. What
//! differs in musl:
//!
//! 1. The loader and the C library are one object, without unwind tables: frames are left by their
//!    machine code (`unwind/cfi.rs`).
//! 2. `calloc` and the functions for aligned blocks call other functions of the allocator by their
//!    names: the thread is marked meanwhile (`real.rs`).
//! 3. `dl_iterate_phdr` holds no lock while it calls back, the program has a name, and nothing is
//!    unloaded ([`super::objects`]).
//! 4. A library of a running program has no thread-local storage at a fixed place ([`super::tls`]).

optional!(
    /// `_dl_debug_addr`, of musl: where debuggers find the list of objects.
    debug_address,
    "musl_debug_address",
    "_dl_debug_addr"
);

/// Returns whether the C library is musl.
#[inline]
pub fn is_musl() -> bool {
    debug_address() != 0
}

/// Returns the address of musl's description of its objects (`struct r_debug`); 0 with glibc.
pub fn musl_debug() -> usize {
    match debug_address() {
        0 => 0,
        // SAFETY: the variable of this name holds the address, from before the program begins.
        place => unsafe { (place as *const usize).read() },
    }
}

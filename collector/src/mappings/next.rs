//! The real functions behind the hooks: the next functions in the search order, once looked up;
//! before, the kernel.
//!
//! Another library (a tracer's, a driver's) may stand between the program and the C library, so the
//! next function in the search order is called. The functions are looked up together with malloc,
//! never in a hook: an allocator makes these calls with locks held, and at times before the process
//! has an environment.

use crate::platform::sys;
use crate::real;
use crate::real::set_errno;
use core::ffi::{CStr, c_int};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

optional!(
    /// glibc's sbrk, by a name not interposed by anybody.
    sbrk_address,
    "sbrk_address",
    "__sbrk"
);

macro_rules! functions {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty, $symbol:literal, $early:expr;)*) => {
        struct Next {
            $($name: AtomicPtr<()>,)*
        }

        static NEXT: Next = Next { $($name: AtomicPtr::new(ptr::null_mut()),)* };

        $(
            /// Calls the next function of this name, or the kernel before the functions are looked
            /// up.
            ///
            /// # Safety
            /// The caller upholds the contract of the C function of this name.
            pub unsafe fn $name($($arg: $type),*) -> $result {
                let function = NEXT.$name.load(Ordering::Relaxed);
                if function.is_null() {
                    // SAFETY: the caller upholds the contract of the C function, which is the
                    // system call's.
                    return unsafe { $early };
                }
                // SAFETY: `function` is the C function of this name.
                unsafe {
                    let function: unsafe extern "C" fn($($type),*) -> $result = core::mem::transmute(function);
                    function($($arg),*)
                }
            }
        )*

        /// Looks all functions up in the search order. glibc has all of them: a failed lookup,
        /// which would allocate, does not happen.
        pub fn look_up() {
            let find = |name: &CStr| real::next(name);
            $(NEXT.$name.store(find($symbol), Ordering::Relaxed);)*
        }
    };
}

functions! {
    mmap(address: usize, bytes: usize, protection: c_int, flags: c_int, fd: c_int, offset: isize) -> usize, c"mmap",
        address_of(sys::mmap(address, bytes, protection, flags, fd, offset));
    mmap64(address: usize, bytes: usize, protection: c_int, flags: c_int, fd: c_int, offset: isize) -> usize, c"mmap64",
        address_of(sys::mmap(address, bytes, protection, flags, fd, offset));
    munmap(address: usize, bytes: usize) -> c_int, c"munmap", status(sys::munmap(address, bytes));
    mremap(old: usize, old_bytes: usize, bytes: usize, flags: c_int, wanted: usize) -> usize, c"mremap",
        address_of(sys::mremap(old, old_bytes, bytes, flags, wanted));
    mprotect(address: usize, bytes: usize, protection: c_int) -> c_int, c"mprotect",
        status(sys::mprotect(address, bytes, protection));
    pkey_mprotect(address: usize, bytes: usize, protection: c_int, key: c_int) -> c_int, c"pkey_mprotect",
        status(sys::pkey_mprotect(address, bytes, protection, key));
    sbrk(increment: isize) -> usize, c"sbrk", early_sbrk(increment);
    brk(end: usize) -> c_int, c"brk", early_brk(end);
}

/// sbrk before the functions are looked up. Fails with ENOMEM if the C library is not glibc.
unsafe fn early_sbrk(increment: isize) -> usize {
    const ENOMEM: c_int = 12;
    let sbrk = sbrk_address();
    if sbrk == 0 {
        set_errno(ENOMEM);
        return usize::MAX;
    }
    // SAFETY: glibc's function; the caller upholds the contract of the C function `sbrk`.
    unsafe { core::mem::transmute::<usize, unsafe extern "C" fn(isize) -> usize>(sbrk)(increment) }
}

/// brk before the functions are looked up. Calls [`early_sbrk`], since glibc keeps the break for
/// both.
unsafe fn early_brk(end: usize) -> c_int {
    // SAFETY: the caller upholds the contract of the C function `brk`.
    unsafe {
        let before = early_sbrk(0);
        if early_sbrk(end.wrapping_sub(before).cast_signed()) == usize::MAX { -1 } else { 0 }
    }
}

/// Turns the kernel's answer into the C library's result: an address, or `MAP_FAILED` with errno.
fn address_of(answer: Result<usize, i32>) -> usize {
    answer.unwrap_or_else(|error| {
        set_errno(error);
        usize::MAX
    })
}

fn status(answer: Result<usize, i32>) -> c_int {
    match answer {
        Ok(_) => 0,
        Err(error) => {
            set_errno(error);
            -1
        }
    }
}

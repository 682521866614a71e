//! The real functions: what the search order has after the collector, once it was asked; the kernel before.
//!
//! Another library may stand between the program and the C library here too (a tracer's, a driver's), so it is called. It is
//! looked up with malloc and never in one of these calls: an allocator makes them with its locks held, and at times before
//! the process has an environment.

use crate::platform::sys;
use crate::real;
use crate::real::set_errno;
use core::ffi::{CStr, c_int};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

optional!(
    /// glibc's sbrk, by a name that nobody interposes.
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
            /// # Safety
            /// As the C function's.
            pub unsafe fn $name($($arg: $type),*) -> $result {
                let function = NEXT.$name.load(Ordering::Relaxed);
                if function.is_null() {
                    // SAFETY: the caller's promise is that of the system call.
                    return unsafe { $early };
                }
                // SAFETY: the C function of that name.
                unsafe {
                    let function: unsafe extern "C" fn($($type),*) -> $result = core::mem::transmute(function);
                    function($($arg),*)
                }
            }
        )*

        /// Asks the search order for all of them. glibc has them all, so no question fails, which would allocate.
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

/// sbrk; where the C library is not glibc, there is no memory to be had that way before the
/// functions are looked up.
unsafe fn early_sbrk(increment: isize) -> usize {
    const ENOMEM: c_int = 12;
    let sbrk = sbrk_address();
    if sbrk == 0 {
        set_errno(ENOMEM);
        return usize::MAX;
    }
    // SAFETY: glibc's function, and the caller's promise.
    unsafe { core::mem::transmute::<usize, unsafe extern "C" fn(isize) -> usize>(sbrk)(increment) }
}

/// brk by way of [`early_sbrk`], since glibc keeps the break for both.
unsafe fn early_brk(end: usize) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let before = early_sbrk(0);
        if early_sbrk(end.wrapping_sub(before).cast_signed()) == usize::MAX { -1 } else { 0 }
    }
}

/// What the C library makes of the kernel's answer.
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

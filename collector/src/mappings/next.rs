//! The real functions: what the search order has after the collector, once it was asked; the kernel before.
//!
//! Another library may stand between the program and the C library here too (a tracer's, a driver's), so it is called. It is
//! looked up with malloc and never in one of these calls: an allocator makes them with its locks held, and at times before
//! the process has an environment.

use crate::real::{self, set_errno};
use crate::sys;
use core::ffi::{CStr, c_int};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

unsafe extern "C" {
    /// sbrk by a name that nobody interposes.
    fn __sbrk(increment: isize) -> *mut u8;
}

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
    sbrk(increment: isize) -> usize, c"sbrk", __sbrk(increment).addr();
    brk(end: usize) -> c_int, c"brk", early_brk(end);
}

/// brk by way of [`__sbrk`], since glibc keeps the break for both.
unsafe fn early_brk(end: usize) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let before = __sbrk(0).addr();
        if __sbrk(end.wrapping_sub(before).cast_signed()).addr() == usize::MAX { -1 } else { 0 }
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

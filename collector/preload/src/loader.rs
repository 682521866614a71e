//! Hooks of calls into the loader, and of calls that change the ground under the collector.

use crate::arch::entries::jump_or_call;
use core::ffi::{c_char, c_int, c_uint, c_ulong, c_void};
use heapline_collector::attach::late;
use heapline_collector::{fork as forks, loader};

/// Hook of `dlclose`.
///
/// # Safety
/// The caller upholds the contract of the C function `dlclose`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlclose(handle: *mut c_void) -> c_int {
    // SAFETY: the caller upholds the contract of the C function `dlclose`.
    unsafe { loader::dlclose(handle) }
}

/// Hook of `mlockall`.
///
/// # Safety
/// The caller upholds the contract of the C function `mlockall`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlockall(flags: c_int) -> c_int {
    // SAFETY: the caller upholds the contract of the C function `mlockall`.
    unsafe { loader::mlockall(flags) }
}

/// Hook of `sigaltstack`.
///
/// # Safety
/// The caller upholds the contract of the C function `sigaltstack`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaltstack(new: *const c_void, old: *mut c_void) -> c_int {
    // SAFETY: the caller upholds the contract of the C function `sigaltstack`.
    unsafe { loader::sigaltstack(new, old) }
}

/// Hook of `prctl`. The variable arguments of `prctl` are at most four words.
///
/// # Safety
/// The caller upholds the contract of the C function `prctl`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int {
    // SAFETY: the caller upholds the contract of the C function `prctl`.
    unsafe { loader::prctl(option, a, b, c, d) }
}

/// Hook of `pthread_key_create`.
///
/// # Safety
/// The caller upholds the contract of the C function `pthread_key_create`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_key_create(key: *mut c_uint, destructor: *const c_void) -> c_int {
    // SAFETY: the caller upholds the contract of the C function `pthread_key_create`.
    unsafe { loader::pthread_key_create(key, destructor) }
}

/// Hook of `fork`.
///
/// # Safety
/// The caller upholds the contract of the C function `fork`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fork() -> c_int {
    // SAFETY: the caller upholds the contract of the C function `fork`.
    unsafe { forks::fork() }
}

/// Defines an entry that asks `$jump_to` for an address, with the caller's address behind the
/// arguments. The entry jumps to the address, and calls `$call` for a null address. A jump keeps
/// the caller visible to the loader, because the loader's behaviour may depend on the caller.
macro_rules! jumps_or_calls {
    ($name:ident($($arg:ident: $type:ty),*), $jump_to:path, $call:path) => {
        /// Hook of a function of the loader.
        ///
        /// # Safety
        /// The caller upholds the contract of the C function.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> *mut c_void {
            jump_or_call!($jump_to, $call)
        }
    };
}

jumps_or_calls!(dlopen(file: *const c_char, mode: c_int), late::jump_to_dlopen, late::dlopen);
jumps_or_calls!(dlmopen(space: isize, file: *const c_char, mode: c_int), late::jump_to_dlmopen, late::dlmopen);
jumps_or_calls!(dlsym(handle: *mut c_void, name: *const c_char), late::jump_to_dlsym, late::dlsym);
jumps_or_calls!(
    dlvsym(handle: *mut c_void, name: *const c_char, version: *const c_char),
    late::jump_to_dlvsym,
    late::dlvsym
);

//! Calls into the loader, and others that change the ground under the collector.

use core::arch::naked_asm;
use core::ffi::{c_char, c_int, c_ulong, c_void};
use heapline_collector::attach::late;
use heapline_collector::{fork as forks, loader};

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlclose(handle: *mut c_void) -> c_int {
    // SAFETY: the caller's promise is the C function's.
    unsafe { loader::dlclose(handle) }
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlockall(flags: c_int) -> c_int {
    // SAFETY: the caller's promise is the C function's.
    unsafe { loader::mlockall(flags) }
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaltstack(new: *const c_void, old: *mut c_void) -> c_int {
    // SAFETY: the caller's promise is the C function's.
    unsafe { loader::sigaltstack(new, old) }
}

/// # Safety
/// As the C function, whose variable arguments are at most four words.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int {
    // SAFETY: the caller's promise is the C function's.
    unsafe { loader::prctl(option, a, b, c, d) }
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fork() -> c_int {
    // SAFETY: the caller's promise is the C function's.
    unsafe { forks::fork() }
}

/// An entry that asks where to jump to, with the caller's address behind the arguments, and calls
/// where the answer is nowhere: what the loader does for a call may depend on who makes it.
macro_rules! jumps_or_calls {
    ($name:ident($($arg:ident: $type:ty),*), $jump_to:path, $call:path) => {
        /// # Safety
        /// As the C function.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> *mut c_void {
            naked_asm!(
                ".cfi_startproc",
                "push rdi",
                ".cfi_adjust_cfa_offset 8",
                "push rsi",
                ".cfi_adjust_cfa_offset 8",
                "push rdx",
                ".cfi_adjust_cfa_offset 8",
                "mov rcx, qword ptr [rsp + 24]",
                "call {jump_to}",
                "pop rdx",
                ".cfi_adjust_cfa_offset -8",
                "pop rsi",
                ".cfi_adjust_cfa_offset -8",
                "pop rdi",
                ".cfi_adjust_cfa_offset -8",
                "test rax, rax",
                "jz {call}",
                "jmp rax",
                ".cfi_endproc",
                jump_to = sym $jump_to,
                call = sym $call,
            )
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

//! malloc and its family.

use core::arch::naked_asm;
use core::ffi::c_int;
use heapline_collector::hooks;
use heapline_collector::unwind::Entry;

/// An entry that passes the arguments on, and behind them the place of the return address and rbp.
macro_rules! entry {
    ($name:ident, $hook:ident($($arg:ident: $type:ty),*) -> $result:ty, $slot:literal, $rbp:literal) => {
        /// # Safety
        /// As the C function.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> $result {
            naked_asm!(
                // A signal may come right here, and its handler may allocate: the walk must find its way through.
                ".cfi_startproc",
                concat!("mov ", $slot, ", rsp"),
                concat!("mov ", $rbp, ", rbp"),
                "jmp {hook}",
                ".cfi_endproc",
                hook = sym $hook,
            )
        }

        unsafe extern "C" fn $hook($($arg: $type,)* slot: usize, rbp: usize) -> $result {
            // SAFETY: the caller's call, passed on.
            unsafe { hooks::$name($($arg,)* Entry { slot, rbp }) }
        }
    };
}

entry!(malloc, hook_malloc(size: usize) -> *mut u8, "rsi", "rdx");
entry!(calloc, hook_calloc(count: usize, size: usize) -> *mut u8, "rdx", "rcx");
entry!(realloc, hook_realloc(old: *mut u8, size: usize) -> *mut u8, "rdx", "rcx");
entry!(reallocarray, hook_reallocarray(old: *mut u8, count: usize, size: usize) -> *mut u8, "rcx", "r8");
entry!(posix_memalign, hook_posix_memalign(result: *mut *mut u8, align: usize, size: usize) -> c_int, "rcx", "r8");
entry!(aligned_alloc, hook_aligned_alloc(align: usize, size: usize) -> *mut u8, "rdx", "rcx");
entry!(memalign, hook_memalign(align: usize, size: usize) -> *mut u8, "rdx", "rcx");
entry!(valloc, hook_valloc(size: usize) -> *mut u8, "rsi", "rdx");
entry!(pvalloc, hook_pvalloc(size: usize) -> *mut u8, "rsi", "rdx");

/// An entry that passes the block on, and the place of the return address.
macro_rules! free_entry {
    ($name:ident($($arg:ident: $type:ty),*)) => {
        /// # Safety
        /// As the C function.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $type),*) {
            naked_asm!(".cfi_startproc", "mov rsi, rsp", "jmp {hook}", ".cfi_endproc", hook = sym hook_free)
        }
    };
}

free_entry!(free(block: *mut u8));
free_entry!(cfree(block: *mut u8));
free_entry!(free_sized(block: *mut u8, size: usize));
free_entry!(free_aligned_sized(block: *mut u8, align: usize, size: usize));

unsafe extern "C" fn hook_free(block: *mut u8, slot: usize) {
    // SAFETY: the caller's call, passed on.
    unsafe { hooks::free(block, slot) }
}

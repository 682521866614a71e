//! Hooks of malloc and its family.

use crate::direct::{direct, direct_free};
use crate::entry::entry;
use core::arch::naked_asm;
use core::ffi::c_int;
use heapline_collector::hooks;

entry!(hooks::malloc, hook_malloc(size: usize) -> *mut u8, "rsi", "rdx");
direct!("malloc", hook_malloc, "rsi", "rdx");
entry!(hooks::calloc, hook_calloc(count: usize, size: usize) -> *mut u8, "rdx", "rcx");
direct!("calloc", hook_calloc, "rdx", "rcx");
entry!(hooks::realloc, hook_realloc(old: *mut u8, size: usize) -> *mut u8, "rdx", "rcx");
direct!("realloc", hook_realloc, "rdx", "rcx");
entry!(hooks::reallocarray, hook_reallocarray(old: *mut u8, count: usize, size: usize) -> *mut u8, "rcx", "r8");
direct!("reallocarray", hook_reallocarray, "rcx", "r8");
entry!(hooks::posix_memalign, hook_posix_memalign(result: *mut *mut u8, align: usize, size: usize) -> c_int, "rcx", "r8");
direct!("posix_memalign", hook_posix_memalign, "rcx", "r8");
entry!(hooks::aligned_alloc, hook_aligned_alloc(align: usize, size: usize) -> *mut u8, "rdx", "rcx");
direct!("aligned_alloc", hook_aligned_alloc, "rdx", "rcx");
entry!(hooks::memalign, hook_memalign(align: usize, size: usize) -> *mut u8, "rdx", "rcx");
direct!("memalign", hook_memalign, "rdx", "rcx");
entry!(hooks::valloc, hook_valloc(size: usize) -> *mut u8, "rsi", "rdx");
direct!("valloc", hook_valloc, "rsi", "rdx");
entry!(hooks::pvalloc, hook_pvalloc(size: usize) -> *mut u8, "rsi", "rdx");
direct!("pvalloc", hook_pvalloc, "rsi", "rdx");

/// Defines an entry that passes on the block, and the place of the return address.
macro_rules! free_entry {
    ($name:ident($($arg:ident: $type:ty),*)) => {
        /// Hook of a function that frees a block.
        ///
        /// # Safety
        /// The caller upholds the contract of the C function.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $type),*) {
            naked_asm!(".cfi_startproc", "mov rsi, rsp", "jmp {hook}", ".cfi_endproc", hook = sym hook_free)
        }
    };
}

free_entry!(free(block: *mut u8));
direct_free!("free", hook_free);
free_entry!(cfree(block: *mut u8));
direct_free!("cfree", hook_free);
free_entry!(free_sized(block: *mut u8, size: usize));
direct_free!("free_sized", hook_free);
free_entry!(free_aligned_sized(block: *mut u8, align: usize, size: usize));
direct_free!("free_aligned_sized", hook_free);

unsafe extern "C" fn hook_free(block: *mut u8, slot: usize) {
    // SAFETY: the caller upholds the contract of the C function.
    unsafe { hooks::free(block, slot) }
}

//! Hooks of malloc and its family.

use crate::arch::direct::{direct, direct_free};
use crate::entry::entry;
use core::ffi::c_int;
use heapline_collector::hooks;

entry!(hooks::malloc, hook_malloc(size: usize) -> *mut u8);
direct!("malloc", hook_malloc, 1);
entry!(hooks::calloc, hook_calloc(count: usize, size: usize) -> *mut u8);
direct!("calloc", hook_calloc, 2);
entry!(hooks::realloc, hook_realloc(old: *mut u8, size: usize) -> *mut u8);
direct!("realloc", hook_realloc, 2);
entry!(hooks::reallocarray, hook_reallocarray(old: *mut u8, count: usize, size: usize) -> *mut u8);
direct!("reallocarray", hook_reallocarray, 3);
entry!(hooks::posix_memalign, hook_posix_memalign(result: *mut *mut u8, align: usize, size: usize) -> c_int);
direct!("posix_memalign", hook_posix_memalign, 3);
entry!(hooks::aligned_alloc, hook_aligned_alloc(align: usize, size: usize) -> *mut u8);
direct!("aligned_alloc", hook_aligned_alloc, 2);
entry!(hooks::memalign, hook_memalign(align: usize, size: usize) -> *mut u8);
direct!("memalign", hook_memalign, 2);
entry!(hooks::valloc, hook_valloc(size: usize) -> *mut u8);
direct!("valloc", hook_valloc, 1);
entry!(hooks::pvalloc, hook_pvalloc(size: usize) -> *mut u8);
direct!("pvalloc", hook_pvalloc, 1);

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
            heapline_collector::enter_with_slot!([block], hook_free)
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

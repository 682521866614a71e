//! Hooks of mmap and its family.

use crate::arch::entries::enter_with_place_on_stack;
use crate::entry::entry;
use core::ffi::c_int;
use heapline_collector::mappings;
use heapline_collector::unwind::Entry;

/// Defines an entry of a function whose arguments take all six registers. The place of the return
/// address, and the base pointer, go behind the arguments on the stack.
macro_rules! full_entry {
    ($name:ident, $hook:ident($($arg:ident: $type:ty),*) -> $result:ty, $call:expr) => {
        /// Hook of a function with six arguments.
        ///
        /// # Safety
        /// The caller upholds the contract of the C function.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> $result {
            enter_with_place_on_stack!($hook)
        }

        unsafe extern "C" fn $hook($($arg: $type,)* slot: usize, bp: usize) -> $result {
            let call: unsafe fn($($type,)* Entry) -> $result = $call;
            // SAFETY: the caller upholds the contract of the C function.
            unsafe { call($($arg,)* Entry { slot, bp }) }
        }
    };
}

// All exported functions of the family, each with the hook for a call. The exported symbol itself
// is the entry, since only the symbol knows where the call entered.
full_entry!(mmap, hook_mmap(
    address: usize, bytes: usize, protection: c_int, flags: c_int, fd: c_int, offset: isize
) -> usize, mappings::mmap);
full_entry!(mmap64, hook_mmap64(
    address: usize, bytes: usize, protection: c_int, flags: c_int, fd: c_int, offset: isize
) -> usize, mappings::mmap64);
// The fifth argument of `mremap` is a variable argument, and there is no sixth.
full_entry!(mremap, hook_mremap(
    old: usize, old_bytes: usize, bytes: usize, flags: c_int, wanted: usize, _nothing: usize
) -> usize, |old, old_bytes, bytes, flags, wanted, _, entry| {
    // SAFETY: the caller upholds the contract of the C function `mremap`.
    unsafe { mappings::mremap(old, old_bytes, bytes, flags, wanted, entry) }
});
entry!(mappings::mprotect, hook_mprotect(address: usize, bytes: usize, protection: c_int) -> c_int);
entry!(
    mappings::pkey_mprotect,
    hook_pkey_mprotect(address: usize, bytes: usize, protection: c_int, key: c_int) -> c_int
);
entry!(mappings::munmap, hook_munmap(address: usize, bytes: usize) -> c_int);
entry!(mappings::brk, hook_brk(end: usize) -> c_int);
entry!(mappings::sbrk, hook_sbrk(increment: isize) -> usize);

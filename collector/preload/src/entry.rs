//! The usual entry: the arguments leave registers free for the place of the return address and rbp.

/// Defines an entry that passes the arguments on, with the place of the return address and rbp
/// behind.
macro_rules! entry {
    ($module:ident::$name:ident, $hook:ident($($arg:ident: $type:ty),*) -> $result:ty, $slot:literal, $rbp:literal) => {
        /// Hook of the C function with this name.
        ///
        /// # Safety
        /// The caller upholds the contract of the C function.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> $result {
            core::arch::naked_asm!(
                // A signal may come right here, and the handler may allocate: the walk must find
                // the way through.
                ".cfi_startproc",
                concat!("mov ", $slot, ", rsp"),
                concat!("mov ", $rbp, ", rbp"),
                "jmp {hook}",
                ".cfi_endproc",
                hook = sym $hook,
            )
        }

        unsafe extern "C" fn $hook($($arg: $type,)* slot: usize, rbp: usize) -> $result {
            // SAFETY: the caller upholds the contract of the C function.
            unsafe { heapline_collector::$module::$name($($arg,)* heapline_collector::unwind::Entry { slot, rbp }) }
        }
    };
}

pub(crate) use entry;

//! The usual entry: registers are left for what only it knows.

/// An entry that passes the arguments on, and behind them the place of the return address and rbp.
macro_rules! entry {
    ($module:ident::$name:ident, $hook:ident($($arg:ident: $type:ty),*) -> $result:ty, $slot:literal, $rbp:literal) => {
        /// # Safety
        /// As the C function.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> $result {
            core::arch::naked_asm!(
                // A signal may come right here, and its handler may allocate: the walk must find
                // its way through.
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
            unsafe { heapline_collector::$module::$name($($arg,)* heapline_collector::unwind::Entry { slot, rbp }) }
        }
    };
}

pub(crate) use entry;

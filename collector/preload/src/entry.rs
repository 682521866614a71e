//! The usual entry: the arguments leave registers free for the place of the return address and the
//! base pointer.

/// Defines an entry that passes the arguments on, with the place of the return address and the base
/// pointer behind.
macro_rules! entry {
    ($module:ident::$name:ident, $hook:ident($($arg:ident: $type:ty),*) -> $result:ty) => {
        /// Hook of the C function with this name.
        ///
        /// # Safety
        /// The caller upholds the contract of the C function.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> $result {
            heapline_collector::enter_with_place!([$($arg)*], $hook)
        }

        unsafe extern "C" fn $hook($($arg: $type,)* slot: usize, bp: usize) -> $result {
            // SAFETY: the caller upholds the contract of the C function.
            unsafe { heapline_collector::$module::$name($($arg,)* heapline_collector::unwind::Entry { slot, bp }) }
        }
    };
}

pub(crate) use entry;

//! The words of the calling thread, in thread-local storage.
//!
//! The words are initial-exec and reached by assembly (`arch`). `thread_local!` would call
//! `__tls_get_addr` in a shared library, and Rust's destructors would allocate.
//!
//! musl gives no place at a fixed distance from the thread pointer to a library of a running
//! program. An aggregator that injects the library there asks for the number of the library among
//! the objects with thread-local storage instead, by another kind of the one relocation. The
//! threads find the words in a table then. musl fills the tables of all threads inside dlopen.

use crate::arch::thread_words::{load, relocated, store, table_entries};

/// Returns where a thread has its words: a negative distance from the thread pointer, or the number
/// of the library in the table of the thread.
pub fn offset() -> u64 {
    relocated().cast_unsigned()
}

/// Returns whether the calling thread has its words. In a running program with a musl before 1.1.22
/// only later threads have them.
pub fn is_there() -> bool {
    let number = relocated();
    number < 0 || (1..=table_entries()).contains(&number)
}

/// Clears all words of the calling thread.
pub fn clear() {
    set_thread(core::ptr::null_mut());
    set_starting(0);
    set_recovery(0);
    set_pending(0);
    set_pending_session(0);
    set_in_python(0);
    set_new_block(0);
    set_read_stack(0);
    set_fork(0);
    set_own_stack(0);
    set_hides(0);
    set_pauses(0);
}

macro_rules! word {
    ($offset:literal, $get:ident, $set:ident, $type:ty, $doc:literal) => {
        #[doc = $doc]
        #[inline(always)]
        pub fn $get() -> $type {
            load::<$offset>() as $type
        }

        #[doc = concat!("Sets: ", $doc)]
        #[inline(always)]
        pub fn $set(value: $type) {
            #[allow(clippy::cast_possible_truncation, reason = "a word has as many bits as an address")]
            store::<$offset>(value as usize);
        }
    };
}

word!(0, thread, set_thread, *mut (), "The thread's state; null before its first event and where nothing is traced.");
word!(
    8,
    starting,
    set_starting,
    usize,
    "Where the hook was entered that starts the process's or this thread's tracing, else 0."
);
word!(16, recovery, set_recovery, usize, "Where to return to when the code under `fail::guard` panics, else 0.");
word!(24, pending, set_pending, u64, "Slot + 1, and above it segment + 1, that an unfinished start has taken.");
word!(32, pending_session, set_pending_session, u64, "The session in which they were taken.");
word!(
    40,
    in_python,
    set_in_python,
    usize,
    "Where one of CPython's allocators was entered that is at work, whose inner calls are part of it, else 0."
);
word!(
    48,
    new_block,
    set_new_block,
    usize,
    "The block that CPython's allocators gave this thread last, until an object is in it."
);
word!(
    56,
    read_stack,
    set_read_stack,
    u64,
    "The Python stack, its id and above it the epoch, that was read inside of the call of one of CPython's allocators; else 0."
);
word!(64, fork, set_fork, u64, "The fork that the thread makes or was made by, else 0.");
word!(72, own_stack, set_own_stack, usize, "Address of the collector's stack that the thread is on, else 0.");
word!(80, hides, set_hides, usize, "1 while the thread makes objects that the program has not asked for, else 0.");
word!(
    88,
    pauses,
    set_pauses,
    usize,
    "How often the program has paused the thread without resuming, 0 outside of pauses."
);

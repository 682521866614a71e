//! The thread's words in thread-local storage.
//!
//! Initial-exec and written in assembly: `thread_local!` calls `__tls_get_addr` in a shared library, and Rust's
//! destructors would allocate. One word, `active`, guards everything: it is null before the first event, while
//! tracing is off, and inside a hook, so one test on the hot path covers all three.

use crate::thread::Thread;
use core::arch::{asm, global_asm};

global_asm!(
    ".pushsection .tbss.heapline,\"awT\",@nobits",
    ".p2align 3",
    ".globl heapline_tls",
    ".hidden heapline_tls",
    ".type heapline_tls,@object",
    ".size heapline_tls,32",
    "heapline_tls: .zero 32",
    ".popsection",
);

macro_rules! word {
    ($offset:literal, $get:ident, $set:ident, $type:ty, $doc:literal) => {
        #[doc = $doc]
        #[inline(always)]
        pub fn $get() -> $type {
            let value: $type;
            // SAFETY: reads this thread's own word.
            unsafe {
                asm!(
                    "mov {v}, qword ptr [rip + heapline_tls@GOTTPOFF]",
                    concat!("mov {v}, qword ptr fs:[{v} + ", $offset, "]"),
                    v = out(reg) value,
                    options(nostack, preserves_flags, readonly)
                );
            }
            value
        }

        #[doc = concat!("Sets: ", $doc)]
        #[inline(always)]
        pub fn $set(value: $type) {
            // SAFETY: writes this thread's own word, which nothing else gives a meaning.
            unsafe {
                asm!(
                    "mov {t}, qword ptr [rip + heapline_tls@GOTTPOFF]",
                    concat!("mov qword ptr fs:[{t} + ", $offset, "], {v}"),
                    t = out(reg) _,
                    v = in(reg) value,
                    options(nostack, preserves_flags)
                );
            }
        }
    };
}

word!("0", active, set_active, *mut Thread, "The thread's state when an event may be recorded right away, else null.");
word!("8", own, set_own, *mut Thread, "The thread's state, also inside a hook; null before its first event.");
word!(
    "16",
    starting,
    set_starting,
    usize,
    "Stack pointer while this thread starts the process's or its own tracing, else 0."
);
word!(
    "24",
    recovery,
    set_recovery,
    usize,
    "Stack pointer to return to when the code under `fail::guard` panics, else 0."
);

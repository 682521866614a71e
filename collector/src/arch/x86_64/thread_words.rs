//! Words in thread-local storage, initial-exec and by assembly, and the thread pointer.
//!
//! ```text
//! relocation  its word            place of a thread's words
//! TPOFF64     a negative distance thread pointer + distance
//! DTPMOD64    a number n > 0      word n of the table, whose address is the second word of the
//!                                 thread
//! ```

use core::arch::{asm, global_asm};

/// Bytes of the words of a thread.
const BYTES: usize = heapline_shared_format::inject::THREAD_WORDS_BYTES;

global_asm!(
    ".pushsection .tbss.heapline,\"awT\",@nobits",
    ".p2align 3",
    concat!(".globl ", symbol!("tls")),
    concat!(".hidden ", symbol!("tls")),
    concat!(".type ", symbol!("tls"), ",@object"),
    concat!(".size ", symbol!("tls"), ",{bytes}"),
    concat!(symbol!("tls"), ": .zero {bytes}"),
    ".popsection",
    bytes = const BYTES,
);

/// Returns the word of the one relocation: the distance of the words from the thread pointer, or
/// the number of the library in the table of the thread.
pub fn relocated() -> i64 {
    let word: i64;
    // SAFETY: the instruction only reads a word filled in by the loader.
    unsafe {
        asm!(
            concat!("mov {v}, qword ptr [rip + ", symbol!("tls"), "@GOTTPOFF]"),
            v = out(reg) word,
            options(nostack, preserves_flags, readonly)
        );
    }
    word
}

/// Returns the number of entries in the table of a thread of musl, with which the table begins.
pub fn table_entries() -> i64 {
    let count: i64;
    // SAFETY: the second word of a thread of musl is the address of the table.
    unsafe {
        asm!(
            "mov {v}, qword ptr fs:[8]",
            "mov {v}, qword ptr [{v}]",
            v = out(reg) count,
            options(nostack, preserves_flags, readonly)
        );
    }
    count
}

/// Returns the address of the C library's data of the calling thread.
pub fn thread_pointer() -> usize {
    let pointer: usize;
    // SAFETY: the first word at the thread pointer holds the address of the word itself.
    unsafe { asm!("mov {}, qword ptr fs:[0]", out(reg) pointer, options(nostack, preserves_flags, readonly)) };
    pointer
}

/// Instructions that jump to `2` with a distance, and turn a number in the register into the place
/// of the words.
macro_rules! in_table {
    ($register:literal) => {
        concat!(
            "test ",
            $register,
            ", ",
            $register,
            "\n",
            "js 2f\n",
            "shl ",
            $register,
            ", 3\n",
            "add ",
            $register,
            ", qword ptr fs:[8]\n",
            "mov ",
            $register,
            ", qword ptr [",
            $register,
            "]",
        )
    };
}

/// Returns a word of the calling thread.
#[inline(always)]
pub fn load<const OFFSET: usize>() -> usize {
    const { assert!(OFFSET < BYTES) };
    let value: usize;
    // SAFETY: the instructions only read this thread's own word.
    unsafe {
        asm!(
            concat!("mov {v}, qword ptr [rip + ", symbol!("tls"), "@GOTTPOFF]"),
            in_table!("{v}"),
            "mov {v}, qword ptr [{v} + {offset}]",
            "jmp 3f",
            "2:",
            "mov {v}, qword ptr fs:[{v} + {offset}]",
            "3:",
            v = out(reg) value,
            offset = const OFFSET,
            options(nostack, readonly)
        );
    }
    value
}

/// Sets a word of the calling thread.
#[inline(always)]
pub fn store<const OFFSET: usize>(value: usize) {
    const { assert!(OFFSET < BYTES) };
    // SAFETY: the instructions write this thread's own word, used only through `load` and `store`.
    unsafe {
        asm!(
            concat!("mov {t}, qword ptr [rip + ", symbol!("tls"), "@GOTTPOFF]"),
            in_table!("{t}"),
            "mov qword ptr [{t} + {offset}], {v}",
            "jmp 3f",
            "2:",
            "mov qword ptr fs:[{t} + {offset}], {v}",
            "3:",
            t = out(reg) _,
            v = in(reg) value,
            offset = const OFFSET,
            options(nostack)
        );
    }
}

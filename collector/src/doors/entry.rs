//! The code of the doors: entries that differ only in address, and the common code behind the
//! entries.
//!
//! The code is assembly with unwind information, since an exception (`bad_alloc`) must pass
//! through. The code preserves argument registers for the function, and result registers for the
//! caller.

use super::{Call, DOORS, ENTRY_BYTES, MOST, after, before};
use crate::process;
use core::arch::{global_asm, naked_asm};
use heapline_shared_format::arena::state;

global_asm!(
    ".pushsection .text.heapline_doors,\"ax\",@progbits",
    ".p2align 4",
    ".globl heapline_doors",
    ".hidden heapline_doors",
    ".type heapline_doors,@function",
    "heapline_doors:",
    ".cfi_startproc",
    ".rept {most}",
    ".p2align 4",
    // The address of the next instruction tells which entry this is.
    "lea r11, [rip]",
    "jmp {common}",
    ".endr",
    ".cfi_endproc",
    ".size heapline_doors, . - heapline_doors",
    ".popsection",
    most = const MOST,
    common = sym common,
);

unsafe extern "C" {
    fn heapline_doors();
}

/// Bytes of the first instruction of an entry.
const FIRST_BYTES: usize = 7;

const _: () = assert!(ENTRY_BYTES == size_of::<super::Door>(), "an entry's place is its door's");
const _: () = assert!(core::mem::offset_of!(Call, door) == 48 && core::mem::offset_of!(Call, note) == 56);
const _: () = assert!(state::IDLE == 0);

/// Returns the address of the first entry.
pub fn first() -> usize {
    (heapline_doors as *const ()).addr()
}

/// Runs behind an entry, with the end of the entry's first instruction in r11. While nothing is
/// traced, jumps straight to the function. Otherwise calls the function between [`before`] and
/// [`after`].
#[unsafe(naked)]
unsafe extern "C" fn common() {
    naked_asm!(
        ".cfi_startproc",
        "lea r10, [rip + heapline_doors + {first_bytes}]",
        "sub r11, r10",
        "lea r10, [rip + {doors}]",
        "add r11, r10",
        "mov r10, qword ptr [rip + {state}]",
        "cmp dword ptr [r10], 0",
        "jne 2f",
        "jmp qword ptr [r11]",
        "2:",
        "push rbp",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        // Room for a `Call`, and for the two registers of a result.
        "sub rsp, 80",
        "mov qword ptr [rsp], rdi",
        "mov qword ptr [rsp + 8], rsi",
        "mov qword ptr [rsp + 16], rdx",
        "mov qword ptr [rsp + 24], rcx",
        "mov qword ptr [rsp + 32], r8",
        "mov qword ptr [rsp + 40], r9",
        "mov qword ptr [rsp + 48], r11",
        "mov qword ptr [rsp + 56], 0",
        "mov rdi, rsp",
        "lea rsi, [rbp + 8]",
        "call {before}",
        "mov rdi, qword ptr [rsp]",
        "mov rsi, qword ptr [rsp + 8]",
        "mov rdx, qword ptr [rsp + 16]",
        "mov rcx, qword ptr [rsp + 24]",
        "mov r8, qword ptr [rsp + 32]",
        "mov r9, qword ptr [rsp + 40]",
        "call rax",
        "mov qword ptr [rsp + 64], rax",
        "mov qword ptr [rsp + 72], rdx",
        "mov rdi, rsp",
        "mov rsi, rax",
        "lea rdx, [rbp + 8]",
        "mov rcx, qword ptr [rbp]",
        "call {after}",
        "mov rax, qword ptr [rsp + 64]",
        "mov rdx, qword ptr [rsp + 72]",
        "leave",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_endproc",
        first_bytes = const FIRST_BYTES,
        doors = sym DOORS,
        state = sym process::STATE,
        before = sym before,
        after = sym after,
    )
}

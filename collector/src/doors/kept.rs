//! The entry of doors that are reached by a jump at a function's first bytes.
//!
//! Who calls such a function may have been compiled together with the function, and know which registers the function
//! leaves alone although it may change them (gcc's -fipa-ra). So every register is as the caller left it when the function
//! begins, and as the function left it when the caller goes on. The upper halves of vector registers are kept by being left
//! alone: the collector is built for SSE2.

use super::{Call, Door, after, before};
use crate::process;
use core::arch::naked_asm;
use heapline_shared_format::arena::state;

const _: () = assert!(size_of::<Call>() == 64 && core::mem::offset_of!(Call, door) == 48);
const _: () = assert!(core::mem::offset_of!(Door, function) == 0);
const _: () = assert!(state::IDLE == 0);

/// The registers, behind a [`Call`]: nine, the function, then sixteen vector registers.
macro_rules! keep {
    () => {
        "
        mov qword ptr [rsp + 64], rax
        mov qword ptr [rsp + 72], rcx
        mov qword ptr [rsp + 80], rdx
        mov qword ptr [rsp + 88], rsi
        mov qword ptr [rsp + 96], rdi
        mov qword ptr [rsp + 104], r8
        mov qword ptr [rsp + 112], r9
        mov qword ptr [rsp + 120], r10
        mov qword ptr [rsp + 128], r11
        movaps xmmword ptr [rsp + 144], xmm0
        movaps xmmword ptr [rsp + 160], xmm1
        movaps xmmword ptr [rsp + 176], xmm2
        movaps xmmword ptr [rsp + 192], xmm3
        movaps xmmword ptr [rsp + 208], xmm4
        movaps xmmword ptr [rsp + 224], xmm5
        movaps xmmword ptr [rsp + 240], xmm6
        movaps xmmword ptr [rsp + 256], xmm7
        movaps xmmword ptr [rsp + 272], xmm8
        movaps xmmword ptr [rsp + 288], xmm9
        movaps xmmword ptr [rsp + 304], xmm10
        movaps xmmword ptr [rsp + 320], xmm11
        movaps xmmword ptr [rsp + 336], xmm12
        movaps xmmword ptr [rsp + 352], xmm13
        movaps xmmword ptr [rsp + 368], xmm14
        movaps xmmword ptr [rsp + 384], xmm15
        "
    };
}

macro_rules! restore {
    () => {
        "
        mov rax, qword ptr [rsp + 64]
        mov rcx, qword ptr [rsp + 72]
        mov rdx, qword ptr [rsp + 80]
        mov rsi, qword ptr [rsp + 88]
        mov rdi, qword ptr [rsp + 96]
        mov r8, qword ptr [rsp + 104]
        mov r9, qword ptr [rsp + 112]
        mov r10, qword ptr [rsp + 120]
        mov r11, qword ptr [rsp + 128]
        movaps xmm0, xmmword ptr [rsp + 144]
        movaps xmm1, xmmword ptr [rsp + 160]
        movaps xmm2, xmmword ptr [rsp + 176]
        movaps xmm3, xmmword ptr [rsp + 192]
        movaps xmm4, xmmword ptr [rsp + 208]
        movaps xmm5, xmmword ptr [rsp + 224]
        movaps xmm6, xmmword ptr [rsp + 240]
        movaps xmm7, xmmword ptr [rsp + 256]
        movaps xmm8, xmmword ptr [rsp + 272]
        movaps xmm9, xmmword ptr [rsp + 288]
        movaps xmm10, xmmword ptr [rsp + 304]
        movaps xmm11, xmmword ptr [rsp + 320]
        movaps xmm12, xmmword ptr [rsp + 336]
        movaps xmm13, xmmword ptr [rsp + 352]
        movaps xmm14, xmmword ptr [rsp + 368]
        movaps xmm15, xmmword ptr [rsp + 384]
        "
    };
}

/// Its address.
pub fn address() -> usize {
    (kept as *const ()).addr()
}

/// Jumped to with the door's address above the return address: straight on to the function while nothing is traced, else
/// between [`before`] and [`after`].
#[unsafe(naked)]
unsafe extern "C" fn kept() {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_def_cfa_offset 16",
        "push rax",
        ".cfi_adjust_cfa_offset 8",
        "mov rax, qword ptr [rip + {state}]",
        "cmp dword ptr [rax], 0",
        "jne 2f",
        "mov rax, qword ptr [rsp + 8]",
        "mov rax, qword ptr [rax]",
        "mov qword ptr [rsp + 8], rax",
        "pop rax",
        ".cfi_adjust_cfa_offset -8",
        "lea rsp, [rsp + 8]",
        ".cfi_adjust_cfa_offset -8",
        // Signal handlers leave 128 bytes below the stack pointer alone.
        "jmp qword ptr [rsp - 8]",
        "2:",
        ".cfi_def_cfa_offset 24",
        "pop rax",
        ".cfi_adjust_cfa_offset -8",
        "push rbp",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_offset rbp, -24",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "and rsp, -16",
        "sub rsp, 400",
        keep!(),
        "mov qword ptr [rsp], rdi",
        "mov qword ptr [rsp + 8], rsi",
        "mov qword ptr [rsp + 16], rdx",
        "mov qword ptr [rsp + 24], rcx",
        "mov qword ptr [rsp + 32], r8",
        "mov qword ptr [rsp + 40], r9",
        "mov rax, qword ptr [rbp + 8]",
        "mov qword ptr [rsp + 48], rax",
        "mov qword ptr [rsp + 56], 0",
        "mov rdi, rsp",
        "lea rsi, [rbp + 16]",
        "call {before}",
        "mov qword ptr [rsp + 136], rax",
        restore!(),
        "call qword ptr [rsp + 136]",
        keep!(),
        "mov rdi, rsp",
        "mov rsi, rax",
        "lea rdx, [rbp + 16]",
        "mov rcx, qword ptr [rbp]",
        "call {after}",
        restore!(),
        "mov rsp, rbp",
        "pop rbp",
        ".cfi_def_cfa rsp, 16",
        "lea rsp, [rsp + 8]",
        ".cfi_adjust_cfa_offset -8",
        "ret",
        ".cfi_endproc",
        state = sym process::STATE,
        before = sym before,
        after = sym after,
    )
}

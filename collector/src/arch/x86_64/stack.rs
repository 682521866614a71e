//! The stack pointer, calls on another stack, and the way back to a guard.

use core::arch::{asm, global_asm, naked_asm};

/// Returns the stack pointer.
#[inline(always)]
pub fn pointer() -> usize {
    let sp: usize;
    // SAFETY: the instruction only reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) sp, options(nomem, nostack, preserves_flags)) };
    sp
}

/// Calls `function` on another stack.
///
/// # Safety
/// 1. `top` is the end of an unused stack, and a multiple of 16.
/// 2. `function` takes `argument`.
#[unsafe(naked)]
pub unsafe extern "C" fn call_on(top: *mut u8, function: extern "C" fn(*mut u8), argument: *mut u8) {
    naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "mov rsp, rdi",
        "mov rdi, rdx",
        "call rsi",
        "mov rsp, rbp",
        "pop rbp",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_endproc",
    )
}

global_asm!(
    ".pushsection .text.heapline_guard,\"ax\",@progbits",
    concat!(".globl ", symbol!("guard")),
    concat!(".hidden ", symbol!("guard")),
    concat!(".type ", symbol!("guard"), ",@function"),
    concat!(symbol!("guard"), ":"),
    ".cfi_startproc",
    "push rbp",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset rbp, 0",
    "push rbx",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset rbx, 0",
    "push r12",
    ".cfi_adjust_cfa_offset 8",
    "push r13",
    ".cfi_adjust_cfa_offset 8",
    "push r14",
    ".cfi_adjust_cfa_offset 8",
    "push r15",
    ".cfi_adjust_cfa_offset 8",
    "push rdx",
    ".cfi_adjust_cfa_offset 8",
    "mov qword ptr [rdx], rsp",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    "xor eax, eax",
    concat!(symbol!("guard_out"), ":"),
    "pop rdx",
    ".cfi_adjust_cfa_offset -8",
    "mov qword ptr [rdx], 0",
    "pop r15",
    ".cfi_adjust_cfa_offset -8",
    "pop r14",
    ".cfi_adjust_cfa_offset -8",
    "pop r13",
    ".cfi_adjust_cfa_offset -8",
    "pop r12",
    ".cfi_adjust_cfa_offset -8",
    "pop rbx",
    ".cfi_adjust_cfa_offset -8",
    ".cfi_restore rbx",
    "pop rbp",
    ".cfi_adjust_cfa_offset -8",
    ".cfi_restore rbp",
    "ret",
    ".cfi_endproc",
    concat!(".size ", symbol!("guard"), ", . - ", symbol!("guard")),
    concat!(".globl ", symbol!("guard_return")),
    concat!(".hidden ", symbol!("guard_return")),
    concat!(".type ", symbol!("guard_return"), ",@function"),
    concat!(symbol!("guard_return"), ":"),
    "mov rsp, rdi",
    "mov eax, 1",
    concat!("jmp ", symbol!("guard_out")),
    concat!(".size ", symbol!("guard_return"), ", . - ", symbol!("guard_return")),
    ".popsection",
);

unsafe extern "C" {
    /// Calls `function` with `argument`, and stores the stack pointer at `save_at` during the call.
    /// Returns 0, or 1 after [`return_to`].
    ///
    /// # Safety
    /// 1. `function` takes `argument`.
    /// 2. `save_at` may be written during the call.
    #[link_name = symbol!("guard")]
    pub fn guarded(function: extern "C" fn(*mut u8), argument: *mut u8, save_at: *mut usize) -> u32;

    /// Makes the call of [`guarded`] that has saved this stack pointer return.
    ///
    /// # Safety
    /// 1. The call is in progress, on the calling thread.
    /// 2. Nothing that the call has called owns a value to be dropped.
    #[link_name = symbol!("guard_return")]
    pub fn return_to(saved: usize) -> !;
}

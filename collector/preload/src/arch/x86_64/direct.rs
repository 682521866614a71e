//! Entries for direct calls of an allocator in the program itself. Calls of an allocator in another
//! library are no direct calls: doors (`heapline_collector::doors`) record these calls.
//!
//! Compiled together, caller and function may agree on more than the calling convention: on
//! unchanged registers that the convention lets the function change, and on the alignment of the
//! stack. The entries here therefore keep every register but the result, align the stack, and call
//! the hook from a frame of their own. The hook gets the end of the caller's frame.
//!
//! The upper halves of vector registers need no saving, because nothing changes them: the collector
//! is built for SSE2, and [`super::memory`] provides the few functions called by the compiler.

/// Saves on the stack: nine registers, then sixteen vector registers.
macro_rules! keep {
    () => {
        "
        .cfi_startproc
        push rbp
        .cfi_def_cfa_offset 16
        .cfi_offset rbp, -16
        mov rbp, rsp
        .cfi_def_cfa_register rbp
        and rsp, -16
        sub rsp, 336
        mov qword ptr [rsp], rax
        mov qword ptr [rsp + 8], rcx
        mov qword ptr [rsp + 16], rdx
        mov qword ptr [rsp + 24], rsi
        mov qword ptr [rsp + 32], rdi
        mov qword ptr [rsp + 40], r8
        mov qword ptr [rsp + 48], r9
        mov qword ptr [rsp + 56], r10
        mov qword ptr [rsp + 64], r11
        movaps xmmword ptr [rsp + 80], xmm0
        movaps xmmword ptr [rsp + 96], xmm1
        movaps xmmword ptr [rsp + 112], xmm2
        movaps xmmword ptr [rsp + 128], xmm3
        movaps xmmword ptr [rsp + 144], xmm4
        movaps xmmword ptr [rsp + 160], xmm5
        movaps xmmword ptr [rsp + 176], xmm6
        movaps xmmword ptr [rsp + 192], xmm7
        movaps xmmword ptr [rsp + 208], xmm8
        movaps xmmword ptr [rsp + 224], xmm9
        movaps xmmword ptr [rsp + 240], xmm10
        movaps xmmword ptr [rsp + 256], xmm11
        movaps xmmword ptr [rsp + 272], xmm12
        movaps xmmword ptr [rsp + 288], xmm13
        movaps xmmword ptr [rsp + 304], xmm14
        movaps xmmword ptr [rsp + 320], xmm15
        "
    };
}

/// Restores all registers but rax, and returns to the caller with the result in rax.
macro_rules! restore {
    () => {
        "
        mov rcx, qword ptr [rsp + 8]
        mov rdx, qword ptr [rsp + 16]
        mov rsi, qword ptr [rsp + 24]
        mov rdi, qword ptr [rsp + 32]
        mov r8, qword ptr [rsp + 40]
        mov r9, qword ptr [rsp + 48]
        mov r10, qword ptr [rsp + 56]
        mov r11, qword ptr [rsp + 64]
        movaps xmm0, xmmword ptr [rsp + 80]
        movaps xmm1, xmmword ptr [rsp + 96]
        movaps xmm2, xmmword ptr [rsp + 112]
        movaps xmm3, xmmword ptr [rsp + 128]
        movaps xmm4, xmmword ptr [rsp + 144]
        movaps xmm5, xmmword ptr [rsp + 160]
        movaps xmm6, xmmword ptr [rsp + 176]
        movaps xmm7, xmmword ptr [rsp + 192]
        movaps xmm8, xmmword ptr [rsp + 208]
        movaps xmm9, xmmword ptr [rsp + 224]
        movaps xmm10, xmmword ptr [rsp + 240]
        movaps xmm11, xmmword ptr [rsp + 256]
        movaps xmm12, xmmword ptr [rsp + 272]
        movaps xmm13, xmmword ptr [rsp + 288]
        movaps xmm14, xmmword ptr [rsp + 304]
        movaps xmm15, xmmword ptr [rsp + 320]
        mov rsp, rbp
        pop rbp
        .cfi_def_cfa rsp, 8
        ret
        .cfi_endproc
        "
    };
}

/// Defines an entry under this name, with the instructions between saving and restoring the
/// registers, and the operands of the instructions.
macro_rules! direct_entry {
    ($symbol:expr, [$($instruction:expr),* $(,)?], $($operand:tt)*) => {
        const _: () = {
            /// Entry for direct calls of a function.
            ///
            /// # Safety
            /// The caller upholds the contract of the function of this name.
            #[unsafe(export_name = concat!("heapline_direct_", $symbol))]
            #[unsafe(naked)]
            unsafe extern "C" fn direct() {
                core::arch::naked_asm!(
                    $crate::arch::direct::keep!(),
                    $($instruction,)*
                    $crate::arch::direct::restore!(),
                    $($operand)*
                )
            }
        };
    };
}

/// Returns the instructions that pass slot and base pointer of the caller behind the arguments.
macro_rules! callers_place {
    (1) => {
        "lea rsi, [rbp + 8]\nmov rdx, qword ptr [rbp]"
    };
    (2) => {
        "lea rdx, [rbp + 8]\nmov rcx, qword ptr [rbp]"
    };
    (3) => {
        "lea rcx, [rbp + 8]\nmov r8, qword ptr [rbp]"
    };
}

/// Defines an entry for a function with this number of arguments. The hook gets the place of the
/// return address, and the base pointer, behind the arguments.
macro_rules! direct {
    ($symbol:expr, $hook:path, $arguments:tt) => {
        $crate::arch::direct::direct_entry!(
            $symbol,
            [$crate::arch::direct::callers_place!($arguments), "call {hook}"],
            hook = sym $hook
        );
    };
}

/// Defines an entry for a function without a result. The hook gets the place of the return address.
macro_rules! direct_free {
    ($symbol:expr, $hook:path) => {
        $crate::arch::direct::direct_entry!(
            $symbol,
            ["lea rsi, [rbp + 8]", "call {hook}", "mov rax, qword ptr [rsp]"],
            hook = sym $hook
        );
    };
}

/// Defines an entry for the C++ operator new with this number. The entry calls the real operator
/// with the original arguments, then records the block.
macro_rules! direct_new {
    ($index:literal, $symbol:literal) => {
        $crate::arch::direct::direct_entry!(
            $symbol,
            [
                "mov edi, {index}",
                "call {original}",
                "mov rdi, qword ptr [rsp + 32]",
                "mov rsi, qword ptr [rsp + 24]",
                "mov rdx, qword ptr [rsp + 16]",
                "call rax",
                "mov rdi, rax",
                "mov rsi, qword ptr [rsp + 32]",
                "lea rdx, [rbp + 8]",
                "mov rcx, qword ptr [rbp]",
                "call {record}",
            ],
            index = const $index,
            original = sym heapline_collector::cxx::original,
            record = sym heapline_collector::cxx::record_new
        );
    };
}

/// Defines an entry for the C++ operator delete with this number. The entry records the free, then
/// calls the real operator.
macro_rules! direct_delete {
    ($index:literal, $symbol:literal) => {
        $crate::arch::direct::direct_entry!(
            $symbol,
            [
                "mov edi, {index}",
                "call {original}",
                "mov qword ptr [rsp + 72], rax",
                "mov rdi, qword ptr [rsp + 32]",
                "lea rsi, [rbp + 8]",
                "call {record}",
                "mov rdi, qword ptr [rsp + 32]",
                "mov rsi, qword ptr [rsp + 24]",
                "mov rdx, qword ptr [rsp + 16]",
                "call qword ptr [rsp + 72]",
                "mov rax, qword ptr [rsp]",
            ],
            index = const $index,
            original = sym heapline_collector::cxx::original,
            record = sym heapline_collector::cxx::record_delete
        );
    };
}

pub(crate) use {callers_place, direct, direct_delete, direct_entry, direct_free, direct_new, keep, restore};

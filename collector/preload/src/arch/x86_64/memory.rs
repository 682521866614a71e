//! Functions called by the compiler on its own. They use at most SSE2, so that a hook leaves the
//! upper halves of vector registers alone (see [`super::direct`]). The C library's functions use
//! all features of the processor.
//!
//! The functions are hidden: the program and the C library keep their own. The collector copies and
//! compares only short data.

core::arch::global_asm!(
    "
    .macro local name
    .globl \\name
    .hidden \\name
    .type \\name, @function
    .p2align 4
    \\name:
    .cfi_startproc
    .endm
    .macro ends name
    .cfi_endproc
    .size \\name, . - \\name
    .endm

    // Backwards only where the copy would meet itself.
    local memmove
        mov rax, rdi
        sub rax, rsi
        cmp rax, rdx
        jb 3f
    ends memmove
    local memcpy
        mov rax, rdi
        cmp rdx, 16
        jb 2f
        // The last sixteen are read first, so that the loop may end anywhere in them.
        movups xmm0, xmmword ptr [rsi + rdx - 16]
        lea r8, [rdi + rdx - 16]
        sub rdx, 16
        jbe 5f
    1:
        movups xmm1, xmmword ptr [rsi]
        movups xmmword ptr [rdi], xmm1
        add rsi, 16
        add rdi, 16
        sub rdx, 16
        ja 1b
    5:
        movups xmmword ptr [r8], xmm0
        ret
    2:
        cmp rdx, 8
        jb 7f
        mov rcx, qword ptr [rsi]
        mov r8, qword ptr [rsi + rdx - 8]
        mov qword ptr [rdi], rcx
        mov qword ptr [rdi + rdx - 8], r8
        ret
    7:
        mov rcx, rdx
        rep movsb
        ret
    3:
        mov rax, rdi
    4:
        sub rdx, 1
        jb 6f
        movzx ecx, byte ptr [rsi + rdx]
        mov byte ptr [rdi + rdx], cl
        jmp 4b
    6:
        ret
    ends memcpy

    local memset
        mov r8, rdi
        mov eax, esi
        mov rcx, rdx
        rep stosb
        mov rax, r8
        ret
    ends memset

    local bcmp
    1:
        cmp rdx, 8
        jb 2f
        mov rax, qword ptr [rdi]
        cmp rax, qword ptr [rsi]
        jne 4f
        add rdi, 8
        add rsi, 8
        sub rdx, 8
        jmp 1b
    2:
        test rdx, rdx
        je 3f
        movzx eax, byte ptr [rdi]
        cmp al, byte ptr [rsi]
        jne 4f
        inc rdi
        inc rsi
        dec rdx
        jmp 2b
    3:
        xor eax, eax
        ret
    4:
        mov eax, 1
        ret
    ends bcmp

    local memcmp
    1:
        test rdx, rdx
        je 3f
        movzx eax, byte ptr [rdi]
        movzx ecx, byte ptr [rsi]
        sub eax, ecx
        jne 4f
        inc rdi
        inc rsi
        dec rdx
        jmp 1b
    3:
        xor eax, eax
    4:
        ret
    ends memcmp

    local strlen
        mov rax, -1
    1:
        inc rax
        cmp byte ptr [rdi + rax], 0
        jne 1b
        ret
    ends strlen
    "
);

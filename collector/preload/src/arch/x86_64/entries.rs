//! Bodies of naked functions: entries with arguments in all registers or on the stack, and entries
//! that jump away. `heapline_collector::arch` has the usual entries.

/// Calls a hook whose six arguments take all registers. Slot and base pointer go behind the
/// arguments, on the stack.
macro_rules! enter_with_place_on_stack {
    ($hook:path) => {
        core::arch::naked_asm!(
            ".cfi_startproc",
            "mov rax, rsp",
            // Keeps the stack aligned over the call.
            "sub rsp, 8",
            ".cfi_adjust_cfa_offset 8",
            "push rbp",
            ".cfi_adjust_cfa_offset 8",
            "push rax",
            ".cfi_adjust_cfa_offset 8",
            "call {hook}",
            "add rsp, 24",
            ".cfi_adjust_cfa_offset -24",
            "ret",
            ".cfi_endproc",
            hook = sym $hook,
        )
    };
}

/// Calls a hook of a variadic function with one named argument, and a list of the others: the
/// register arguments are spilled below the arguments on the stack.
macro_rules! enter_with_list {
    ($hook:path) => {
        core::arch::naked_asm!(
            "pop r11",
            "push r9",
            "push r8",
            "push rcx",
            "push rdx",
            "push rsi",
            "mov rsi, rsp",
            "push r11",
            "call {hook}",
            "pop r11",
            "add rsp, 40",
            "push r11",
            "ret",
            hook = sym $hook,
        )
    };
}

/// Asks `$jump_to` for an address, with the address of the caller behind the (at most three)
/// arguments. Jumps to the address, or to `$call` for a null address.
macro_rules! jump_or_call {
    ($jump_to:path, $call:path) => {
        core::arch::naked_asm!(
            ".cfi_startproc",
            "push rdi",
            ".cfi_adjust_cfa_offset 8",
            "push rsi",
            ".cfi_adjust_cfa_offset 8",
            "push rdx",
            ".cfi_adjust_cfa_offset 8",
            "mov rcx, qword ptr [rsp + 24]",
            "call {jump_to}",
            "pop rdx",
            ".cfi_adjust_cfa_offset -8",
            "pop rsi",
            ".cfi_adjust_cfa_offset -8",
            "pop rdi",
            ".cfi_adjust_cfa_offset -8",
            "test rax, rax",
            "jz {call}",
            "jmp rax",
            ".cfi_endproc",
            jump_to = sym $jump_to,
            call = sym $call,
        )
    };
}

pub(crate) use {enter_with_list, enter_with_place_on_stack, jump_or_call};

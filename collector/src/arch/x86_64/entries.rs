//! Code in front of hooks. An entry tells the hook where the hook was entered: the slot, which is
//! the address of the return address, and the base pointer of the caller.
//!
//! Every entry has unwind information. A signal may come right in the entry, and the handler may
//! allocate: the walk must find the way through. An exception (`bad_alloc`) must pass too.

/// Defines a function that returns the address of a symbol of the C library, or 0 where the C
/// library lacks the symbol.
///
/// The symbol is weak. The loader of a C library without the symbol (an older glibc, musl) loads
/// the collector all the same, and the collector stays passive there. Rust assumes that the address
/// of a declared function is not null, so assembly reads the address.
macro_rules! optional {
    ($(#[$doc:meta])* $visible:vis $address:ident, $own:literal, $name:literal) => {
        core::arch::global_asm!(
            concat!(".weak ", $name),
            concat!(".pushsection .text.", symbol!($own), ",\"ax\",@progbits"),
            concat!(".globl ", symbol!($own)),
            concat!(".hidden ", symbol!($own)),
            concat!(".type ", symbol!($own), ",@function"),
            concat!(symbol!($own), ":"),
            concat!("mov rax, qword ptr [rip + ", $name, "@GOTPCREL]"),
            "ret",
            concat!(".size ", symbol!($own), ", . - ", symbol!($own)),
            ".popsection",
        );

        $(#[$doc])*
        $visible fn $address() -> usize {
            unsafe extern "C" {
                #[link_name = symbol!($own)]
                fn address() -> usize;
            }
            // SAFETY: the function above only loads a word of the library's own table of addresses.
            unsafe { address() }
        }
    };
}

/// Returns the instructions that pass slot and base pointer behind the arguments.
#[doc(hidden)]
#[macro_export]
macro_rules! place_behind {
    ($one:ident) => {
        "mov rsi, rsp\nmov rdx, rbp"
    };
    ($one:ident $two:ident) => {
        "mov rdx, rsp\nmov rcx, rbp"
    };
    ($one:ident $two:ident $three:ident) => {
        "mov rcx, rsp\nmov r8, rbp"
    };
    ($one:ident $two:ident $three:ident $four:ident) => {
        "mov r8, rsp\nmov r9, rbp"
    };
}

/// Returns the instruction that passes the slot behind the arguments.
#[doc(hidden)]
#[macro_export]
macro_rules! slot_behind {
    ($one:ident) => {
        "mov rsi, rsp"
    };
    ($one:ident $two:ident) => {
        "mov rdx, rsp"
    };
}

/// Body of a naked function that passes its arguments on to a hook, with slot and base pointer
/// behind. The entry jumps, so no frame of the collector stands between the caller and the hook.
#[doc(hidden)]
#[macro_export]
macro_rules! enter_with_place {
    ([$($argument:ident)*], $hook:path) => {
        core::arch::naked_asm!(
            ".cfi_startproc",
            $crate::place_behind!($($argument)*),
            "jmp {hook}",
            ".cfi_endproc",
            hook = sym $hook,
        )
    };
}

/// Body of a naked function that passes its arguments on to a hook, with the slot behind.
#[doc(hidden)]
#[macro_export]
macro_rules! enter_with_slot {
    ([$($argument:ident)*], $hook:path) => {
        core::arch::naked_asm!(
            ".cfi_startproc",
            $crate::slot_behind!($($argument)*),
            "jmp {hook}",
            ".cfi_endproc",
            hook = sym $hook,
        )
    };
}

/// Defines an entry with a frame of its own, which calls a function.
macro_rules! entry_with_frame {
    ($(#[$doc:meta])* $name:ident => $call:path, $($instruction:literal),*) => {
        $(#[$doc])*
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "push rbp",
                ".cfi_def_cfa_offset 16",
                ".cfi_offset rbp, -16",
                "mov rbp, rsp",
                ".cfi_def_cfa_register rbp",
                $($instruction,)*
                "call {call}",
                "leave",
                ".cfi_def_cfa rsp, 8",
                "ret",
                ".cfi_endproc",
                call = sym $call,
            )
        }
    };
}

/// Defines the entries of jemalloc's three hooks. The entries add arguments:
///
/// - `alloc`, a hook with five arguments: slot and base pointer behind.
/// - `dalloc`, a hook with four arguments: the slot behind.
/// - `expand`, a hook with seven arguments: the slot in place of the fifth argument, and the base
///   pointer behind.
macro_rules! listener_entries {
    (
        $(#[$alloc_doc:meta])* alloc $alloc:ident => $on_alloc:path;
        $(#[$dalloc_doc:meta])* dalloc $dalloc:ident => $on_dalloc:path;
        $(#[$expand_doc:meta])* expand $expand:ident => $on_expand:path;
    ) => {
        entry_with_frame!(
            $(#[$alloc_doc])*
            $alloc => $on_alloc, "lea r9, [rbp + 8]", "sub rsp, 8", "push qword ptr [rbp]"
        );
        entry_with_frame!(
            $(#[$dalloc_doc])*
            $dalloc => $on_dalloc, "lea r8, [rbp + 8]"
        );
        entry_with_frame!(
            $(#[$expand_doc])*
            $expand => $on_expand, "lea r8, [rbp + 8]", "push qword ptr [rbp]", "push qword ptr [rbp + 16]"
        );
    };
}

/// Bytes of the code of the entry of a door.
pub const DOOR_BYTES: usize = 16;
/// Bytes of the first instruction of the entry of a door.
pub const FIRST_OF_DOOR_BYTES: usize = 7;

/// Defines the entries of doors, which differ only in address, the common code behind the entries,
/// and `first()`, the address of the first entry.
///
/// While `state` is 0, the common code jumps straight to the function of the door. Otherwise the
/// common code calls the function between `before` and `after`. Argument registers are preserved
/// for the function, and result registers for the caller.
///
/// - `doors`: the table, [`DOOR_BYTES`] a door, the address of the function first.
/// - `before(call, slot)`: the first six words of a call are the arguments, the next two the door
///   and 0. Returns the function.
/// - `after(call, result, slot, bp)`.
#[cfg(not(feature = "embedded"))]
macro_rules! door_entries {
    (most = $most:expr, doors = $doors:path, state = $state:path, before = $before:path, after = $after:path) => {
        core::arch::global_asm!(
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
            most = const $most,
            common = sym common,
        );

        unsafe extern "C" {
            fn heapline_doors();
        }

        /// Returns the address of the first entry.
        pub fn first() -> usize {
            (heapline_doors as *const ()).addr()
        }

        /// Runs behind an entry, with the end of the entry's first instruction in r11.
        #[unsafe(naked)]
        unsafe extern "C" fn common() {
            core::arch::naked_asm!(
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
                first_bytes = const $crate::arch::entries::FIRST_OF_DOOR_BYTES,
                doors = sym $doors,
                state = sym $state,
                before = sym $before,
                after = sym $after,
            )
        }
    };
}

//! C++ operator new and delete: a jump where the real ones end in malloc and free, else a call between two records.
//!
//! In assembly with unwind information, since `bad_alloc` must pass through: Rust code built with `panic = "abort"`
//! would end the process.

use crate::direct::{direct_delete, direct_new};
use core::arch::naked_asm;
use heapline_collector::attach::Hook;
use heapline_collector::cxx::{MODE, PASS, REAL, SYMBOLS, record_delete, record_new, resolve};

macro_rules! operator {
    ($index:literal, $name:ident, $symbol:literal, $body:literal, $record:path) => {
        /// # Safety
        /// As the C++ operator.
        #[unsafe(export_name = $symbol)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                "cmp byte ptr [rip + {mode}], {pass}",
                "jne 2f",
                "jmp qword ptr [rip + {real} + 8 * {index}]",
                "2:",
                // Keep the arguments over the look-up.
                "push rdi",
                ".cfi_adjust_cfa_offset 8",
                "push rsi",
                ".cfi_adjust_cfa_offset 8",
                "push rdx",
                ".cfi_adjust_cfa_offset 8",
                "mov edi, {index}",
                "mov rsi, qword ptr [rsp + 24]",
                "call {resolve}",
                $body,
                ".cfi_endproc",
                mode = sym MODE,
                pass = const PASS,
                real = sym REAL,
                index = const $index,
                resolve = sym resolve,
                record = sym $record,
            )
        }
    };
}

macro_rules! new {
    ($index:literal, $name:ident, $symbol:literal) => {
        operator!(
            $index,
            $name,
            $symbol,
            "
            pop rdx
            .cfi_adjust_cfa_offset -8
            pop rsi
            .cfi_adjust_cfa_offset -8
            cmp byte ptr [rip + {mode}], {pass}
            jne 3f
            .cfi_remember_state
            pop rdi
            .cfi_adjust_cfa_offset -8
            jmp rax
            .cfi_restore_state
            3:
            mov rdi, qword ptr [rsp]
            call rax
            pop rsi
            .cfi_adjust_cfa_offset -8
            mov rdi, rax
            mov rdx, rsp
            mov rcx, rbp
            jmp {record}
            ",
            record_new
        );
    };
}

macro_rules! delete {
    ($index:literal, $name:ident, $symbol:literal) => {
        operator!(
            $index,
            $name,
            $symbol,
            "
            mov rdi, qword ptr [rsp + 16]
            push rax
            .cfi_adjust_cfa_offset 8
            push rax
            .cfi_adjust_cfa_offset 8
            call {record}
            pop rax
            .cfi_adjust_cfa_offset -8
            pop rax
            .cfi_adjust_cfa_offset -8
            pop rdx
            .cfi_adjust_cfa_offset -8
            pop rsi
            .cfi_adjust_cfa_offset -8
            pop rdi
            .cfi_adjust_cfa_offset -8
            jmp rax
            ",
            record_delete
        );
    };
}

new!(0, new_one, "_Znwm");
direct_new!(0, "_Znwm");
new!(1, new_array, "_Znam");
direct_new!(1, "_Znam");
new!(2, new_one_nothrow, "_ZnwmRKSt9nothrow_t");
direct_new!(2, "_ZnwmRKSt9nothrow_t");
new!(3, new_array_nothrow, "_ZnamRKSt9nothrow_t");
direct_new!(3, "_ZnamRKSt9nothrow_t");
new!(4, new_one_aligned, "_ZnwmSt11align_val_t");
direct_new!(4, "_ZnwmSt11align_val_t");
new!(5, new_array_aligned, "_ZnamSt11align_val_t");
direct_new!(5, "_ZnamSt11align_val_t");
new!(6, new_one_aligned_nothrow, "_ZnwmSt11align_val_tRKSt9nothrow_t");
direct_new!(6, "_ZnwmSt11align_val_tRKSt9nothrow_t");
new!(7, new_array_aligned_nothrow, "_ZnamSt11align_val_tRKSt9nothrow_t");
direct_new!(7, "_ZnamSt11align_val_tRKSt9nothrow_t");
delete!(8, delete_one, "_ZdlPv");
direct_delete!(8, "_ZdlPv");
delete!(9, delete_array, "_ZdaPv");
direct_delete!(9, "_ZdaPv");
delete!(10, delete_one_sized, "_ZdlPvm");
direct_delete!(10, "_ZdlPvm");
delete!(11, delete_array_sized, "_ZdaPvm");
direct_delete!(11, "_ZdaPvm");
delete!(12, delete_one_aligned, "_ZdlPvSt11align_val_t");
direct_delete!(12, "_ZdlPvSt11align_val_t");
delete!(13, delete_array_aligned, "_ZdaPvSt11align_val_t");
direct_delete!(13, "_ZdaPvSt11align_val_t");
delete!(14, delete_one_sized_aligned, "_ZdlPvmSt11align_val_t");
direct_delete!(14, "_ZdlPvmSt11align_val_t");
delete!(15, delete_array_sized_aligned, "_ZdaPvmSt11align_val_t");
direct_delete!(15, "_ZdaPvmSt11align_val_t");
delete!(16, delete_one_nothrow, "_ZdlPvRKSt9nothrow_t");
direct_delete!(16, "_ZdlPvRKSt9nothrow_t");
delete!(17, delete_array_nothrow, "_ZdaPvRKSt9nothrow_t");
direct_delete!(17, "_ZdaPvRKSt9nothrow_t");
delete!(18, delete_one_aligned_nothrow, "_ZdlPvSt11align_val_tRKSt9nothrow_t");
direct_delete!(18, "_ZdlPvSt11align_val_tRKSt9nothrow_t");
delete!(19, delete_array_aligned_nothrow, "_ZdaPvSt11align_val_tRKSt9nothrow_t");
direct_delete!(19, "_ZdaPvSt11align_val_tRKSt9nothrow_t");

/// The operators, for a process that is not started with them. In the order of [`SYMBOLS`].
pub static HOOKS: [Hook; SYMBOLS.len()] = {
    let functions: [*const (); SYMBOLS.len()] = [
        new_one as *const (),
        new_array as *const (),
        new_one_nothrow as *const (),
        new_array_nothrow as *const (),
        new_one_aligned as *const (),
        new_array_aligned as *const (),
        new_one_aligned_nothrow as *const (),
        new_array_aligned_nothrow as *const (),
        delete_one as *const (),
        delete_array as *const (),
        delete_one_sized as *const (),
        delete_array_sized as *const (),
        delete_one_aligned as *const (),
        delete_array_aligned as *const (),
        delete_one_sized_aligned as *const (),
        delete_array_sized_aligned as *const (),
        delete_one_nothrow as *const (),
        delete_array_nothrow as *const (),
        delete_one_aligned_nothrow as *const (),
        delete_array_aligned_nothrow as *const (),
    ];
    let mut hooks = [const { Hook::of_allocator(SYMBOLS[0], core::ptr::null()) }; SYMBOLS.len()];
    let mut i = 0;
    while i < SYMBOLS.len() {
        hooks[i] = Hook::of_allocator(SYMBOLS[i], functions[i]);
        i += 1;
    }
    hooks
};

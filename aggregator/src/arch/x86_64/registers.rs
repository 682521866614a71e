//! The registers of a stopped thread.

use heapline_shared_format::arch::registers::COUNT;
use std::ffi::c_int;

/// The registers of a thread, as the kernel hands them out.
pub type Registers = libc::user_regs_struct;

/// The kind of the other registers for `PTRACE_GETREGSET`: floating point and vectors, in the
/// layout of XSAVE.
pub const STATE_KIND: c_int = 0x202;
/// Size limit of the other registers. No processor has a larger state, AMX included.
pub const MOST_STATE_BYTES: usize = 64 << 10;

/// Bytes below the stack pointer that a leaf function may use.
pub const RED_ZONE: u64 = 128;

/// Line of `/proc/PID/status`, and a word in the line, of a process whose processor compares return
/// addresses with a second stack. Injected calls would fail there.
pub const SECOND_STACK: (&str, &str) = ("x86_Thread_features", "shstk");

/// Code segment of 64-bit programs.
const CODE_64: u64 = 0x33;

/// Whether the thread runs 64-bit code.
pub fn is_native(registers: &Registers) -> bool {
    registers.cs == CODE_64
}

/// Returns the address of the current instruction.
pub fn instruction(registers: &Registers) -> u64 {
    registers.rip
}

/// Returns the stack pointer.
pub fn stack_pointer(registers: &Registers) -> u64 {
    registers.rsp
}

/// Returns the address of the C library's data of the thread.
pub fn thread_pointer(registers: &Registers) -> u64 {
    registers.fs_base
}

/// Returns number and result of the system call in progress; the number is negative outside of a
/// system call.
pub fn system_call(registers: &Registers) -> (i64, i64) {
    (registers.orig_rax.cast_signed(), registers.rax.cast_signed())
}

/// Returns the registers by DWARF number.
pub fn by_number(r: &Registers) -> [u64; COUNT] {
    [
        r.rax, r.rdx, r.rcx, r.rbx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15,
        r.rip,
    ]
}

/// Returns the registers of a thread with this current instruction, stack pointer, base pointer and
/// one preserved register.
pub fn of_thread([rip, rsp, rbp, rbx]: [u64; 4]) -> Registers {
    // SAFETY: all fields of the register structure are plain integers, for which zero is valid.
    let none: Registers = unsafe { std::mem::zeroed() };
    Registers { rip, rsp, rbp, rbx, cs: CODE_64, ..none }
}

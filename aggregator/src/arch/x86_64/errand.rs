//! Machine code and registers for the calls of a borrowed thread.

use super::registers::Registers;

/// Flags of a thread at the start of a function.
const PLAIN_FLAGS: u64 = 0x202;
/// Marks a thread outside of a system call: the kernel shall not restart a system call.
const NO_SYSTEM_CALL: u64 = u64::MAX;

/// Machine code of a call. [`way_back`] follows. The code does, in order:
/// 1. a call, with `errno` restored afterwards;
/// 2. a note that the result is there;
/// 3. a wait for an aggregator that has more work for the thread.
pub const CODE: [u8; 61] = [
    0x41, 0xff, 0xd6, // call r14
    0x44, 0x8b, 0x28, // mov r13d, [rax]
    0x49, 0x89, 0xc6, // mov r14, rax
    0x49, 0x8b, 0x7c, 0x24, 0x20, // mov rdi, [r12 + 32]
    0x49, 0x8b, 0x74, 0x24, 0x28, // mov rsi, [r12 + 40]
    0x49, 0x8b, 0x54, 0x24, 0x30, // mov rdx, [r12 + 48]
    0xff, 0xd3, // call rbx
    0x49, 0x89, 0x04, 0x24, // mov [r12], rax
    0x45, 0x89, 0x2e, // mov [r14], r13d
    0x49, 0xc7, 0x44, 0x24, 0x08, 1, 0, 0, 0, // mov qword ptr [r12 + 8], 1
    // ppoll, because the kernel keeps no state of an interrupted ppoll. The kernel may still keep
    // the state of the program's own interrupted system call.
    0xb8, 0x0f, 0x01, 0, 0, // mov eax, 271
    0x31, 0xff, // xor edi, edi
    0x31, 0xf6, // xor esi, esi
    0x49, 0x8d, 0x54, 0x24, 0x10, // lea rdx, [r12 + 16]
    0x4d, 0x31, 0xd2, // xor r10, r10
    0x0f, 0x05, // syscall
];
/// Where the way back begins.
pub const WAY_BACK: u64 = CODE.len() as u64;
/// Bytes of the way back.
pub const WAY_BACK_BYTES: u64 = 43;

/// Builds the code that leads the thread from the area back to the program, and frees the area. The
/// system call instruction lies in the C library, and returns to the frame on the thread's own
/// stack.
pub fn way_back(area: u64, area_bytes: u32, own_frame: u64, system_call: u64) -> Vec<u8> {
    [
        &[0x48, 0xbc][..], // mov rsp, own_frame
        &own_frame.to_le_bytes(),
        &[0x48, 0xbf], // mov rdi, area
        &area.to_le_bytes(),
        &[0xbe], // mov esi, area_bytes
        &area_bytes.to_le_bytes(),
        &[0xb8, 11, 0, 0, 0], // mov eax, 11
        &[0x49, 0xbb],        // mov r11, system_call
        &system_call.to_le_bytes(),
        &[0x41, 0xff, 0xe3], // jmp r11
    ]
    .concat()
}

/// Bytes of the instruction of a system call, and of a return behind.
const SYSTEM_CALL_BYTES: u64 = 3;

/// Pattern of code for system calls: the instruction, and a return.
pub const SYSTEM_CALL: [u8; 3] = [0x0f, 0x05, 0xc3];

/// Whether the thread stands at the pattern of code at this address.
pub fn is_at_system_call(registers: &Registers, system_call: u64) -> bool {
    (system_call..system_call + SYSTEM_CALL_BYTES).contains(&registers.rip)
}

/// Registers for a system call, by the pattern of code at `system_call`. The word at the stack
/// pointer is the return address.
pub fn at_system_call(
    original: &Registers,
    system_call: u64,
    number: i64,
    arguments: [u64; 6],
    stack_pointer: u64,
) -> Registers {
    let [rdi, rsi, rdx, r10, r8, r9] = arguments;
    Registers {
        rip: system_call,
        rax: number.cast_unsigned(),
        rdi,
        rsi,
        rdx,
        r10,
        r8,
        r9,
        rsp: stack_pointer,
        eflags: PLAIN_FLAGS,
        orig_rax: NO_SYSTEM_CALL,
        ..*original
    }
}

/// Words of a call in memory, for [`CODE`]: the result, the mark of a finished call, the time to
/// wait afterwards (two words), and the arguments.
pub fn words_of_call(waits: u64, arguments: [u64; 3]) -> [u64; 7] {
    let [first, second, third] = arguments;
    [0, 0, 0, waits, first, second, third]
}

/// A call by [`CODE`].
pub struct Call {
    /// Address of [`CODE`].
    pub code: u64,
    /// Address of the called function.
    pub function: u64,
    /// Address of [`words_of_call`].
    pub words: u64,
    /// Address of the C library's function that returns the address of `errno`.
    pub errno_location: u64,
    /// Stack pointer, a multiple of 16.
    pub stack_pointer: u64,
}

/// Registers for a call.
pub fn at_call(original: &Registers, call: &Call) -> Registers {
    Registers {
        rip: call.code,
        rbx: call.function,
        r12: call.words,
        r14: call.errno_location,
        rax: 0,
        rbp: 0,
        rsp: call.stack_pointer,
        eflags: PLAIN_FLAGS,
        orig_rax: NO_SYSTEM_CALL,
        ..*original
    }
}

/// Registers of a thread that goes on at other code.
pub fn at_code(original: &Registers, code: u64) -> Registers {
    Registers { rip: code, eflags: PLAIN_FLAGS, orig_rax: NO_SYSTEM_CALL, ..*original }
}

/// Returns the address of the path that a system call about to be entered opens. None for another
/// call.
pub fn opened_path(entered: &Registers) -> Option<u64> {
    match entered.orig_rax.cast_signed() {
        libc::SYS_open => Some(entered.rdi),
        libc::SYS_openat => Some(entered.rsi),
        _ => None,
    }
}

/// Registers for another system call in place of the call about to be entered.
pub fn instead(entered: &Registers, number: i64, [rdi, rsi, rdx]: [u64; 3]) -> Registers {
    Registers { orig_rax: number.cast_unsigned(), rdi, rsi, rdx, ..*entered }
}

/// Registers with the arguments of the replaced system call.
pub fn with_arguments_of(now: &Registers, entered: &Registers) -> Registers {
    Registers { rdi: entered.rdi, rsi: entered.rsi, rdx: entered.rdx, ..*now }
}

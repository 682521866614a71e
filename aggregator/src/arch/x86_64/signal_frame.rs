//! The signal frame for a borrowed thread's way back. `rt_sigreturn` restores all registers from
//! the frame, without help of another process.

use super::registers::{RED_ZONE, Registers};
use std::arch::x86_64::__cpuid_count;

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Size of `struct ucontext` up to the end of its 8-byte signal mask.
const CONTEXT_BYTES: usize = 40 + 256 + 8;
/// Offset of the software bytes in an XSAVE area. The first eight bytes name the parts kept by the
/// kernel.
const SOFTWARE: usize = 464;
/// Offset of the mask of the parts in use.
const HEADER: usize = 512;
const AMX_TILES: u64 = 3 << 17;

/// Returns the end of a frame to be pushed on a stack.
pub fn below(stack_pointer: u64) -> u64 {
    stack_pointer - RED_ZONE
}

/// A frame in memory: its address and its bytes.
pub struct Frame {
    /// Stack pointer for code with a final `ret`. The word at this address is the return address.
    pub stack_pointer: u64,
    /// Bytes at the stack pointer.
    pub bytes: Vec<u8>,
}

/// Builds a frame with its end at or below `end`, for a thread to go on with these registers.
///
/// `returns_to` is the word in front of the frame: the address of code that calls `rt_sigreturn`
/// with the stack pointer behind this word.
pub fn build(end: u64, returns_to: u64, registers: &Registers, state: &[u8], mask: u64) -> Frame {
    let state = signal_state(state);
    let state_at = (end - state.len() as u64) & !63;
    // A called function finds its stack pointer 8 bytes off a multiple of 16.
    let context_at = (state_at - CONTEXT_BYTES as u64) & !15;
    let stack_pointer = context_at - 8;
    let mut words = vec![returns_to];
    words.extend(context(registers, state_at, mask));
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(usize::try_from(state_at - stack_pointer).unwrap_or(0), 0);
    bytes.extend(state);
    Frame { stack_pointer, bytes }
}

/// Returns `struct ucontext`, as words.
fn context(r: &Registers, state_at: u64, mask: u64) -> Vec<u64> {
    let flags = UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS;
    // Segments: cs, gs and fs as 16 bits each, then ss; the kernel takes cs and ss.
    let segments = r.cs | r.ss << 48;
    // uc_link; uc_stack: an unusual flag makes the kernel leave the alternate stack as it is.
    const SS_UNKNOWN: u64 = 0x4000_0000;
    let head = [flags, 0, 0, SS_UNKNOWN, 0];
    let registers = [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax, r.rcx, r.rsp,
        r.rip, r.eflags, segments,
    ];
    // err, trapno, oldmask, cr2, then the pointer to the state and eight words reserved by the
    // kernel.
    let tail = [0, 0, 0, 0, state_at, 0, 0, 0, 0, 0, 0, 0, 0, mask];
    head.into_iter().chain(registers).chain(tail).collect()
}

/// Returns the state in the form of a signal frame: cut to the parts allowed for the process, and
/// marked.
fn signal_state(state: &[u8]) -> Vec<u8> {
    let word = |at: usize| state.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (kept, used) = (word(SOFTWARE), word(HEADER));
    // A process gets room for tiles only on request. The kernel rejects a frame with more parts
    // than it has given to the process.
    let parts = if used & AMX_TILES == 0 { kept & !AMX_TILES } else { kept };
    let size = (2..63)
        .filter(|part| parts & 1 << part != 0)
        .map(|part| {
            let found = __cpuid_count(0xd, part);
            (found.eax + found.ebx) as usize
        })
        .fold(HEADER + 64, usize::max)
        .min(state.len());
    let mut bytes = state[..size].to_vec();
    bytes[SOFTWARE..HEADER].fill(0);
    let length = u32::try_from(size).unwrap_or(0);
    bytes[SOFTWARE..SOFTWARE + 4].copy_from_slice(&FP_XSTATE_MAGIC1.to_le_bytes());
    bytes[SOFTWARE + 4..SOFTWARE + 8].copy_from_slice(&(length + 4).to_le_bytes());
    bytes[SOFTWARE + 8..SOFTWARE + 16].copy_from_slice(&parts.to_le_bytes());
    bytes[SOFTWARE + 16..SOFTWARE + 20].copy_from_slice(&length.to_le_bytes());
    bytes.extend(FP_XSTATE_MAGIC2.to_le_bytes());
    bytes
}

/// Returns the registers for a thread to go on without the kernel's help after a stop in a system
/// call. The call is made again, as after a signal without a handler.
pub fn going_on(registers: &Registers) -> Registers {
    const ERESTARTSYS: i64 = -512;
    const ERESTARTNOINTR: i64 = -513;
    const ERESTARTNOHAND: i64 = -514;
    const ERESTART_RESTARTBLOCK: i64 = -516;
    const SYSTEM_CALL_BYTES: u64 = 2;
    let mut on = *registers;
    if registers.orig_rax.cast_signed() >= 0 {
        match registers.rax.cast_signed() {
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
                on.rax = registers.orig_rax;
                on.rip -= SYSTEM_CALL_BYTES;
            }
            ERESTART_RESTARTBLOCK => {
                on.rax = libc::SYS_restart_syscall.cast_unsigned();
                on.rip -= SYSTEM_CALL_BYTES;
            }
            _ => {}
        }
    }
    on.orig_rax = u64::MAX;
    on
}

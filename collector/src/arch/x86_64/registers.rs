//! The registers of a frame, by DWARF number.

pub use heapline_shared_format::arch::registers::{BP, COUNT, RA, SP};

/// Registers of a frame at resumption, by DWARF number. `None` is an unknown register.
#[derive(Clone, Copy)]
pub struct Registers(pub [Option<usize>; COUNT]);

const RBX: usize = 3;

/// Registers that a function may leave with another value. In the caller, such a register is lost
/// unless the unwind tables have a rule for it.
pub const CHANGED_BY_CALLS: [usize; 9] = [0, 1, 2, 4, 5, 8, 9, 10, 11];

impl Registers {
    /// All registers unknown.
    pub const UNKNOWN: Registers = Registers([None; COUNT]);

    /// Returns the registers of the calling function. This function is inlined there.
    #[inline(always)]
    pub fn here() -> Registers {
        let mut saved = [0usize; 8];
        // SAFETY: the instructions store eight registers in the array of eight words.
        unsafe {
            core::arch::asm!(
                "mov [{s}], rbx",
                "mov [{s} + 8], rbp",
                "mov [{s} + 16], rsp",
                "mov [{s} + 24], r12",
                "mov [{s} + 32], r13",
                "mov [{s} + 40], r14",
                "mov [{s} + 48], r15",
                "lea {t}, [rip]",
                "mov [{s} + 56], {t}",
                s = in(reg) saved.as_mut_ptr(),
                t = out(reg) _,
                options(nostack, preserves_flags)
            );
        }
        let mut registers = Registers::UNKNOWN;
        for (number, value) in [RBX, BP, SP, 12, 13, 14, 15, RA].into_iter().zip(saved) {
            registers.0[number] = Some(value);
        }
        registers
    }

    /// Returns the registers of the function interrupted by a signal. The kernel has put them on
    /// the stack, where the handler has left the stack pointer (`struct ucontext`). `read` returns
    /// the word at an address.
    pub fn interrupted(sp: usize, read: impl Fn(usize) -> Option<usize>) -> Option<Registers> {
        /// Offset of the registers, which begin with r8.
        const FIRST: usize = 40;
        /// DWARF numbers in the kernel's order: r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp,
        /// rip.
        const ORDER: [usize; COUNT] = [8, 9, 10, 11, 12, 13, 14, 15, 5, 4, BP, RBX, 1, 0, 2, SP, RA];
        let mut registers = Registers::UNKNOWN;
        for (i, number) in ORDER.into_iter().enumerate() {
            registers.0[number] = Some(read(sp + FIRST + i * 8)?);
        }
        Some(registers)
    }

    /// Returns the register with a DWARF number.
    pub fn get(&self, number: u16) -> Option<usize> {
        self.0.get(usize::from(number)).copied().flatten()
    }
}

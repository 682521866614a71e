//! System calls: the numbers, and the call.

/// Makes a system call.
///
/// # Safety
/// The call with these arguments touches only memory that the caller may let the kernel touch.
#[inline]
pub unsafe fn call(nr: usize, args: [usize; 6]) -> Result<usize, i32> {
    let result: isize;
    // SAFETY: the registers follow the kernel's calling convention; the caller guarantees the
    // call's effects.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") nr as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "errors are -4095..-1")]
    if (-4095..0).contains(&result) { Err((-result) as i32) } else { Ok(result as usize) }
}

/// Numbers of system calls.
#[expect(missing_docs, reason = "named as the kernel names the calls")]
pub mod number {
    pub const READ: usize = 0;
    pub const CLOSE: usize = 3;
    pub const FSTAT: usize = 5;
    pub const MMAP: usize = 9;
    pub const MPROTECT: usize = 10;
    pub const MUNMAP: usize = 11;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const PREAD: usize = 17;
    pub const MREMAP: usize = 25;
    pub const MADVISE: usize = 28;
    pub const GETPID: usize = 39;
    pub const SOCKET: usize = 41;
    pub const CONNECT: usize = 42;
    pub const SENDMSG: usize = 46;
    pub const SETSOCKOPT: usize = 54;
    pub const FCNTL: usize = 72;
    pub const FTRUNCATE: usize = 77;
    pub const GETCWD: usize = 79;
    pub const READLINK: usize = 89;
    pub const GETEUID: usize = 107;
    pub const GETEGID: usize = 108;
    pub const SIGALTSTACK: usize = 131;
    pub const MUNLOCK: usize = 150;
    pub const PRCTL: usize = 157;
    pub const GETTID: usize = 186;
    pub const FGETXATTR: usize = 193;
    pub const FUTEX: usize = 202;
    pub const CLOCK_GETTIME: usize = 228;
    pub const OPENAT: usize = 257;
    pub const PRLIMIT: usize = 302;
    pub const PROCESS_VM_READV: usize = 310;
    pub const GETRANDOM: usize = 318;
    pub const MEMFD_CREATE: usize = 319;
    pub const MEMBARRIER: usize = 324;
    pub const PKEY_MPROTECT: usize = 329;
}

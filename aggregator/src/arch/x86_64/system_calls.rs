//! The system calls that there are, and those that Heapline makes in a process.

/// Number of the architecture in the data of a seccomp filter (`AUDIT_ARCH_X86_64`).
pub const ARCHITECTURE: u32 = 0xc000_003e;

/// System calls that make a process or thread.
pub const MAKE_PROCESSES: [i64; 4] = [libc::SYS_clone, libc::SYS_clone3, libc::SYS_fork, libc::SYS_vfork];

/// Numbers and names of the system calls made by the injection and the hooks.
pub const CALLS: &[(i64, &str)] = &[
    (libc::SYS_mmap, "mmap"),
    (libc::SYS_mprotect, "mprotect"),
    (libc::SYS_munmap, "munmap"),
    (libc::SYS_memfd_create, "memfd_create"),
    (libc::SYS_close, "close"),
    (libc::SYS_openat, "openat"),
    (libc::SYS_read, "read"),
    (libc::SYS_pread64, "pread64"),
    (libc::SYS_fstat, "fstat"),
    (libc::SYS_newfstatat, "newfstatat"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fcntl, "fcntl"),
    (libc::SYS_getrlimit, "getrlimit"),
    (libc::SYS_membarrier, "membarrier"),
    (libc::SYS_madvise, "madvise"),
    (libc::SYS_futex, "futex"),
    (libc::SYS_getpid, "getpid"),
    (libc::SYS_gettid, "gettid"),
    (libc::SYS_prctl, "prctl"),
    (libc::SYS_clock_gettime, "clock_gettime"),
    (libc::SYS_rt_sigprocmask, "rt_sigprocmask"),
    (libc::SYS_rt_sigreturn, "rt_sigreturn"),
    (libc::SYS_sigaltstack, "sigaltstack"),
    (libc::SYS_getcwd, "getcwd"),
    (libc::SYS_readlink, "readlink"),
    (libc::SYS_ppoll, "ppoll"),
    (libc::SYS_restart_syscall, "restart_syscall"),
];

/// Calls of the collector where the C library does not find objects without a lock.
pub const CALLS_FOR_OBJECTS: &[(i64, &str)] = &[(libc::SYS_process_vm_readv, "process_vm_readv")];

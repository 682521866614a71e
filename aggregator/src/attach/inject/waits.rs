//! Decides which waits in the C library are safe points.
//!
//! The calls of a borrowed thread need locks of the C library and of the loader:
//!
//! | Call | Locks |
//! | --- | --- |
//! | `dlopen`, `dl_iterate_phdr` | the loader (`_dl_load_lock` and similar) |
//! | `dlopen`, `dl_iterate_phdr`, `pthread_atfork` | the arenas of malloc |
//! | `pthread_atfork` | its own lock |
//! | start of a thread for CPython | the thread stacks |
//! | a message of `dlerror` | the locale, and the messages of the locale |
//!
//! A thread with such a lock would wait for itself. A function holds a lock only for a part of one
//! call. A thread with a lock therefore has the taking function on its stack: the loader's own
//! code, or a function of [`HOLDERS`].
//!
//! This test is not enough for a thread at an arbitrary place. For example, no function listed here
//! holds `_IO_list_all`. So the innermost function must also wait for something outside of the C
//! library. One of these conditions must hold:
//! - The function was called as a function of [`WAITS`], and holds no lock at all.
//! - The thread stands in a system call that the kernel has interrupted and will restart. The C
//!   library's internal work never sleeps in such a call, except for the wait for a lock (futex)
//!   and for a new process (clone).
//! - The thread waits for a lock (futex), and was called as a function of [`LOCKS`] or [`STREAMS`].
//! - The call is a plain system call: the stack has only one function of the C library.

use super::entries::Candidates;
use crate::arch::system_calls::MAKE_PROCESSES;

/// Functions without a lock of the C library during their wait.
pub const WAITS: &[&str] = &[
    "accept",
    "accept4",
    "clock_nanosleep",
    "connect",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "fdatasync",
    "flock",
    "fsync",
    "getrandom",
    "io_getevents",
    "ioctl",
    "mq_receive",
    "mq_timedreceive",
    "msgrcv",
    "msgsnd",
    "nanosleep",
    "pause",
    "poll",
    "ppoll",
    "pread",
    "pread64",
    "preadv",
    "pselect",
    "pthread_clockjoin_np",
    "pthread_cond_clockwait",
    "pthread_cond_timedwait",
    "pthread_cond_wait",
    "pthread_join",
    "pthread_timedjoin_np",
    "pwrite",
    "pwrite64",
    "pwritev",
    "read",
    "readv",
    "recv",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "sched_yield",
    "select",
    "sem_clockwait",
    "sem_timedwait",
    "sem_wait",
    "semop",
    "semtimedop",
    "send",
    "sendfile",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "sigpause",
    "sigsuspend",
    "sigtimedwait",
    "sigwait",
    "sigwaitinfo",
    "sleep",
    "splice",
    "syscall",
    "usleep",
    "wait",
    "wait3",
    "wait4",
    "waitid",
    "waitpid",
    "write",
    "writev",
];

/// Functions that wait for other threads of the program. Functions that only try a lock are listed
/// too, because they share code with the waiting functions.
const LOCKS: &[&str] = &[
    "aio_suspend",
    "aio_suspend64",
    "cnd_timedwait",
    "cnd_wait",
    "flockfile",
    "gai_suspend",
    "mtx_lock",
    "mtx_timedlock",
    "pthread_barrier_wait",
    "pthread_clockjoin_np",
    "pthread_cond_clockwait",
    "pthread_cond_timedwait",
    "pthread_cond_wait",
    "pthread_join",
    "pthread_mutex_clocklock",
    "pthread_mutex_lock",
    "pthread_mutex_timedlock",
    "pthread_mutex_trylock",
    "pthread_once",
    "pthread_rwlock_clockrdlock",
    "pthread_rwlock_clockwrlock",
    "pthread_rwlock_rdlock",
    "pthread_rwlock_timedrdlock",
    "pthread_rwlock_timedwrlock",
    "pthread_rwlock_wrlock",
    "pthread_timedjoin_np",
    "pthread_tryjoin_np",
    "sem_clockwait",
    "sem_timedwait",
    "sem_wait",
    "thrd_join",
];

/// Functions of streams, which hold the lock of their stream. Functions with a format are not
/// listed: they may load a character set, with the lock of the locale held.
const STREAMS: &[&str] = &[
    "fclose",
    "fflush",
    "fflush_unlocked",
    "fgetc",
    "fgets",
    "fgets_unlocked",
    "fputc",
    "fputs",
    "fputs_unlocked",
    "fread",
    "fread_unlocked",
    "fwrite",
    "fwrite_unlocked",
    "getc",
    "getc_unlocked",
    "getchar",
    "getdelim",
    "getline",
    "putc",
    "putchar",
    "puts",
];

/// Functions that call the program back, and hold no lock during the call.
const CALLERS: &[&str] = &[
    "bsearch",
    "call_once",
    "ftw",
    "ftw64",
    "lfind",
    "lsearch",
    "nftw",
    "nftw64",
    "pthread_once",
    "qsort",
    "qsort_r",
    "scandir",
    "scandir64",
    "tdestroy",
    "tfind",
    "tsearch",
    "twalk",
    "twalk_r",
];

/// Functions that take a lock needed by a borrowed thread.
const HOLDERS: &[&str] = &[
    // Locks of malloc's arenas.
    "aligned_alloc",
    "calloc",
    "cfree",
    "free",
    "mallinfo",
    "mallinfo2",
    "malloc",
    "malloc_info",
    "malloc_stats",
    "malloc_trim",
    "malloc_usable_size",
    "mallopt",
    "memalign",
    "posix_memalign",
    "pvalloc",
    "realloc",
    "reallocarray",
    "valloc",
    // Locks of the fork handlers, and of all arenas during a fork.
    "_Fork",
    "clone",
    "fork",
    "pthread_atfork",
    "vfork",
    // Locks of the exit handlers.
    "at_quick_exit",
    "atexit",
    "exit",
    "on_exit",
    "quick_exit",
    // Locks of the list of thread stacks.
    "initgroups",
    "pthread_cancel",
    "pthread_create",
    "pthread_exit",
    "pthread_getattr_np",
    "setegid",
    "seteuid",
    "setgid",
    "setgroups",
    "setregid",
    "setresgid",
    "setresuid",
    "setreuid",
    "setuid",
    "thrd_create",
    "thrd_exit",
    // Locks of the locale and of its messages.
    "bind_textdomain_codeset",
    "bindtextdomain",
    "dcgettext",
    "dcngettext",
    "dgettext",
    "dngettext",
    "duplocale",
    "freelocale",
    "gettext",
    "newlocale",
    "ngettext",
    "setlocale",
    "textdomain",
];

/// First functions of a program or a thread: nothing of the program is on the stack.
const BEGINNINGS: &[&str] = &["__clone", "__libc_start_main", "clone"];

/// First letters of the names of other functions with such a lock.
const HOLDING: &[&str] = &["_dl_", "__cxa_", "__libc_dl", "__libc_freeres", "__register_atfork", "dl"];

fn holds(name: &str) -> bool {
    HOLDERS.contains(&name) || HOLDING.iter().any(|begin| name.starts_with(begin))
}

/// Results of a system call that the kernel has interrupted and will restart: ERESTARTSYS,
/// ERESTARTNOINTR, ERESTARTNOHAND and ERESTART_RESTARTBLOCK.
const RESTARTS: [i64; 4] = [-512, -513, -514, -516];
/// System calls for the bytes of streams.
const PASS_BYTES: [i64; 3] = [libc::SYS_read, libc::SYS_write, libc::SYS_writev];

/// A thread whose innermost functions belong to the C library.
pub struct Wait<'a> {
    /// The innermost functions of the C library, innermost first. None for a function that is not
    /// known yet.
    pub functions: &'a [Option<Candidates>],
    /// System call in progress; negative outside of a system call.
    pub system_call: i64,
    /// Result of the system call.
    pub result: i64,
}

impl Wait<'_> {
    /// Checks that the thread is at a safe point. The error is the reason against the thread.
    pub fn check(&self) -> Result<(), String> {
        let unknown = || "it is in the C library".to_owned();
        let entry = self.functions.last().ok_or_else(unknown)?.as_ref().ok_or_else(unknown)?;
        if entry.are_all(among(WAITS)) {
            return Ok(());
        }
        for function in self.functions {
            if let Some(holder) = function.as_ref().ok_or_else(unknown)?.find(holds) {
                return Err(format!("it is in {holder}"));
            }
        }
        let is_plain = self.functions.len() == 1 && self.system_call >= 0;
        let is_stream = entry.are_all(among(STREAMS));
        let is_known = !entry.is_empty() && entry.find(among(BEGINNINGS)).is_none();
        let is_safe = match self.system_call {
            call if MAKE_PROCESSES.contains(&call) => false,
            call if PASS_BYTES.contains(&call) && is_stream => true,
            libc::SYS_futex => self.is_interrupted() && (is_stream || entry.are_all(among(LOCKS))),
            _ => is_known && (is_plain || self.is_interrupted()),
        };
        if is_safe { Ok(()) } else { Err(format!("it is in {}", entry.name())) }
    }

    fn is_interrupted(&self) -> bool {
        self.system_call >= 0 && RESTARTS.contains(&self.result)
    }
}

/// Whether functions of the C library, innermost first, only call the program back. The outermost
/// function may belong to a stream.
pub fn call_back(functions: &[Option<Candidates>]) -> bool {
    let are_known = functions.iter().all(|function| function.as_ref().is_some_and(|known| known.find(holds).is_none()));
    let entry = functions.last().and_then(Option::as_ref);
    are_known && entry.is_some_and(|entry| entry.are_all(|name| among(CALLERS)(name) || among(STREAMS)(name)))
}

fn among(list: &'static [&'static str]) -> impl Fn(&str) -> bool {
    |name| list.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(names: &str) -> Vec<Option<Candidates>> {
        let function = |name: &str| match name {
            "?" => None,
            "static" => Some(Candidates::default()),
            name => Some(Candidates::one(vec![name.to_owned()])),
        };
        names.split(' ').map(function).collect()
    }

    fn is_safe(names: &str, system_call: i64, result: i64) -> bool {
        Wait { functions: &stack(names), system_call, result }.check().is_ok()
    }

    #[test]
    fn lists_are_in_order() {
        assert!([WAITS, LOCKS, STREAMS, CALLERS].iter().all(|list| list.is_sorted()));
    }

    #[test]
    fn what_waits_outside_of_the_c_library_is_safe() {
        for (names, call) in [
            ("read _IO_file_read _IO_file_underflow static _IO_default_uflow", libc::SYS_read),
            ("read static static scanf", libc::SYS_read),
            ("wait4 static system", libc::SYS_wait4),
            ("wait4 _IO_proc_close _IO_file_close_it fclose", libc::SYS_wait4),
            ("static static pthread_rwlock_wrlock", libc::SYS_futex),
            ("__lll_lock_wait_private fgets", libc::SYS_futex),
            ("fcntl lockf", libc::SYS_fcntl),
            ("open", libc::SYS_openat),
        ] {
            assert!(is_safe(names, call, -512), "{names}");
        }
        assert!(is_safe("write _IO_file_write fwrite", libc::SYS_write, 4096), "whether or not it had to wait");
        assert!(is_safe("sched_setaffinity", libc::SYS_sched_setaffinity, 0), "a plain system call");
        assert!(is_safe("epoll_wait", libc::SYS_epoll_wait, -4), "which the kernel does not restart");
    }

    #[test]
    fn what_may_hold_a_lock_is_not() {
        for (names, call) in [
            ("__lll_lock_wait_private malloc", libc::SYS_futex),
            ("__lll_lock_wait_private static malloc getdelim", libc::SYS_futex),
            ("read static free getline", libc::SYS_read),
            ("static dl_iterate_phdr", libc::SYS_futex),
            ("static __register_atfork", libc::SYS_futex),
            ("static static mbrtowc", libc::SYS_futex),
            ("_Fork fork", libc::SYS_clone),
            ("static static posix_spawn", libc::SYS_clone),
            ("write static exit", libc::SYS_write),
            ("read static setlocale", libc::SYS_read),
            ("read static dcgettext", libc::SYS_read),
            ("read static", libc::SYS_read),
            ("read ? scanf", libc::SYS_read),
            ("read static clone", libc::SYS_read),
            ("static setuid", libc::SYS_futex),
        ] {
            assert!(!is_safe(names, call, -512), "{names}");
        }
        assert!(!is_safe("read static getpwnam", libc::SYS_read, 100), "it runs");
        assert!(!is_safe("memcpy", -1, 0) && !is_safe("mmap malloc", libc::SYS_mmap, 0));
    }

    #[test]
    fn a_function_may_call_back_that_holds_nothing() {
        assert!(call_back(&stack("static qsort")) && call_back(&stack("pthread_once")));
        for names in ["static dl_iterate_phdr", "static exit", "static fork", "? qsort", "static", "getpwnam"] {
            assert!(!call_back(&stack(names)), "{names}");
        }
    }
}

//! exec, `posix_spawn` and similar calls: the next program of a traced process, and programs of its
//! children, are traced too.
//!
//! A new program finds the collector by LD_PRELOAD, and the aggregator by a second variable:
//!
//! | Program | Second variable |
//! | --- | --- |
//! | in the same process | descriptor of the process's arena, left open for the program |
//! | in a child | way to the aggregator's socket ([`heapline_shared_format::tree`]) |
//! | in the same process, without descriptor | way to the aggregator's socket |
//!
//! The collector of the new program removes both variables again.
//!
//! A vfork child shares memory and stack with the parent, so a vfork child writes only below its
//! own frames.

mod list;
mod program;
mod spawn;

use crate::start;
use program::{Fit, Program, Started};
pub use spawn::{Request, popen, posix_spawn, posix_spawnp, system};

use crate::platform::environment::ArenaHandle;
use crate::platform::sys;
use crate::process::Process;
use crate::real::Next;
use crate::{fail, process, real};
use core::ffi::{CStr, c_char, c_int};
use core::ptr;
use core::sync::atomic::Ordering;
use heapline_shared_format::tree::Way;

/// A null-terminated list of C strings.
pub type List = *const *const c_char;

/// The second variable of a new program, by which the collector finds the aggregator.
#[derive(Clone, Copy)]
enum Passage {
    /// Handle of the process's arena.
    Arena(ArenaHandle),
    /// Way to the aggregator, for a program with a new arena.
    Way(Way),
}

impl Passage {
    /// Returns the passage for a program run by a new process.
    fn for_child() -> Option<Passage> {
        start::way_for_children().map(Passage::Way)
    }

    /// Returns the passage for the program by which exec replaces the present program.
    fn for_exec() -> Option<Passage> {
        let own = process::get().filter(|process| process.is_traced() && process.is_self());
        // With a limited address space, the next program may have room for a smaller arena only.
        match own.filter(|process| start::has_room_again(process)).and_then(Process::arena_fd) {
            Some(arena) => Some(Passage::Arena(arena)),
            None => Passage::for_child(),
        }
    }

    /// Returns the passage suitable for the program. None if the program cannot take the collector,
    /// or if the collector's file is gone.
    ///
    /// A static program never takes an arena: a static program may start several programs, and an
    /// arena has one program at a time.
    ///
    /// # Safety
    /// The caller upholds the contract of [`Started::fit`].
    unsafe fn fitting(self, started: Started) -> Option<Passage> {
        let own_path = process::own_path();
        if own_path.is_empty() {
            return None;
        }
        // SAFETY: a zero byte follows the path; the caller upholds the contract of `Started::fit`.
        let fit = fail::guard(|| unsafe {
            sys::open_program(own_path.as_ptr().cast()).map_or(Fit::Refuses, |_| started.fit())
        });
        match fit {
            Some(Fit::Loads) => Some(self),
            Some(Fit::Launches) => Passage::for_child(),
            Some(Fit::Refuses) | None => None,
        }
    }
}

/// Runs an exec call with an environment for tracing if possible, otherwise with the caller's
/// environment.
///
/// # Safety
/// 1. `started` describes the arguments of the call.
/// 2. The lists in `started` are null-terminated lists of C strings, or null.
/// 3. Nobody changes libc's environment during the call.
unsafe fn with_tracing(started: Started, call: impl Fn(List) -> c_int) -> c_int {
    let own = process::get().filter(|process| process.is_traced() && process.is_self());
    let passage = Passage::for_exec();
    // Counted in any case, so that the aggregator knows of a program without tracing.
    if let Some(own) = own {
        own.header().target.exec_begun.fetch_add(1, Ordering::Release);
    }
    // SAFETY: the caller gives promises 1 to 3 about `started`.
    let status = unsafe { with_what_fits(passage, started, call) };
    // Only a failed call returns.
    if let Some(own) = own {
        own.header().target.exec_failed.fetch_add(1, Ordering::Release);
    }
    status
}

/// Runs a call that starts another process, with an environment for tracing if possible.
///
/// # Safety
/// The obligations of [`with_tracing`].
unsafe fn with_following(started: Started, call: impl Fn(List) -> c_int) -> c_int {
    // SAFETY: the caller gives promises 1 to 3 of `with_tracing` about `started`.
    unsafe { with_what_fits(Passage::for_child(), started, call) }
}

/// Runs a call with a passage in the environment, if the started program can take a passage.
///
/// # Safety
/// The obligations of [`with_tracing`].
unsafe fn with_what_fits(passage: Option<Passage>, started: Started, call: impl Fn(List) -> c_int) -> c_int {
    // SAFETY: the caller gives promises 1 to 3 of `with_tracing` about `started`.
    unsafe {
        match passage.and_then(|passage| passage.fitting(started)) {
            Some(passage) => with_passage(passage, started.environment, call),
            None => call(started.environment),
        }
    }
}

/// Runs a call with a passage in the environment. An arena's descriptor stays open across the exec.
///
/// # Safety
/// `environment` is a null-terminated list of C strings, or null.
unsafe fn with_passage(passage: Passage, environment: List, call: impl Fn(List) -> c_int) -> c_int {
    // SAFETY: the caller guarantees that `environment` is a null-terminated list, or null.
    unsafe {
        list::with(passage, environment, |list| match passage {
            Passage::Arena(arena) if !ptr::eq(list, environment) => {
                sys::set_close_on_exec(arena.fd, false);
                let status = call(list);
                sys::set_close_on_exec(arena.fd, true);
                status
            }
            _ => call(list),
        })
    }
}

/// Returns the environment used by exec functions without an environment argument.
pub fn current_environment() -> List {
    crate::platform::environment::current()
}

/// Returns the environment argument behind the null of the argument list of `execle`.
///
/// # Safety
/// `arguments` is null-terminated, and a pointer follows the null.
pub unsafe fn behind(arguments: List) -> List {
    // SAFETY: the caller guarantees a pointer behind the null of `arguments`.
    unsafe { (*arguments.add(list::length(arguments) + 1)).cast() }
}

macro_rules! exec_call {
    (
        $(#[$doc:meta])* $name:ident($($before:ident: $type:ty),*; environment $(, $after:ident: $after_type:ty)*),
        $program:expr, $arguments:ident
    ) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The caller upholds the contract of the C function of this name.
        pub unsafe fn $name($($before: $type,)* environment: List $(, $after: $after_type)*) -> c_int {
            // SAFETY: a C string made from the function's name and a zero byte.
            static NEXT: Next = Next::new(unsafe {
                CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes())
            });
            type Function = unsafe extern "C" fn($($type,)* List $(, $after_type)*) -> c_int;
            let Some(next) = NEXT.get() else {
                real::set_errno(ENOSYS);
                return -1;
            };
            // SAFETY: `next` is the C function of this name, called with the caller's arguments.
            unsafe {
                let next: Function = core::mem::transmute(next);
                let started = Started { program: $program, arguments: $arguments, environment };
                with_tracing(started, |environment| next($($before,)* environment $(, $after)*))
            }
        }
    };
}

const ENOSYS: c_int = 38;

exec_call!(
    /// `execve`.
    execve(path: *const c_char, arguments: List; environment), Program::At(path), arguments
);
exec_call!(
    /// `execvpe`.
    execvpe(file: *const c_char, arguments: List; environment), Program::Named(file), arguments
);
exec_call!(
    /// `fexecve`.
    fexecve(fd: c_int, arguments: List; environment), Program::Open(fd), arguments
);
exec_call!(
    /// `execveat`.
    execveat(directory: c_int, path: *const c_char, arguments: List; environment, flags: c_int),
    below(directory, path, flags), arguments
);

/// Returns the program described by the arguments of `execveat`.
///
/// # Safety
/// `path` is a C string, or null.
unsafe fn below(directory: c_int, path: *const c_char, flags: c_int) -> Program {
    const AT_FDCWD: c_int = -100;
    const AT_EMPTY_PATH: c_int = 0x1000;
    // SAFETY: the caller guarantees that `path` is a C string, or null.
    match unsafe { (!path.is_null()).then(|| CStr::from_ptr(path).to_bytes()) } {
        Some(b"") if flags & AT_EMPTY_PATH != 0 => Program::Open(directory),
        Some([b'/', ..]) => Program::At(path),
        Some(_) if directory == AT_FDCWD => Program::At(path),
        _ => Program::Unknown,
    }
}

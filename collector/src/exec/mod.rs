//! exec, `posix_spawn` and their kin: a traced process's next program, and its children's, are traced too.
//!
//! The new program finds the collector by LD_PRELOAD, and its aggregator by a second variable: the same process by the
//! descriptor of its arena, which is left open for it; a child, and a process without that descriptor, by the way to the
//! aggregator's socket ([`heapline_shared_format::tree`]). The new program's collector removes both variables again.
//!
//! A vfork child shares its parent's memory and stack: nothing is written there but below its own frames.

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

/// How a new program finds its aggregator.
#[derive(Clone, Copy)]
enum Passage {
    /// The process's own arena.
    Arena(ArenaHandle),
    /// An arena of its own.
    Way(Way),
}

impl Passage {
    /// For a program that a new process runs.
    fn for_child() -> Option<Passage> {
        start::way_for_children().map(Passage::Way)
    }

    /// For the program that exec puts in the place of the present one.
    fn for_exec() -> Option<Passage> {
        let own = process::get().filter(|process| process.is_traced() && process.is_self());
        // Where the address space is limited, the next program may have room for a smaller arena only.
        match own.filter(|process| start::has_room_again(process)).and_then(Process::arena_fd) {
            Some(arena) => Some(Passage::Arena(arena)),
            None => Passage::for_child(),
        }
    }

    /// The passage that a program takes. None where the collector stays out of it, or is not to be
    /// found any more.
    ///
    /// A static program never takes an arena: it may start several programs, and an arena has one
    /// at a time.
    ///
    /// # Safety
    /// As [`Started::fit`].
    unsafe fn fitting(self, started: Started) -> Option<Passage> {
        let own_path = process::own_path();
        if own_path.is_empty() {
            return None;
        }
        // SAFETY: a zero byte follows the path; the caller's promise.
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

/// Runs an exec call with the environment that keeps the process traced, where that can be; else with its own.
///
/// # Safety
/// `started` is what the call is given; its lists are null-terminated lists of C strings, or null.
unsafe fn with_tracing(started: Started, call: impl Fn(List) -> c_int) -> c_int {
    let own = process::get().filter(|process| process.is_traced() && process.is_self());
    let passage = Passage::for_exec();
    // Counted in any case, so that the aggregator knows of a program that will not be traced.
    if let Some(own) = own {
        own.header().target.exec_begun.fetch_add(1, Ordering::Release);
    }
    // SAFETY: the caller's promises.
    let status = unsafe { with_what_fits(passage, started, call) };
    // Only a failed call returns.
    if let Some(own) = own {
        own.header().target.exec_failed.fetch_add(1, Ordering::Release);
    }
    status
}

/// Runs a call that starts another process, likewise.
///
/// # Safety
/// As [`with_tracing`].
unsafe fn with_following(started: Started, call: impl Fn(List) -> c_int) -> c_int {
    // SAFETY: the caller's promises.
    unsafe { with_what_fits(Passage::for_child(), started, call) }
}

/// Runs a call with a passage in its environment, if the program that it starts takes one.
///
/// # Safety
/// As [`with_tracing`].
unsafe fn with_what_fits(passage: Option<Passage>, started: Started, call: impl Fn(List) -> c_int) -> c_int {
    // SAFETY: the caller's promises.
    unsafe {
        match passage.and_then(|passage| passage.fitting(started)) {
            Some(passage) => with_passage(passage, started.environment, call),
            None => call(started.environment),
        }
    }
}

/// # Safety
/// `environment` is a null-terminated list of C strings, or null.
unsafe fn with_passage(passage: Passage, environment: List, call: impl Fn(List) -> c_int) -> c_int {
    // SAFETY: the caller's promise.
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

/// The environment that the functions without an environment argument pass on.
pub fn current_environment() -> List {
    crate::platform::environment::current()
}

/// The environment argument behind the null of `execle`'s list.
///
/// # Safety
/// `arguments` is null-terminated, and a pointer follows the null.
pub unsafe fn behind(arguments: List) -> List {
    // SAFETY: the caller's promise.
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
        /// As the C function's.
        pub unsafe fn $name($($before: $type,)* environment: List $(, $after: $after_type)*) -> c_int {
            // SAFETY: a C string made from the function's name.
            static NEXT: Next = Next::new(unsafe {
                CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes())
            });
            type Function = unsafe extern "C" fn($($type,)* List $(, $after_type)*) -> c_int;
            let Some(next) = NEXT.get() else {
                real::set_errno(ENOSYS);
                return -1;
            };
            // SAFETY: the C function of that name; the arguments are the caller's.
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

/// The program that `execveat` is given.
///
/// # Safety
/// `path` is a C string, or null.
unsafe fn below(directory: c_int, path: *const c_char, flags: c_int) -> Program {
    const AT_FDCWD: c_int = -100;
    const AT_EMPTY_PATH: c_int = 0x1000;
    // SAFETY: the caller's promise.
    match unsafe { (!path.is_null()).then(|| CStr::from_ptr(path).to_bytes()) } {
        Some(b"") if flags & AT_EMPTY_PATH != 0 => Program::Open(directory),
        Some([b'/', ..]) => Program::At(path),
        Some(_) if directory == AT_FDCWD => Program::At(path),
        _ => Program::Unknown,
    }
}

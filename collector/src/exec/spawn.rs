//! Hooks of calls for starting a program in a new process: `posix_spawn`, `posix_spawnp`, `system`
//! and `popen`.
//!
//! libc takes the process's own environment for the programs of `system` and `popen`. While the
//! process has one thread, another environment is put in its place for the call. With several
//! threads another thread could see the changed environment, so the program is not traced then, and
//! counted as untold.

use super::{List, Passage, Program, Started, list, with_following};
use crate::platform::{environment, sys};
use crate::real::Next;
use crate::{process, real};
use core::cell::Cell;
use core::ffi::{c_char, c_int, c_void};
use core::ptr;

const ENOSYS: c_int = 38;

type Spawn = unsafe extern "C" fn(*mut c_int, *const c_char, *const c_void, *const c_void, List, List) -> c_int;

/// Arguments of `posix_spawn`, without the environment.
#[expect(missing_docs, reason = "the C function's arguments, in its order")]
pub struct Request {
    pub pid: *mut c_int,
    pub program: *const c_char,
    pub actions: *const c_void,
    pub attributes: *const c_void,
    pub arguments: List,
}

/// `posix_spawn`.
///
/// # Safety
/// The caller upholds the contract of the C function `posix_spawn`.
pub unsafe fn posix_spawn(request: Request, environment: List) -> c_int {
    static NEXT: Next = Next::new(c"posix_spawn");
    // SAFETY: the caller upholds the contract of the C function `posix_spawn`.
    unsafe { spawn(&NEXT, Program::At(request.program), request, environment) }
}

/// `posix_spawnp`.
///
/// # Safety
/// The caller upholds the contract of the C function `posix_spawnp`.
pub unsafe fn posix_spawnp(request: Request, environment: List) -> c_int {
    static NEXT: Next = Next::new(c"posix_spawnp");
    // SAFETY: the caller upholds the contract of the C function `posix_spawnp`.
    unsafe { spawn(&NEXT, Program::Named(request.program), request, environment) }
}

unsafe fn spawn(next: &Next, program: Program, request: Request, environment: List) -> c_int {
    let Some(next) = next.get() else { return ENOSYS };
    let Request { pid, program: path, actions, attributes, arguments } = request;
    // SAFETY: `next` is the C function of this request, called with the caller's arguments.
    unsafe {
        let next: Spawn = core::mem::transmute(next);
        let started = Started { program, arguments, environment };
        with_following(started, |environment| next(pid, path, actions, attributes, arguments, environment))
    }
}

/// `system`.
///
/// # Safety
/// The caller upholds the contract of the C function `system`.
pub unsafe fn system(command: *const c_char) -> c_int {
    static NEXT: Next = Next::new(c"system");
    let Some(next) = NEXT.get() else { return -1 };
    // SAFETY: `next` is the C function `system`, called with the caller's argument.
    unsafe {
        let next: unsafe extern "C" fn(*const c_char) -> c_int = core::mem::transmute(next);
        with_shell(|| next(command))
    }
}

/// `popen`.
///
/// # Safety
/// The caller upholds the contract of the C function `popen`.
pub unsafe fn popen(command: *const c_char, kind: *const c_char) -> *mut c_void {
    static NEXT: Next = Next::new(c"popen");
    let Some(next) = NEXT.get() else {
        real::set_errno(ENOSYS);
        return ptr::null_mut();
    };
    // SAFETY: `next` is the C function `popen`, called with the caller's arguments.
    unsafe {
        let next: unsafe extern "C" fn(*const c_char, *const c_char) -> *mut c_void = core::mem::transmute(next);
        with_shell(|| next(command, kind))
    }
}

/// Runs a libc call that starts a shell, with a passage in the environment if possible.
fn with_shell<R: Copy>(call: impl Fn() -> R) -> R {
    let program = Program::At(c"/bin/sh".as_ptr());
    let started = Started { program, arguments: ptr::null(), environment: environment::current() };
    // SAFETY: the path of libc's shell, and libc's own environment list.
    let passage = Passage::for_child().and_then(|passage| unsafe { passage.fitting(started) });
    let Some(passage) = passage else { return call() };
    if !has_one_thread() {
        process::count_untold();
        return call();
    }
    let result = Cell::new(None);
    // SAFETY: libc's own environment list; no other thread runs, so nobody sees the changed
    // environment.
    unsafe {
        list::with(passage, environment::current(), |list| {
            result.set(Some(environment::with(list, &call)));
            0
        });
    }
    result.get().unwrap_or_else(call)
}

optional!(
    /// Address of `__libc_single_threaded`, of glibc 2.32 and later.
    single_threaded_address,
    "single_threaded_address",
    "__libc_single_threaded"
);

/// Whether it is certain that no other thread runs: by libc's word, or else by the kernel's.
fn has_one_thread() -> bool {
    let flag = single_threaded_address();
    if flag == 0 {
        return !process::is_sandboxed() && sys::thread_count() == Some(1);
    }
    // SAFETY: the address of libc's byte, checked not to be 0.
    unsafe { (flag as *const u8).read_volatile() != 0 }
}

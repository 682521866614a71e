//! Hooks of calls with side effects on the collector: unloading code (`dlclose`), locking memory
//! (`mlockall`), a new stack for signal handlers (`sigaltstack`), switching a clock off or
//! restricting system calls (`prctl`), and taking the last key for values of threads
//! (`pthread_key_create`).

use crate::platform::{objects, sys};
use crate::real::Next;
use crate::start;
use crate::{inner, modules, process, python, thread};
use core::ffi::{c_int, c_uint, c_ulong, c_void};
use core::ptr;
use core::sync::atomic::Ordering;
use heapline_shared_format::arena::{clock, end_cause};

/// `dlclose`. The collector forgets the unloaded code.
///
/// # Safety
/// The caller upholds the contract of the C function `dlclose`.
pub unsafe fn dlclose(handle: *mut c_void) -> c_int {
    static NEXT: Next = Next::new(c"dlclose");
    let Some(next) = NEXT.get() else { return -1 };
    let closing = python::closing();
    // SAFETY: `next` is the C function `dlclose`.
    let status = unsafe { core::mem::transmute::<*mut (), unsafe extern "C" fn(*mut c_void) -> c_int>(next)(handle) };
    if let Some(closing) = closing {
        python::closed(closing);
    }
    objects::renew(ptr::null());
    inner::unloaded();
    if process::get().is_some_and(|p| p.is_traced()) {
        let mut thread = thread::enter(thread::stack_pointer());
        modules::unloaded(thread.as_deref_mut());
        if let Some(thread) = thread {
            thread::leave(thread);
        }
    }
    status
}

/// `mlockall`. The collector unlocks the arena again: the program locks only memory of its own.
///
/// # Safety
/// The caller upholds the contract of the C function `mlockall`.
pub unsafe fn mlockall(flags: c_int) -> c_int {
    static NEXT: Next = Next::new(c"mlockall");
    let Some(next) = NEXT.get() else { return -1 };
    // SAFETY: `next` is the C function `mlockall`.
    let status = unsafe { core::mem::transmute::<*mut (), unsafe extern "C" fn(c_int) -> c_int>(next)(flags) };
    if status == 0
        && let Some(process) = process::get()
    {
        let arena = process.arena();
        sys::unlock((&raw const *arena.header()).cast(), arena.geometry().bytes());
    }
    status
}

/// `sigaltstack`. The collector forgets the known bounds of the calling thread's stack.
///
/// # Safety
/// The caller upholds the contract of the C function `sigaltstack`.
pub unsafe fn sigaltstack(new: *const c_void, old: *mut c_void) -> c_int {
    static NEXT: Next = Next::new(c"sigaltstack");
    let Some(next) = NEXT.get() else { return -1 };
    type Function = unsafe extern "C" fn(*const c_void, *mut c_void) -> c_int;
    // SAFETY: `next` is the C function `sigaltstack`.
    let status = unsafe { core::mem::transmute::<*mut (), Function>(next)(new, old) };
    if status == 0 && !new.is_null() {
        thread::forget_room();
    }
    status
}

/// `pthread_key_create`. A program that needs every key gets the collector's too.
///
/// # Safety
/// The caller upholds the contract of the C function `pthread_key_create`.
pub unsafe fn pthread_key_create(key: *mut c_uint, destructor: *const c_void) -> c_int {
    const EAGAIN: c_int = 11;
    static NEXT: Next = Next::new(c"pthread_key_create");
    type Function = unsafe extern "C" fn(*mut c_uint, *const c_void) -> c_int;
    let Some(next) = NEXT.get() else { return EAGAIN };
    // SAFETY: `next` is the C function `pthread_key_create`, called with the caller's arguments.
    let create = || unsafe { core::mem::transmute::<*mut (), Function>(next)(key, destructor) };
    match create() {
        EAGAIN if thread::give_up_key() => create(),
        status => status,
    }
}

/// `prctl`. Two options matter to the collector:
///
/// - Restricting system calls: the collector makes its own system calls first.
/// - Forbidding the time-stamp counter: reading a stamp would raise SIGSEGV, so tracing by this
///   clock ends.
///
/// # Safety
/// The caller upholds the contract of the C function `prctl`.
pub unsafe fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int {
    const PR_SET_TSC: c_int = 26;
    const PR_SET_SECCOMP: c_int = 22;
    const PR_SET_NO_NEW_PRIVS: c_int = 38;
    const PR_TSC_SIGSEGV: c_ulong = 2;
    static NEXT: Next = Next::new(c"prctl");
    type Function = unsafe extern "C" fn(c_int, ...) -> c_int;
    let Some(next) = NEXT.get() else { return -1 };
    // PR_SET_NO_NEW_PRIVS precedes a seccomp filter, also where another call than prctl sets the
    // filter.
    if matches!(option, PR_SET_SECCOMP | PR_SET_NO_NEW_PRIVS) {
        start::before_sandbox(thread::stack_pointer());
    }
    if option == PR_SET_TSC
        && a == PR_TSC_SIGSEGV
        && let Some(process) = process::get()
        && process.header().session.clock.load(Ordering::Relaxed) == clock::TSC
    {
        process::end(end_cause::CLOCK);
    }
    // SAFETY: `next` is the C function `prctl`, called with the caller's arguments.
    unsafe { core::mem::transmute::<*mut (), Function>(next)(option, a, b, c, d) }
}

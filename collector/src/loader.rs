//! Calls that change the ground under the collector: code that is unloaded, memory that is locked, a stack for signal
//! handlers, a clock that is switched off.

use crate::platform::sys;
use crate::real::Next;
use crate::start;
use crate::{inner, modules, process, python, thread};
use core::ffi::{c_int, c_ulong, c_void};
use core::sync::atomic::Ordering;
use heapline_shared_format::arena::{clock, end_cause};

/// `dlclose`.
///
/// # Safety
/// As the C function's.
pub unsafe fn dlclose(handle: *mut c_void) -> c_int {
    static NEXT: Next = Next::new(c"dlclose");
    let Some(next) = NEXT.get() else { return -1 };
    let closing = python::closing();
    // SAFETY: the C function of that name.
    let status = unsafe { core::mem::transmute::<*mut (), unsafe extern "C" fn(*mut c_void) -> c_int>(next)(handle) };
    if let Some(closing) = closing {
        python::closed(closing);
    }
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

/// `mlockall`: what the program locks is its own, so the arena is let go again.
///
/// # Safety
/// As the C function's.
pub unsafe fn mlockall(flags: c_int) -> c_int {
    static NEXT: Next = Next::new(c"mlockall");
    let Some(next) = NEXT.get() else { return -1 };
    // SAFETY: the C function of that name.
    let status = unsafe { core::mem::transmute::<*mut (), unsafe extern "C" fn(c_int) -> c_int>(next)(flags) };
    if status == 0
        && let Some(process) = process::get()
    {
        let arena = process.arena();
        sys::unlock((&raw const *arena.header()).cast(), arena.geometry().bytes());
    }
    status
}

/// `sigaltstack`: what is known of the calling thread's stack has to be found out anew.
///
/// # Safety
/// As the C function's.
pub unsafe fn sigaltstack(new: *const c_void, old: *mut c_void) -> c_int {
    static NEXT: Next = Next::new(c"sigaltstack");
    let Some(next) = NEXT.get() else { return -1 };
    type Function = unsafe extern "C" fn(*const c_void, *mut c_void) -> c_int;
    // SAFETY: the C function of that name.
    let status = unsafe { core::mem::transmute::<*mut (), Function>(next)(new, old) };
    if status == 0 && !new.is_null() {
        thread::forget_room();
    }
    status
}

/// `prctl`. Before the program restricts its system calls, what we need of them is made. Where the program forbids itself the time-stamp counter, a stamp would be SIGSEGV: tracing by it ends.
///
/// # Safety
/// As the C function's.
pub unsafe fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int {
    const PR_SET_TSC: c_int = 26;
    const PR_SET_SECCOMP: c_int = 22;
    const PR_SET_NO_NEW_PRIVS: c_int = 38;
    const PR_TSC_SIGSEGV: c_ulong = 2;
    static NEXT: Next = Next::new(c"prctl");
    type Function = unsafe extern "C" fn(c_int, ...) -> c_int;
    let Some(next) = NEXT.get() else { return -1 };
    // The second is what comes before the first, also where that is made by another call.
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
    // SAFETY: the C function of that name, with the caller's arguments.
    unsafe { core::mem::transmute::<*mut (), Function>(next)(option, a, b, c, d) }
}

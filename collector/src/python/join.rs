//! CPython's allocators in a running process: hooking at an attach, unhooking at a detach, with the
//! interpreter's lock.
//!
//! The aggregator borrows a thread of the target for an attach. The borrowed thread may hold the
//! interpreter's lock or be waiting for it, so it cannot take the lock. A new thread takes the lock
//! instead, once for each attach and each detach, and ends. The collector starts no other threads,
//! and nothing in the target waits for the thread.

use super::{Api, IS_INSTALLED, api, arrival, install, note_unseen_reuse, uninstall};
use crate::process;
use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering;
use heapline_shared_format::arena::target_flag;
use heapline_shared_format::inject::python;

optional!(
    /// `pthread_create`, part of glibc's libc since 2.34.
    create_address,
    "pthread_create_address",
    "pthread_create"
);
optional!(
    /// `pthread_detach`, part of glibc's libc since 2.34.
    detach_address,
    "pthread_detach_address",
    "pthread_detach"
);
optional!(
    /// `pthread_sigmask`, part of glibc's libc since 2.34.
    sigmask_address,
    "pthread_sigmask_address",
    "pthread_sigmask"
);

type Create = unsafe extern "C" fn(*mut usize, *const c_void, Body, *mut c_void) -> c_int;
type Body = unsafe extern "C" fn(*mut c_void) -> *mut c_void;
type Detach = unsafe extern "C" fn(usize) -> c_int;
type Sigmask = unsafe extern "C" fn(c_int, *const u64, *mut u64) -> c_int;

/// Hooks the allocators of a running interpreter. An interpreter begun later is hooked at its
/// start. Returns a state of [`python`].
pub fn join() -> u64 {
    arrival::seek();
    match api() {
        Some(api) if api.runs() => in_a_thread(hook),
        None if arrival::met_unknown() => python::UNKNOWN,
        _ => python::NONE,
    }
}

/// Unhooks the interpreter's allocators. Returns a state of [`python`].
pub fn part() -> u64 {
    if !IS_INSTALLED.load(Ordering::Acquire) {
        return python::NONE;
    }
    match api() {
        Some(api) if api.runs() => in_a_thread(unhook),
        // An interpreter begun later keeps its own allocators.
        _ => {
            IS_INSTALLED.store(false, Ordering::Release);
            python::NONE
        }
    }
}

/// Starts a thread with the body `work`. The thread begins with the borrowed thread's signal mask,
/// in which nearly all signals are blocked.
fn in_a_thread(work: Body) -> u64 {
    set_flags(target_flag::PYTHON_WAITS, 0);
    if start_thread(work).is_none() {
        set_flags(0, target_flag::PYTHON_WAITS);
        return python::REFUSED;
    }
    python::WAITING
}

fn start_thread(work: Body) -> Option<()> {
    let (create, detach) = (create_address(), detach_address());
    if create == 0 || detach == 0 {
        return None;
    }
    let mut thread = 0;
    // SAFETY: two functions of libc, a body of the right type, and default attributes.
    unsafe {
        let create = core::mem::transmute::<usize, Create>(create);
        if create(&raw mut thread, core::ptr::null(), work, core::ptr::null_mut()) != 0 {
            return None;
        }
        core::mem::transmute::<usize, Detach>(detach)(thread);
    }
    Some(())
}

unsafe extern "C" fn hook(_: *mut c_void) -> *mut c_void {
    with_lock(|api| {
        install(api);
        IS_INSTALLED.store(true, Ordering::Release);
        // SAFETY: the thread holds the interpreter's lock.
        let hears = !process::is_sampling() && api.teller.is_some_and(|teller| unsafe { teller.join() });
        if !hears {
            note_unseen_reuse();
        }
        set_flags(target_flag::PYTHON_HOOKED, target_flag::PYTHON_WAITS);
    });
    core::ptr::null_mut()
}

unsafe extern "C" fn unhook(_: *mut c_void) -> *mut c_void {
    with_lock(|api| {
        IS_INSTALLED.store(false, Ordering::Release);
        if let Some(teller) = api.teller {
            // SAFETY: the thread holds the interpreter's lock.
            unsafe { teller.part() };
        }
        uninstall(api);
        set_flags(0, target_flag::PYTHON_HOOKED | target_flag::PYTHON_WAITS);
    });
    core::ptr::null_mut()
}

fn with_lock(work: impl FnOnce(&Api)) {
    block_signals();
    let Some(api) = api() else { return };
    let (lock, unlock) = api.lock;
    // SAFETY: the two functions of CPython's C API, meant for threads unknown to CPython, like this
    // thread.
    unsafe {
        let state = lock();
        work(api);
        unlock(state);
    }
}

/// Blocks the program's signals in this thread: they are meant for the program's threads. The C
/// library's signals stay open: a thread in `setuid` waits for all threads to handle such a signal,
/// and may hold the lock wanted by this thread.
fn block_signals() {
    const SIG_SETMASK: c_int = 2;
    const OF_LIBC: u64 = 1 << 31 | 1 << 32;
    /// Words of a `sigset_t`; the kernel's signals are in the first word.
    const WORDS: usize = 16;
    let mut mask = [0u64; WORDS];
    mask[0] = !OF_LIBC;
    let change = sigmask_address();
    if change != 0 {
        // SAFETY: libc's function, with a complete set, which outlives the call.
        unsafe {
            core::mem::transmute::<usize, Sigmask>(change)(SIG_SETMASK, mask.as_ptr(), core::ptr::null_mut());
        }
    }
}

fn set_flags(set: u32, clear: u32) {
    if let Some(process) = process::get() {
        let flags = &process.header().target.flags;
        flags.fetch_and(!clear, Ordering::AcqRel);
        flags.fetch_or(set, Ordering::AcqRel);
    }
}

//! CPython's allocators in a process that runs already: hooked and let go of under the interpreter's lock.
//!
//! The thread that the aggregator borrows may hold that lock, or be waiting for it, so it cannot take it. A thread of ours
//! does, once for each attach and each detach, and ends. It is the only one that the collector ever starts; nothing waits
//! for it in the target.

use super::{API, IS_INSTALLED, api, find_api, install, note_unseen_reuse, uninstall};
use crate::attach::objects;
use crate::process;
use crate::symbols;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};
use heapline_shared_format::arena::target_flag;
use heapline_shared_format::inject::python;

optional!(
    /// `pthread_create`, of glibc's own library since 2.34; so for the two below.
    create_address,
    "pthread_create_address",
    "pthread_create"
);
optional!(
    /// `pthread_detach`.
    detach_address,
    "pthread_detach_address",
    "pthread_detach"
);
optional!(
    /// `pthread_sigmask`.
    sigmask_address,
    "pthread_sigmask_address",
    "pthread_sigmask"
);

type Create = unsafe extern "C" fn(*mut usize, *const c_void, Body, *mut c_void) -> c_int;
type Body = unsafe extern "C" fn(*mut c_void) -> *mut c_void;
type Detach = unsafe extern "C" fn(usize) -> c_int;
type Sigmask = unsafe extern "C" fn(c_int, *const u64, *mut u64) -> c_int;

static ENSURE: AtomicUsize = AtomicUsize::new(0);
static RELEASE: AtomicUsize = AtomicUsize::new(0);

/// Hooks the interpreter's allocators, if there is one that runs. Returns how that stands.
pub fn join() -> u64 {
    let mut known = python::NONE;
    objects::all(|_| known = find());
    if known != python::WAITING {
        return known;
    }
    note_unseen_reuse();
    in_a_thread(hook)
}

/// Lets go of them.
pub fn part() -> u64 {
    if !IS_INSTALLED.load(Ordering::Acquire) || ENSURE.load(Ordering::Relaxed) == 0 {
        return python::NONE;
    }
    in_a_thread(unhook)
}

fn find() -> u64 {
    let Some(is_initialized) = symbols::find(b"Py_IsInitialized") else { return python::NONE };
    // SAFETY: a function of CPython's C API, which may be called at any time without its lock.
    let runs = unsafe { core::mem::transmute::<usize, unsafe extern "C" fn() -> c_int>(is_initialized)() } != 0;
    if !runs {
        return python::NONE;
    }
    let Some((ensure, release)) = symbols::find(b"PyGILState_Ensure").zip(symbols::find(b"PyGILState_Release")) else {
        return python::UNKNOWN;
    };
    if api().is_none() {
        let Some(api) = find_api() else { return python::UNKNOWN };
        // SAFETY: nothing reads it before the allocators are hooked, which is later than now.
        unsafe { *API.0.get() = Some(api) };
    }
    ENSURE.store(ensure, Ordering::Relaxed);
    RELEASE.store(release, Ordering::Relaxed);
    python::WAITING
}

/// Starts a thread that `work`s. It begins with the borrowed thread's signal mask, in which nearly all are blocked.
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
    // SAFETY: libc's two functions, a body of the right type, and default attributes.
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
    with_lock(|| {
        if let Some(api) = api() {
            install(api);
            IS_INSTALLED.store(true, Ordering::Release);
            set_flags(target_flag::PYTHON_HOOKED, target_flag::PYTHON_WAITS);
        }
    });
    core::ptr::null_mut()
}

unsafe extern "C" fn unhook(_: *mut c_void) -> *mut c_void {
    with_lock(|| {
        if let Some(api) = api() {
            IS_INSTALLED.store(false, Ordering::Release);
            uninstall(api);
            set_flags(0, target_flag::PYTHON_HOOKED | target_flag::PYTHON_WAITS);
        }
    });
    core::ptr::null_mut()
}

fn with_lock(work: impl FnOnce()) {
    block_signals();
    let (ensure, release) = (ENSURE.load(Ordering::Relaxed), RELEASE.load(Ordering::Relaxed));
    // SAFETY: the two functions of CPython's C API, in a thread that it does not know, which is what they are for.
    unsafe {
        let state = core::mem::transmute::<usize, unsafe extern "C" fn() -> c_int>(ensure)();
        work();
        core::mem::transmute::<usize, unsafe extern "C" fn(c_int)>(release)(state);
    }
}

/// The program's signals are for its own threads. Those of the C library stay open: while one of them waits for all
/// threads (setuid does), it may hold the lock that this one wants.
fn block_signals() {
    const SIG_SETMASK: c_int = 2;
    const OF_LIBC: u64 = 1 << 31 | 1 << 32;
    /// Words of a `sigset_t`; the kernel's signals are in the first.
    const WORDS: usize = 16;
    let mut mask = [0u64; WORDS];
    mask[0] = !OF_LIBC;
    let change = sigmask_address();
    if change != 0 {
        // SAFETY: libc's function, with a whole set that outlives the call.
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

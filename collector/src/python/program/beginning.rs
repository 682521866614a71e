//! The beginning of the trace by `-X tracemalloc` and `PYTHONTRACEMALLOC`.
//!
//! CPython begins to trace after first modules, codecs and signals, and before the standard
//! streams. No function called in this moment can be replaced. The next step of CPython is
//! importing a module for the streams. So the work is done in two steps:
//!
//! 1. [`take_over`] takes the number of frames out of the interpreter's configuration.
//! 2. The import for the streams puts the number back and begins the trace ([`now`]).

use super::api::Object;
use super::begin;
use crate::python::patch;
use crate::python::patch::Purpose;
use core::ffi::{CStr, c_char, c_int};
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use heapline_shared_format::query::MAX_NFRAME;

/// `PyImport_ImportModule`.
pub type Import = unsafe extern "C" fn(*const c_char) -> Object;

/// Returns the name of the first module imported for the standard streams. Earlier only Python code
/// imports the module, without `PyImport_ImportModule`.
fn of_streams() -> &'static CStr {
    match crate::python::api().map_or(0, |api| api.version.minor()) {
        ..=9 => c"encodings.utf_8",
        10..=13 => c"io",
        _ => c"_io",
    }
}

/// Frames of a traceback, as configured, until the trace begins; 0 if nothing was configured.
static NFRAME: AtomicI32 = AtomicI32::new(0);
/// Place of the number in the interpreter's configuration.
static CONFIGURED: AtomicPtr<c_int> = AtomicPtr::new(ptr::null_mut());
static IMPORT: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Takes the configured number of frames out of the configuration. A number of 0 or beyond the
/// maximum is left to CPython, which refuses a number too large.
///
/// # Safety
/// 1. The calling thread holds the interpreter's lock.
/// 2. The interpreter has not made its first module yet.
/// 3. `configured` points to the number in the interpreter's configuration.
pub unsafe fn take_over(configured: *mut c_int, import: Import) {
    // SAFETY: promise 3 of the caller: `configured` points to the number.
    let nframe = unsafe { configured.read() };
    if !u32::try_from(nframe).is_ok_and(|nframe| (1..=MAX_NFRAME).contains(&nframe)) {
        return;
    }
    NFRAME.store(nframe, Ordering::Relaxed);
    CONFIGURED.store(configured, Ordering::Relaxed);
    IMPORT.store(import as *mut (), Ordering::Relaxed);
    // SAFETY: the caller gives promises 1 to 3. The function is longer than a jump, and called with
    // the lock only.
    unsafe {
        configured.write(0);
        if !patch::jump(Purpose::Beginning, import as usize, imported as Import as usize) {
            // Too early is better than never.
            now();
        }
    }
}

/// Begins the trace, if a trace is configured and has not begun.
pub fn now() {
    let nframe = NFRAME.swap(0, Ordering::Relaxed);
    if nframe == 0 {
        return;
    }
    let configured = CONFIGURED.swap(ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: the calling thread holds the lock; the configuration lives as long as the
    // interpreter.
    unsafe {
        patch::undo(Purpose::Beginning);
        begin(u64::from(nframe.unsigned_abs()));
        configured.write(nframe);
    }
}

/// Forgets the configured trace of an ended interpreter.
pub fn forget() {
    NFRAME.store(0, Ordering::Relaxed);
}

/// Replaces `PyImport_ImportModule` until the trace begins.
unsafe extern "C" fn imported(name: *const c_char) -> Object {
    // SAFETY: the caller passes a C string.
    if unsafe { CStr::from_ptr(name) } == of_streams() {
        now();
    }
    // SAFETY: `IMPORT` holds CPython's function; this function is called with the lock, like
    // CPython's.
    unsafe {
        let import = core::mem::transmute::<*mut (), Import>(IMPORT.load(Ordering::Relaxed));
        patch::lifted(import as usize, || import(name)).unwrap_or(ptr::null_mut())
    }
}

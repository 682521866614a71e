//! The moment in which `-X tracemalloc` and `PYTHONTRACEMALLOC` begin to trace.
//!
//! CPython begins behind its first modules, codecs and signals, and before it makes the standard streams. Nothing that it calls
//! there can be led here, and the next thing that it does is to import the module that the streams need. So the number
//! of frames is taken from its configuration, and put back when that import is asked for; the trace begins there.

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

/// What is imported first for the standard streams: by 3.9, and by later versions. Before that only Python code imports
/// them, which does not come by here.
const OF_STREAMS: [&CStr; 2] = [c"encodings.utf_8", c"io"];

/// Frames of a traceback that were asked for, until the trace begins; 0 when nothing was.
static NFRAME: AtomicI32 = AtomicI32::new(0);
/// Where the interpreter's configuration has that number.
static CONFIGURED: AtomicPtr<c_int> = AtomicPtr::new(ptr::null_mut());
static IMPORT: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Takes the configured number of frames over, if there is one. One that is too large is CPython's to refuse.
///
/// # Safety
/// With the interpreter's lock, before its first module; `configured` is the number in its configuration.
pub unsafe fn take_over(configured: *mut c_int, import: Import) {
    // SAFETY: the caller's promise.
    let nframe = unsafe { configured.read() };
    if !u32::try_from(nframe).is_ok_and(|nframe| (1..=MAX_NFRAME).contains(&nframe)) {
        return;
    }
    NFRAME.store(nframe, Ordering::Relaxed);
    CONFIGURED.store(configured, Ordering::Relaxed);
    IMPORT.store(import as *mut (), Ordering::Relaxed);
    // SAFETY: the caller's promise; the function is longer than a jump, and called with the lock.
    unsafe {
        configured.write(0);
        if !patch::jump(Purpose::Beginning, import as usize, imported as Import as usize) {
            // Too early is better than never.
            now();
        }
    }
}

/// Begins, if that is still to be done.
pub fn now() {
    let nframe = NFRAME.swap(0, Ordering::Relaxed);
    if nframe == 0 {
        return;
    }
    let configured = CONFIGURED.swap(ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: with the interpreter's lock; its configuration lives as long as the interpreter.
    unsafe {
        patch::undo(Purpose::Beginning);
        begin(u64::from(nframe.unsigned_abs()));
        configured.write(nframe);
    }
}

/// The interpreter that was to begin has ended.
pub fn forget() {
    NFRAME.store(0, Ordering::Relaxed);
}

/// In the place of `PyImport_ImportModule` until the trace begins.
unsafe extern "C" fn imported(name: *const c_char) -> Object {
    // SAFETY: the caller's name, a C string.
    if OF_STREAMS.contains(&unsafe { CStr::from_ptr(name) }) {
        now();
    }
    // SAFETY: CPython's function, which was kept before its entry led here; called with the lock, as it is.
    unsafe {
        let import = core::mem::transmute::<*mut (), Import>(IMPORT.load(Ordering::Relaxed));
        patch::lifted(import as usize, || import(name)).unwrap_or(ptr::null_mut())
    }
}

//! Keeps the interpreter's statements about its own allocators as they would be without Heapline.
//!
//! CPython finds out which allocators are in use by comparing the functions in its tables with its
//! own functions. Heapline's functions are in these tables. So the comparing functions are
//! replaced:
//!
//! - The name is the name from before.
//! - The statistics of pymalloc are made while the table of objects holds the real allocator.
//!   Nothing is allocated through the table meanwhile, since the interpreter's lock is held.
//!
//! While the program's tracemalloc traces, CPython's tracemalloc would have put its functions into
//! the tables. The allocators then have no name, and pymalloc prints nothing.
//!
//! A program asking for an allocator (`PyMem_GetAllocator`) gets Heapline's allocator, which may be
//! wrapped, called and put back like any other.

use super::patch::{self, Purpose};
use super::{Allocator, Api, NOTHING, OURS, api, are_ours, program};
use crate::platform::symbols::Scope;
use core::ffi::{c_char, c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

/// `PYMEM_DOMAIN_OBJ`.
const OBJECTS: c_int = 2;

/// Result of `_PyMem_GetCurrentAllocatorName` before Heapline's allocators: a constant text, or
/// null for allocators without a name.
static NAME: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());

type GetName = unsafe extern "C" fn() -> *const c_char;
type GetOfSys = unsafe extern "C" fn(*const c_char) -> *mut u8;
type PrintStatistics = unsafe extern "C" fn(*mut c_void) -> c_int;

/// The interpreter's comparing functions, and `PySys_GetObject`.
#[derive(Clone, Copy)]
pub struct Comparing {
    /// `_PyMem_GetCurrentAllocatorName`.
    pub name: GetName,
    /// `_PyObject_DebugMallocStats`. None if CPython was built without pymalloc.
    pub statistics: Option<PrintStatistics>,
    /// `PySys_GetObject`.
    pub of_sys: GetOfSys,
}

impl Comparing {
    /// Looks the functions up. None if one is missing.
    pub fn find(scope: Scope) -> Option<Comparing> {
        // SAFETY: CPython's functions, by their names and signatures.
        unsafe {
            Some(Comparing {
                name: core::mem::transmute::<usize, GetName>(scope.find(b"_PyMem_GetCurrentAllocatorName")?),
                statistics: scope
                    .find(b"_PyObject_DebugMallocStats")
                    .map(|found| core::mem::transmute::<usize, PrintStatistics>(found)),
                of_sys: core::mem::transmute::<usize, GetOfSys>(scope.find(b"PySys_GetObject")?),
            })
        }
    }
}

/// Notes the name of the interpreter's allocators, before Heapline's allocators are installed.
pub fn note_name(api: &Api) {
    // SAFETY: CPython's function, called with the interpreter's lock.
    let name = unsafe { (api.comparing.name)() };
    NAME.store(name.cast_mut(), Ordering::Relaxed);
}

/// Whether the interpreter's own allocators are the debug allocators.
pub fn is_debugged() -> bool {
    name().is_some_and(|name| name.ends_with(b"debug"))
}

fn name() -> Option<&'static [u8]> {
    let name = NAME.load(Ordering::Relaxed);
    // SAFETY: `NAME` is null, or a constant text of the interpreter.
    (!name.is_null()).then(|| unsafe { core::ffi::CStr::from_ptr(name) }.to_bytes())
}

/// Replaces the comparing functions after Heapline's allocators were installed.
///
/// A free-threaded interpreter always takes its allocator for mimalloc, without comparing, and asks
/// for the name only: there the name is replaced, before other threads can run the function.
///
/// # Safety
/// The calling thread holds the interpreter's lock.
pub unsafe fn serve(api: &Api) {
    if api.version.is_free_threaded() {
        if !api.runs() {
            // SAFETY: the interpreter is beginning, so no other thread runs Python. The function is
            // longer than a jump.
            unsafe { patch::jump(Purpose::View, api.comparing.name as usize, current_name as GetName as usize) };
        }
        return;
    }
    // SAFETY: the caller holds the lock. Both functions are longer than a jump, and called with the
    // lock only.
    unsafe {
        patch::jump(Purpose::View, api.comparing.name as usize, current_name as GetName as usize);
        if let Some(statistics) = api.comparing.statistics {
            patch::jump(Purpose::View, statistics as usize, print_statistics as PrintStatistics as usize);
        }
        serve_counting(api);
    }
}

/// Replaces `_PyMem_GetCurrentAllocatorName`.
unsafe extern "C" fn current_name() -> *const c_char {
    let Some(api) = api().filter(|_| !program::traces()) else { return ptr::null() };
    if are_ours(api) {
        return NAME.load(Ordering::Relaxed);
    }
    let own = api.comparing.name;
    if api.version.is_free_threaded() {
        // Another thread may run the function: its first bytes must stay.
        return ptr::null();
    }
    // SAFETY: called with the lock, like the interpreter's own function.
    unsafe { patch::lifted(own as usize, || own()) }.unwrap_or(ptr::null())
}

/// Replaces `_PyObject_DebugMallocStats`.
unsafe extern "C" fn print_statistics(file: *mut c_void) -> c_int {
    let Some((api, own)) = api().and_then(|api| Some((api, api.comparing.statistics?))) else { return 0 };
    // SAFETY: called with the lock, like the interpreter's own function; the caller guarantees the
    // file.
    let print = || unsafe { patch::lifted(own as usize, || own(file)) }.unwrap_or(0);
    if program::traces() { print() } else { with_own_objects(api, print) }
}

/// Replacement of `sys.getallocatedblocks` of CPython 3.13. The original function asks mimalloc if
/// the table holds mimalloc, otherwise pymalloc. The function is a Python function, referenced by a
/// structure of the interpreter.
struct Counting {
    /// Place of the function pointer in the structure.
    place: AtomicPtr<Method>,
    own: AtomicPtr<()>,
}

type Method = unsafe extern "C" fn(*mut c_void, *mut c_void) -> *mut c_void;

static COUNTING: Counting = Counting { place: AtomicPtr::new(ptr::null_mut()), own: AtomicPtr::new(ptr::null_mut()) };

/// Replaces `sys.getallocatedblocks`, if mimalloc is in use.
unsafe fn serve_counting(api: &Api) {
    /// Offset of the `PyMethodDef` pointer in a built-in function.
    const DEFINITION: usize = 16;
    /// Offset of the C function in a `PyMethodDef`.
    const FUNCTION: usize = 8;
    let is_mimalloc = name().is_some_and(|name| name.starts_with(b"mimalloc"));
    if !is_mimalloc || !program::is_possible() || !COUNTING.place.load(Ordering::Relaxed).is_null() {
        return;
    }
    // SAFETY: the lock is held, and `sys` has its functions before the first module is made. The
    // definition is a variable of the interpreter, valid as long as the interpreter's code is
    // loaded.
    unsafe {
        let function = (api.comparing.of_sys)(c"getallocatedblocks".as_ptr());
        if function.is_null() {
            return;
        }
        let place = function.add(DEFINITION).cast::<*mut u8>().read().add(FUNCTION).cast::<Method>();
        COUNTING.own.store(place.read() as *mut (), Ordering::Relaxed);
        COUNTING.place.store(place, Ordering::Relaxed);
        place.write(count_blocks);
    }
}

/// Replaces `sys.getallocatedblocks`.
unsafe extern "C" fn count_blocks(module: *mut c_void, nothing: *mut c_void) -> *mut c_void {
    // SAFETY: `COUNTING.own` holds the function from the structure.
    let own = unsafe { core::mem::transmute::<*mut (), Method>(COUNTING.own.load(Ordering::Relaxed)) };
    // SAFETY: the arguments are the caller's arguments of the same function.
    let count = || unsafe { own(module, nothing) };
    let Some(api) = api().filter(|_| !program::traces()) else { return count() };
    // The number is an object. An object must not be allocated by one allocator and freed by
    // another, so the number is freed at once and an equal number is made.
    // SAFETY: the lock is held; the function returns a number, or null with an exception.
    unsafe {
        let number = with_own_objects(api, || program::take_number(count()));
        number.map_or(ptr::null_mut(), |number| program::make_number(number))
    }
}

/// Takes the replacements back after Heapline's allocators were removed.
///
/// # Safety
/// The calling thread holds the interpreter's lock.
pub unsafe fn end() {
    let place = COUNTING.place.swap(ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: the caller holds the lock; the function written is the original function.
    unsafe {
        if !place.is_null() {
            place.write(core::mem::transmute::<*mut (), Method>(COUNTING.own.load(Ordering::Relaxed)));
        }
        patch::undo(Purpose::View);
    }
}

/// Forgets the replaced function after the interpreter's code was unloaded.
pub fn forget() {
    COUNTING.place.store(ptr::null_mut(), Ordering::Relaxed);
}

/// Runs a call while the table of objects holds the interpreter's own allocator.
fn with_own_objects<R>(api: &Api, call: impl FnOnce() -> R) -> R {
    let mut now: Allocator = NOTHING;
    // SAFETY: CPython's documented functions, called with the lock; the old entry is put back.
    unsafe {
        (api.get_allocator)(OBJECTS, &raw mut now);
        if now.malloc as usize != OURS[2].malloc as usize {
            return call();
        }
        (api.set_allocator)(OBJECTS, super::real::<2>());
        let result = call();
        (api.set_allocator)(OBJECTS, &raw const now);
        result
    }
}

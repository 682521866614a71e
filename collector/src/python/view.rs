//! What the interpreter tells of its own allocators: what it tells without ours.
//!
//! CPython finds out which allocators it uses by comparing the functions in its tables with its own, and ours are in these
//! tables. So the functions that compare are led here: the name is the one from before, and the statistics of pymalloc are
//! made while the table of objects holds what it held. Nothing is allocated by that table meanwhile, since the interpreter's
//! lock is held.
//!
//! While the program's own tracemalloc traces, CPython's would have put its functions into the tables: then these have no name,
//! and pymalloc prints nothing.
//!
//! A program that asks for an allocator itself (`PyMem_GetAllocator`) gets ours, which may be wrapped, called and put back
//! like any other.

use super::patch::{self, Purpose};
use super::{Allocator, Api, NOTHING, OURS, api, are_ours, program};
use crate::platform::symbols::Scope;
use core::ffi::{c_char, c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

/// `PYMEM_DOMAIN_OBJ`.
const OBJECTS: c_int = 2;

/// What `_PyMem_GetCurrentAllocatorName` returned before ours: a constant text, or null for allocators without a name.
static NAME: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());

type GetName = unsafe extern "C" fn() -> *const c_char;
type GetOfSys = unsafe extern "C" fn(*const c_char) -> *mut u8;
type PrintStatistics = unsafe extern "C" fn(*mut c_void) -> c_int;

/// The interpreter's functions that compare.
#[derive(Clone, Copy)]
pub struct Comparing {
    /// `_PyMem_GetCurrentAllocatorName`.
    pub name: GetName,
    /// `_PyObject_DebugMallocStats`; none where CPython was built without pymalloc.
    pub statistics: Option<PrintStatistics>,
    /// `PySys_GetObject`.
    pub of_sys: GetOfSys,
}

impl Comparing {
    /// Looks for them.
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

/// Notes the name that the interpreter's allocators have, before ours are there.
pub fn note_name(api: &Api) {
    // SAFETY: CPython's function, with its lock.
    let name = unsafe { (api.comparing.name)() };
    NAME.store(name.cast_mut(), Ordering::Relaxed);
}

/// Whether the interpreter's own allocators are its debug ones.
pub fn is_debugged() -> bool {
    name().is_some_and(|name| name.ends_with(b"debug"))
}

fn name() -> Option<&'static [u8]> {
    let name = NAME.load(Ordering::Relaxed);
    // SAFETY: null, or a constant text of the interpreter's.
    (!name.is_null()).then(|| unsafe { core::ffi::CStr::from_ptr(name) }.to_bytes())
}

/// Ours are there: the interpreter shall tell what it told before.
///
/// # Safety
/// With the interpreter's lock.
pub unsafe fn serve(api: &Api) {
    // SAFETY: the caller's promise; both functions are longer than a jump, and called with the lock.
    unsafe {
        patch::jump(Purpose::View, api.comparing.name as usize, current_name as GetName as usize);
        if let Some(statistics) = api.comparing.statistics {
            patch::jump(Purpose::View, statistics as usize, print_statistics as PrintStatistics as usize);
        }
        serve_counting(api);
    }
}

/// In the place of `_PyMem_GetCurrentAllocatorName`.
unsafe extern "C" fn current_name() -> *const c_char {
    let Some(api) = api().filter(|_| !program::traces()) else { return ptr::null() };
    if are_ours(api) {
        return NAME.load(Ordering::Relaxed);
    }
    let own = api.comparing.name;
    // SAFETY: called with the lock, as the interpreter's own function is.
    unsafe { patch::lifted(own as usize, || own()) }.unwrap_or(ptr::null())
}

/// In the place of `_PyObject_DebugMallocStats`.
unsafe extern "C" fn print_statistics(file: *mut c_void) -> c_int {
    let Some((api, own)) = api().and_then(|api| Some((api, api.comparing.statistics?))) else { return 0 };
    // SAFETY: as above; the file is the caller's.
    let print = || unsafe { patch::lifted(own as usize, || own(file)) }.unwrap_or(0);
    if program::traces() { print() } else { with_own_objects(api, print) }
}

/// `sys.getallocatedblocks` of CPython 3.13, which asks mimalloc if that is in the table, else pymalloc: a Python function,
/// which a structure of the interpreter's points to.
struct Counting {
    /// Where the structure has the function.
    place: AtomicPtr<Method>,
    own: AtomicPtr<()>,
}

type Method = unsafe extern "C" fn(*mut c_void, *mut c_void) -> *mut c_void;

static COUNTING: Counting = Counting { place: AtomicPtr::new(ptr::null_mut()), own: AtomicPtr::new(ptr::null_mut()) };

/// Leads `sys.getallocatedblocks` here, where mimalloc is in use.
unsafe fn serve_counting(api: &Api) {
    /// In a built-in function: its `PyMethodDef`.
    const DEFINITION: usize = 16;
    /// In that: the C function.
    const FUNCTION: usize = 8;
    let is_mimalloc = name().is_some_and(|name| name.starts_with(b"mimalloc"));
    if !is_mimalloc || !program::is_possible() || !COUNTING.place.load(Ordering::Relaxed).is_null() {
        return;
    }
    // SAFETY: with the lock: `sys` has its functions before the first module is made. A definition is the interpreter's
    // variable for as long as its code is loaded.
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

/// In the place of `sys.getallocatedblocks`.
unsafe extern "C" fn count_blocks(module: *mut c_void, nothing: *mut c_void) -> *mut c_void {
    // SAFETY: what the structure held.
    let own = unsafe { core::mem::transmute::<*mut (), Method>(COUNTING.own.load(Ordering::Relaxed)) };
    // SAFETY: the caller's call, passed on.
    let count = || unsafe { own(module, nothing) };
    let Some(api) = api().filter(|_| !program::traces()) else { return count() };
    // The number is an object, which must not come by an allocator and go by another: it goes at once, and one like it comes.
    // SAFETY: with the lock; the function returns a number, or null with an exception.
    unsafe {
        let number = with_own_objects(api, || program::take_number(count()));
        number.map_or(ptr::null_mut(), |number| program::make_number(number))
    }
}

/// Ours are there no more: the interpreter tells by itself.
///
/// # Safety
/// With the interpreter's lock.
pub unsafe fn end() {
    let place = COUNTING.place.swap(ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: the caller's promise; what is written is what was there.
    unsafe {
        if !place.is_null() {
            place.write(core::mem::transmute::<*mut (), Method>(COUNTING.own.load(Ordering::Relaxed)));
        }
        patch::undo(Purpose::View);
    }
}

/// The interpreter's code is gone.
pub fn forget() {
    COUNTING.place.store(ptr::null_mut(), Ordering::Relaxed);
}

/// Makes a call while the table of objects holds the interpreter's own allocator.
fn with_own_objects<R>(api: &Api, call: impl FnOnce() -> R) -> R {
    let mut now: Allocator = NOTHING;
    // SAFETY: CPython's documented functions, with its lock; what was there is put back.
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

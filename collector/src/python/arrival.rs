//! How an interpreter comes into the process, and how it leaves.
//!
//! It is part of the program, or linked with it, or loaded by `dlopen` at any time ([`look_again`]). Its table of built-in
//! modules is changed before it begins; nothing else is done until then. One that is unloaded takes all that is known of it
//! along ([`closing`], [`closed`]).
//!
//! One interpreter's library is traced. Of a second one beside it, and of one that was running when it was first seen, the
//! reports say that they are not.

use super::view::{self, Comparing};
use super::{ALLOCATORS, Layout, Teller, Version};
use super::{
    API, Api, BuiltIn, GetAllocator, GetConfig, GetThreadState, IS_INSTALLED, IsFinalizing, Lock, NOTHING, REAL,
    SetAllocator, Unlock, api, codes, interpreter_begins, note, patch, program, reuse,
};
use crate::attach::slots;
use crate::platform::objects::{LoadedObject, Range};
use crate::platform::symbols::Scope;
use crate::platform::{elf, objects, symbols};
use crate::real;
use core::ffi::{CStr, c_void};
use core::ops::ControlFlow;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use heapline_shared_format::arena::target_flag;

/// The function for the native half of tracemalloc.
const TRACEMALLOC: &CStr = c"_tracemalloc";
/// The module whose creation tells that allocators are final.
const FIRST_MODULE: &CStr = c"_thread";
/// The variable with the table of built-in modules.
const TABLE: &[u8] = b"PyImport_Inittab";

/// Whether a CPython is to be seen as one.
static IS_SOUGHT: AtomicBool = AtomicBool::new(false);
/// The known interpreter came with the program, and stays as long.
static IS_LASTING: AtomicBool = AtomicBool::new(false);
/// How often an object had been loaded, and unloaded, at the last look.
static HISTORY: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// Address of the known interpreter's variable.
static KNOWN: AtomicUsize = AtomicUsize::new(0);
/// Likewise of others, which are not traced.
static OTHERS: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];
/// An object is loaded whose arrival nobody tells.
static IS_EXPECTED: AtomicBool = AtomicBool::new(false);
/// A thread takes note of an interpreter.
static IS_BUSY: AtomicBool = AtomicBool::new(false);
static IS_UNKNOWN_MET: AtomicBool = AtomicBool::new(false);
/// The function that made the first module, of the known interpreter and of the last other one.
static FIRST_INIT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
static OTHER_FIRST_INIT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Looks for an interpreter at the start of the process. Returns the [`target_flag`]s that tell what is missing.
pub fn prepare() -> u32 {
    IS_SOUGHT.store(true, Ordering::Relaxed);
    let Some(table) = symbols::find(TABLE) else { return 0 };
    // SAFETY: a variable of an object that is loaded. The first event may come before the loader has relocated it.
    if elf::find_object(unsafe { (table as *const usize).read() }).is_none() {
        return 0;
    }
    IS_LASTING.store(true, Ordering::Relaxed);
    // SAFETY: the process is starting: the list of objects does not change, and no interpreter runs yet.
    unsafe { arrive(table, Scope::All) }
}

/// Looks for an interpreter in a process that runs already.
pub fn seek() {
    IS_SOUGHT.store(true, Ordering::Relaxed);
    look(|_| Scope::All);
}

/// Looks for an interpreter that was loaded since the last look. To be called after each `dlopen`, without a lock of the
/// loader's; nearly free where nothing was loaded.
pub fn look_again() {
    if !cfg!(feature = "embedded") && IS_SOUGHT.load(Ordering::Relaxed) {
        look(|object| Scope::Only(object.loaded));
    }
}

/// An object is about to be loaded, and [`look_again`] will not be called then.
pub fn expect() {
    IS_EXPECTED.store(true, Ordering::Relaxed);
}

/// The code at this address calls the C library for memory. Where a library was loaded unseen, that may be an interpreter
/// which begins: nothing else of it is heard before it has its allocators.
#[inline]
pub fn called_from(address: usize) {
    if IS_EXPECTED.load(Ordering::Relaxed) && IS_SOUGHT.load(Ordering::Relaxed) {
        meet(address);
    }
}

#[cold]
fn meet(address: usize) {
    let Some(object) = elf::find_object(address).map(|object| object.loaded()) else { return };
    let Some(table) = object.symbol(TABLE).filter(|&table| !is_known(table)) else { return };
    with_turn(|| {
        // An interpreter that has copied its table already is not heard of: this is taken back when it is.
        // SAFETY: one thread at a time is in here; the loader is done with an object whose code runs.
        note(target_flag::LATE_PYTHON | unsafe { arrive(table, Scope::Only(object)) });
        IS_EXPECTED.store(false, Ordering::Relaxed);
    });
}

/// Does some work if no other thread is at it. False, and nothing done, where one is.
fn with_turn(work: impl FnOnce()) -> bool {
    let is_free = !IS_BUSY.swap(true, Ordering::Acquire);
    if is_free {
        work();
        IS_BUSY.store(false, Ordering::Release);
    }
    is_free
}

/// Whether there is an interpreter that is not traced, since it is of no known kind.
pub fn met_unknown() -> bool {
    IS_UNKNOWN_MET.load(Ordering::Relaxed)
}

fn look(scope: impl Fn(&LoadedObject) -> Scope) {
    let mut is_first = true;
    let mut flags = 0;
    let mut any_early = false;
    objects::until(|object| {
        let history = [object.history.0, object.history.1];
        if core::mem::take(&mut is_first) && HISTORY.each_ref().map(|count| count.load(Ordering::Relaxed)) == history {
            return ControlFlow::Break(());
        }
        HISTORY.iter().zip(history).for_each(|(count, now)| count.store(now, Ordering::Relaxed));
        match object.loaded.symbol(TABLE) {
            // Another namespace's has a C library of its own.
            Some(table) if object.namespace.is_none() && !is_known(table) => {
                let is_done = is_ready(object, table)
                    && with_turn(|| {
                        // SAFETY: one thread at a time is in here, the list of objects does not change, and the loader is
                        // done with this one.
                        flags |= unsafe { arrive(table, scope(object)) };
                    });
                any_early |= !is_done;
            }
            _ => {}
        }
        ControlFlow::Continue(())
    });
    if any_early {
        HISTORY[0].store(0, Ordering::Relaxed);
    }
    note(flags);
}

fn is_known(table: usize) -> bool {
    KNOWN.load(Ordering::Relaxed) == table || OTHERS.iter().any(|other| other.load(Ordering::Relaxed) == table)
}

/// Whether the loader is done with an object that has such a table.
fn is_ready(object: &LoadedObject, table: usize) -> bool {
    let Range { start, end } = object.extent;
    // SAFETY: a variable of an object that is loaded.
    let holds = unsafe { (table as *const usize).read() };
    // Before it is relocated it holds an address that counts from the object's first byte, or 0. A program may have put
    // another table in place of the object's own.
    !slots::is_early(object) && (object.extent.contains(holds) || holds > end - start)
}

/// Takes note of the interpreter whose variable is at `variable`. Returns [`target_flag`]s.
///
/// # Safety
/// 1. The objects in `scope` stay, and one thread at a time is in here.
/// 2. The variable is `PyImport_Inittab` of an object that the loader is done with.
unsafe fn arrive(variable: usize, scope: Scope) -> u32 {
    // SAFETY: promise 2.
    let first_init = unsafe { entry(variable, FIRST_MODULE) };
    if KNOWN.load(Ordering::Relaxed) != 0 {
        note_other(variable);
        if let Some(init) = first_init.and_then(|init| init.replace(other_first_module)) {
            OTHER_FIRST_INIT.store(init as *mut c_void, Ordering::Release);
        }
        return 0;
    }
    let Some((api, first_init)) = find_api(scope).zip(first_init) else {
        note_other(variable);
        IS_UNKNOWN_MET.store(true, Ordering::Relaxed);
        return target_flag::UNKNOWN_PYTHON;
    };
    let is_late = api.runs();
    let reuse = if api.teller.is_none() { target_flag::UNSEEN_REUSE } else { 0 };
    // SAFETY: promise 1; no interpreter runs that is known. A thread that reads an entry meanwhile finds the old function
    // or the new one.
    unsafe {
        *API.0.get() = Some(api);
        KNOWN.store(variable, Ordering::Relaxed);
        if let Some((init, program)) = entry(variable, TRACEMALLOC).zip(program::Program::find(scope))
            && let Some(own) = init.replace(program::init)
        {
            program::prepare(program, own as *mut c_void);
        }
        FIRST_INIT.store(first_init.map_or(ptr::null_mut(), |init| init as *mut c_void), Ordering::Release);
        *first_init = Some(first_module);
    }
    // An attach takes care of one that runs.
    if is_late && !real::came_later() { target_flag::LATE_PYTHON } else { reuse }
}

fn note_other(variable: usize) {
    let free = OTHERS.iter().find(|other| other.load(Ordering::Relaxed) == 0);
    // Beyond so many they are looked at each time, which does nothing else.
    if let Some(free) = free {
        free.store(variable, Ordering::Relaxed);
    }
}

/// The function for a module in the table of built-in ones.
///
/// # Safety
/// The variable is `PyImport_Inittab`, whose table ends with an entry without a name.
unsafe fn entry(variable: usize, name: &CStr) -> Option<&'static mut Option<unsafe extern "C" fn() -> *mut c_void>> {
    // SAFETY: the caller's promise.
    unsafe {
        let table = *(variable as *const *mut BuiltIn);
        let named = |i: &usize| CStr::from_ptr((*table.add(*i)).name) == name;
        let mut used = (0..).take_while(|&i| !(*table.add(i)).name.is_null());
        used.find(named).map(|i| &mut (*table.add(i)).init)
    }
}

/// The interpreter's API; none where it is not one of those that are known.
fn find_api(scope: Scope) -> Option<Api> {
    let version = Version::read(scope.find(b"Py_GetVersion")?)?;
    // SAFETY: functions of CPython's C API, by the names and with the signatures that its documentation gives.
    unsafe {
        use core::mem::transmute;
        Some(Api {
            get_allocator: transmute::<usize, GetAllocator>(scope.find(b"PyMem_GetAllocator")?),
            set_allocator: transmute::<usize, SetAllocator>(scope.find(b"PyMem_SetAllocator")?),
            thread_state: transmute::<usize, GetThreadState>(symbols::find(version.thread_state())?),
            bound_state: transmute::<usize, GetThreadState>(scope.find(b"PyGILState_GetThisThreadState")?),
            is_finalizing: transmute::<usize, IsFinalizing>(symbols::find(version.is_finalizing())?),
            is_initialized: transmute::<usize, IsFinalizing>(scope.find(b"Py_IsInitialized")?),
            lock: (
                transmute::<usize, Lock>(scope.find(b"PyGILState_Ensure")?),
                transmute::<usize, Unlock>(scope.find(b"PyGILState_Release")?),
            ),
            config: transmute::<usize, GetConfig>(scope.find(b"_Py_GetConfig")?),
            comparing: Comparing::find(scope)?,
            import: transmute::<usize, program::Import>(scope.find(b"PyImport_ImportModule")?),
            version,
            layout: Layout::of(version)?,
            code_type: scope.find(b"PyCode_Type")?,
            teller: Teller::find(scope),
        })
    }
}

/// In the place of the first module's own function.
unsafe extern "C" fn first_module() -> *mut c_void {
    // Later interpreters of the process share the allocators.
    if let Some(api) = api().filter(|api| !api.runs()) {
        // SAFETY: with the interpreter's lock, before its first module.
        unsafe { interpreter_begins(api) };
    }
    // SAFETY: what stood in the table.
    unsafe { made_by(&FIRST_INIT) }
}

/// Likewise of an interpreter beside the one that is known.
unsafe extern "C" fn other_first_module() -> *mut c_void {
    note(target_flag::OTHER_PYTHON);
    // SAFETY: what stood in the table.
    unsafe { made_by(&OTHER_FIRST_INIT) }
}

/// # Safety
/// A function of a table of built-in modules.
unsafe fn made_by(init: &AtomicPtr<c_void>) -> *mut c_void {
    let init = init.load(Ordering::Acquire);
    // SAFETY: the caller's promise.
    unsafe { core::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *mut c_void>(init)() }
}

/// What [`closing`] has put aside.
#[derive(Clone, Copy)]
pub struct Closing {
    was_installed: bool,
    /// Where the interpreter's object begins.
    object: usize,
}

/// An object may be about to be unloaded: the interpreter is let alone. None where there is no interpreter that could be.
pub fn closing() -> Option<Closing> {
    if IS_LASTING.load(Ordering::Relaxed) {
        return None;
    }
    let object = elf::find_object(place(api()?))?;
    Some(Closing { was_installed: IS_INSTALLED.swap(false, Ordering::AcqRel), object: object.start })
}

/// That is over: the interpreter is still there, or it is forgotten.
pub fn closed(closing: Closing) {
    let now = api().and_then(|api| elf::find_object(place(api)));
    if now.is_some_and(|object| object.start == closing.object) {
        if closing.was_installed {
            IS_INSTALLED.store(true, Ordering::Release);
        }
    } else {
        // SAFETY: the interpreter's code is gone, so nobody runs it.
        unsafe { forget() };
    }
}

/// An address in the interpreter's code.
fn place(api: &Api) -> usize {
    api.set_allocator as usize
}

/// # Safety
/// The interpreter's code is gone.
unsafe fn forget() {
    codes::forget_all();
    reuse::forget();
    view::forget();
    // SAFETY: the caller's promise.
    unsafe {
        program::forget();
        patch::forget_all();
        *REAL.0.get() = [NOTHING; ALLOCATORS];
        *API.0.get() = None;
    }
    FIRST_INIT.store(ptr::null_mut(), Ordering::Release);
    OTHERS.iter().for_each(|other| other.store(0, Ordering::Relaxed));
    KNOWN.store(0, Ordering::Relaxed);
    look_again();
}

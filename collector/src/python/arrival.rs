//! Arrival of an interpreter in the process, and departure.
//!
//! An interpreter comes in three ways: as part of the program, as a library of the program, or by
//! `dlopen` at any time ([`look_again`]). The table of built-in modules is changed before the
//! interpreter begins; nothing else is done until then. After unloading, everything known of the
//! interpreter is forgotten ([`closing`], [`closed`]).
//!
//! The library of a single interpreter is traced. Two kinds are not traced, and the reports say so:
//!
//! - a second interpreter beside the traced interpreter;
//! - an interpreter already running when first seen, unless the collector came by an attach, which
//!   hooks the interpreter ([`super::join`]).

use super::published::Published;
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

/// Name of the native half of tracemalloc.
const TRACEMALLOC: &CStr = c"_tracemalloc";
/// Name of the first module. At its creation CPython has finished choosing the allocators.
const FIRST_MODULE: &CStr = c"_thread";
/// Name of the variable with the table of built-in modules.
const TABLE: &[u8] = b"PyImport_Inittab";

/// Whether to look for interpreters at all.
static IS_SOUGHT: AtomicBool = AtomicBool::new(false);
/// Whether the known interpreter came with the program, and stays as long.
static IS_LASTING: AtomicBool = AtomicBool::new(false);
/// Numbers of loads and unloads of objects, at the last look.
static HISTORY: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// Address of the known interpreter's `PyImport_Inittab`; 0 if none is known.
static KNOWN: AtomicUsize = AtomicUsize::new(0);
/// Addresses of `PyImport_Inittab` of other interpreters, which are not traced.
static OTHERS: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];
/// Whether an object is being loaded without a later call of [`look_again`].
static IS_EXPECTED: AtomicBool = AtomicBool::new(false);
/// Whether a thread is taking note of an interpreter.
static IS_BUSY: AtomicBool = AtomicBool::new(false);
static IS_UNKNOWN_MET: AtomicBool = AtomicBool::new(false);
/// Original functions for the first module, of the known interpreter and of the last other
/// interpreter.
static FIRST_INIT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
static OTHER_FIRST_INIT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Looks for an interpreter at the start of the process. Returns [`target_flag`]s for missing
/// features.
pub fn prepare() -> u32 {
    IS_SOUGHT.store(true, Ordering::Relaxed);
    let Some(table) = symbols::find(TABLE) else { return 0 };
    // SAFETY: `table` is a variable of a loaded object. The first event may come before the loader
    // has relocated the variable.
    if elf::object_start(unsafe { (table as *const usize).read() }).is_none() {
        return 0;
    }
    IS_LASTING.store(true, Ordering::Relaxed);
    // SAFETY: the process is starting, so the list of objects does not change, and no interpreter
    // runs yet.
    unsafe { arrive(table, Scope::All) }
}

/// Looks for an interpreter in a running process.
pub fn seek() {
    IS_SOUGHT.store(true, Ordering::Relaxed);
    look(|_| Scope::All);
}

/// Looks for an interpreter loaded since the last look. To be called after each `dlopen`, without a
/// lock of the loader. Costs almost nothing if nothing was loaded.
pub fn look_again() {
    if !cfg!(feature = "embedded") && IS_SOUGHT.load(Ordering::Relaxed) {
        look(|object| Scope::Only(object.loaded));
    }
}

/// Notes the coming load of an object without a later call of [`look_again`].
pub fn expect() {
    IS_EXPECTED.store(true, Ordering::Relaxed);
}

/// Checks whether the code at `address`, a caller of the C library's memory functions, belongs to
/// an interpreter. A library loaded unseen may be a beginning interpreter. No other sign of the
/// interpreter is seen before its allocators are chosen.
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
        // An interpreter with a copy of the table, made earlier, is not noticed at its start. So
        // the flag is set now, and cleared when the interpreter is noticed.
        // SAFETY: one thread at a time runs this, and the loader has finished an object with
        // running code.
        note(target_flag::LATE_PYTHON | unsafe { arrive(table, Scope::Only(object)) });
        IS_EXPECTED.store(false, Ordering::Relaxed);
    });
}

/// Runs `work` unless another thread is in here. False, and nothing done, if another thread is in
/// here.
fn with_turn(work: impl FnOnce()) -> bool {
    let is_free = !IS_BUSY.swap(true, Ordering::Acquire);
    if is_free {
        work();
        IS_BUSY.store(false, Ordering::Release);
    }
    is_free
}

/// Whether the process has an interpreter of an unknown kind, which is not traced.
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
            // An interpreter in another namespace has another C library.
            Some(table) if object.namespace.is_none() && !is_known(table) => {
                let is_done = is_ready(object, table)
                    && with_turn(|| {
                        // SAFETY: one thread at a time runs this, the list of objects does not
                        // change, and the loader has finished this object.
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

/// Whether the loader has finished an object with a table of built-in modules.
fn is_ready(object: &LoadedObject, table: usize) -> bool {
    let Range { start, end } = object.extent;
    // SAFETY: `table` is a variable of a loaded object.
    let holds = unsafe { (table as *const usize).read() };
    // Before relocation the variable holds an offset from the object's first byte, or 0. A program
    // may have set the variable to a table outside of the object.
    !slots::is_early(object) && (object.extent.contains(holds) || holds > end - start)
}

/// Takes note of the interpreter with the given `PyImport_Inittab`. Returns [`target_flag`]s.
///
/// # Safety
/// 1. The objects in `scope` stay loaded, and one thread at a time runs this.
/// 2. `variable` is `PyImport_Inittab` of an object finished by the loader.
unsafe fn arrive(variable: usize, scope: Scope) -> u32 {
    // SAFETY: promise 2 of the caller: the variable points to a table of built-in modules.
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
        if IS_UNKNOWN_MET.swap(true, Ordering::Relaxed) {
            return target_flag::UNKNOWN_PYTHON;
        }
        let minor = scope.find(b"Py_GetVersion").and_then(Version::read).map_or(0, Version::minor);
        return target_flag::UNKNOWN_PYTHON | u32::from(minor) << target_flag::UNKNOWN_MINOR;
    };
    let is_late = api.runs();
    let reuse = if api.teller.is_none() { target_flag::UNSEEN_REUSE } else { 0 };
    // SAFETY: the caller gives promises 1 and 2; no known interpreter runs. A thread reading an
    // entry meanwhile finds the old function or the new function.
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
    // A running interpreter is handled by the attach.
    if is_late && !real::came_later() { target_flag::LATE_PYTHON } else { reuse }
}

fn note_other(variable: usize) {
    let free = OTHERS.iter().find(|other| other.load(Ordering::Relaxed) == 0);
    // Interpreters without a free place are looked at each time, without other effects.
    if let Some(free) = free {
        free.store(variable, Ordering::Relaxed);
    }
}

/// Returns the init function of a module in the table of built-in modules. None without such a
/// module.
///
/// # Safety
/// `variable` is `PyImport_Inittab`, with a table that ends with an entry without a name.
unsafe fn entry(variable: usize, name: &CStr) -> Option<&'static mut Option<unsafe extern "C" fn() -> *mut c_void>> {
    // SAFETY: the caller guarantees a table that ends with an entry without a name.
    unsafe {
        let table = *(variable as *const *mut BuiltIn);
        let named = |i: &usize| CStr::from_ptr((*table.add(*i)).name) == name;
        let mut used = (0..).take_while(|&i| !(*table.add(i)).name.is_null());
        used.find(named).map(|i| &mut (*table.add(i)).init)
    }
}

/// Looks the interpreter's API up. None for an unknown interpreter.
fn find_api(scope: Scope) -> Option<Api> {
    let version = Version::read(scope.find(b"Py_GetVersion")?)?;
    // SAFETY: functions of CPython's C API, by their documented names and signatures.
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
            layout: Layout::of(version, || Published::read(version, scope.find(b"_PyRuntime")?))?,
            code_type: scope.find(b"PyCode_Type")?,
            teller: Teller::find(scope),
        })
    }
}

/// Replaces the first module's init function, in the known interpreter.
unsafe extern "C" fn first_module() -> *mut c_void {
    // Later interpreters of the process share the allocators.
    if let Some(api) = api().filter(|api| !api.runs()) {
        // SAFETY: called with the interpreter's lock, before the interpreter's first module.
        unsafe { interpreter_begins(api) };
    }
    // SAFETY: `FIRST_INIT` holds the function from the table.
    unsafe { made_by(&FIRST_INIT) }
}

/// Replaces the first module's init function, in an interpreter beside the known interpreter.
unsafe extern "C" fn other_first_module() -> *mut c_void {
    note(target_flag::OTHER_PYTHON);
    // SAFETY: `OTHER_FIRST_INIT` holds the function from the table.
    unsafe { made_by(&OTHER_FIRST_INIT) }
}

/// Calls an original init function.
///
/// # Safety
/// `init` holds a function from a table of built-in modules.
unsafe fn made_by(init: &AtomicPtr<c_void>) -> *mut c_void {
    let init = init.load(Ordering::Acquire);
    // SAFETY: the caller guarantees a function from a table of built-in modules.
    unsafe { core::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *mut c_void>(init)() }
}

/// State kept from [`closing`] to [`closed`].
#[derive(Clone, Copy)]
pub struct Closing {
    was_installed: bool,
    /// Start address of the interpreter's object.
    object: usize,
}

/// Stops using the interpreter while an object may be unloaded. None if no interpreter can be
/// unloaded.
pub fn closing() -> Option<Closing> {
    if IS_LASTING.load(Ordering::Relaxed) {
        return None;
    }
    let object = elf::object_start(place(api()?))?;
    Some(Closing { was_installed: IS_INSTALLED.swap(false, Ordering::AcqRel), object })
}

/// Ends the unloading: resumes with an interpreter still loaded, otherwise forgets the interpreter.
pub fn closed(closing: Closing) {
    let now = api().and_then(|api| elf::object_start(place(api)));
    if now == Some(closing.object) {
        if closing.was_installed {
            IS_INSTALLED.store(true, Ordering::Release);
        }
    } else {
        // SAFETY: the interpreter's code is gone, so nobody runs it.
        unsafe { forget() };
    }
}

/// Returns an address in the interpreter's code.
fn place(api: &Api) -> usize {
    api.set_allocator as usize
}

/// Forgets everything known of the interpreter.
///
/// # Safety
/// The interpreter's code is gone.
unsafe fn forget() {
    codes::forget_all();
    reuse::forget();
    view::forget();
    // SAFETY: the caller guarantees that the interpreter's code is gone, so no interpreter runs.
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

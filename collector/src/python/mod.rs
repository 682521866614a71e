//! CPython's own allocators: the `python` domain.
//!
//! ```text
//! start of the process: an interpreter is there  ──> [`crate::symbols`] its C API, [`layout`] its structures
//! it initialises its first modules               ──> [`install`]: PyMem_SetAllocator for RAW, MEM and OBJ
//! an allocation                                  ──> the real one ──> [`stack`] of Python frames ──> ring
//! an object in a block that was kept             ──> [`reuse`] ───────────────^
//! `import tracemalloc`                           ──> [`program`] ──> ring ──> aggregator ──> the answer
//! ```
//!
//! An allocator that is set before the interpreter starts is thrown away by `PYTHONMALLOC` and `-X dev`, so ours is set by
//! the first built-in module that every interpreter makes, `_thread`, through the table of built-in modules
//! (`PyImport_Inittab`). No Python code has run by then.
//!
//! A request that one domain hands on to another (a large object's to RAW) is one block, the outer one's. The interpreter's
//! lock is never taken; a thread walks its own frames only.

mod codes;
mod join;
mod layout;
mod patch;
mod program;
mod reuse;
mod stack;

pub use join::{join, part};
pub use stack::PythonStack;

use crate::hooks;
use crate::process;
use crate::sampling::{self, Call};
use crate::symbols;
use crate::thread::{Published, Thread, stack_pointer, was_abandoned};
use crate::{sys, tls};
use core::cell::UnsafeCell;
use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use heapline_shared_format::arena::target_flag;
use heapline_shared_format::event::{self, domain};
use layout::{Layout, Version};
use reuse::Teller;

/// `PyMemAllocatorEx`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Allocator {
    context: *mut c_void,
    malloc: unsafe extern "C" fn(*mut c_void, usize) -> *mut u8,
    calloc: unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut u8,
    realloc: unsafe extern "C" fn(*mut c_void, *mut u8, usize) -> *mut u8,
    free: unsafe extern "C" fn(*mut c_void, *mut u8),
}

/// `struct _inittab`.
#[repr(C)]
struct BuiltIn {
    name: *const c_char,
    init: Option<unsafe extern "C" fn() -> *mut c_void>,
}

/// What the interpreter gives us, found at the start of the process.
struct Api {
    get_allocator: GetAllocator,
    set_allocator: SetAllocator,
    thread_state: GetThreadState,
    /// The state that is bound to the thread, also while it is without the interpreter's lock.
    bound_state: GetThreadState,
    is_finalizing: IsFinalizing,
    config: GetConfig,
    allocator_name: GetName,
    version: Version,
    layout: Layout,
    /// `PyCode_Type`.
    code_type: usize,
    /// None where new objects in kept blocks cannot be seen.
    teller: Option<Teller>,
}

type GetAllocator = unsafe extern "C" fn(c_int, *mut Allocator);
type SetAllocator = unsafe extern "C" fn(c_int, *const Allocator);
type GetThreadState = unsafe extern "C" fn() -> *const u8;
type IsFinalizing = unsafe extern "C" fn() -> c_int;
type GetConfig = unsafe extern "C" fn() -> *mut u8;
type GetName = unsafe extern "C" fn() -> *const c_char;

/// RAW, MEM and OBJ.
const ALLOCATORS: usize = 3;
/// The module whose creation tells that allocators are final.
const FIRST_MODULE: &core::ffi::CStr = c"_thread";

struct Shared<T>(UnsafeCell<Option<T>>);

// SAFETY: written once, before anything that reads it can run: by the start of the process, and under the interpreter's lock.
unsafe impl<T> Sync for Shared<T> {}

/// The allocators before ours.
struct Reals(UnsafeCell<[Allocator; ALLOCATORS]>);

// SAFETY: written under the interpreter's lock, each before ours of its number is called.
unsafe impl Sync for Reals {}

/// What stands there before any.
const NOTHING: Allocator = {
    unsafe extern "C" fn malloc(_: *mut c_void, _: usize) -> *mut u8 {
        core::ptr::null_mut()
    }
    unsafe extern "C" fn calloc(_: *mut c_void, _: usize, _: usize) -> *mut u8 {
        core::ptr::null_mut()
    }
    unsafe extern "C" fn realloc(_: *mut c_void, _: *mut u8, _: usize) -> *mut u8 {
        core::ptr::null_mut()
    }
    unsafe extern "C" fn free(_: *mut c_void, _: *mut u8) {}
    Allocator { context: core::ptr::null_mut(), malloc, calloc, realloc, free }
};

static API: Shared<Api> = Shared(UnsafeCell::new(None));
static REAL: Reals = Reals(UnsafeCell::new([NOTHING; ALLOCATORS]));
static FIRST_INIT: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
static IS_INSTALLED: AtomicBool = AtomicBool::new(false);

impl Api {
    /// The calling thread's state, if it has one that lives: an interpreter that ends frees those of other threads than the one
    /// that ends it, which nearly always is the first. (A daemon thread that runs without the lock, and is looked at in the very
    /// moment in which the interpreter begins to end, is the case that is left.)
    #[inline(always)]
    fn own_state(&self) -> Option<*const u8> {
        // SAFETY: CPython's functions without arguments, which may be called without its lock.
        unsafe {
            if (self.is_finalizing)() != 0 && sys::gettid() != sys::getpid() {
                return None;
            }
            let current = (self.thread_state)();
            let state = if current.is_null() { (self.bound_state)() } else { current };
            (!state.is_null()).then_some(state)
        }
    }
}

/// Whether the process runs an interpreter of ours to look at.
#[inline(always)]
pub fn is_running() -> bool {
    !cfg!(feature = "embedded") && IS_INSTALLED.load(Ordering::Relaxed)
}

/// A forked child begins.
pub fn in_child() {
    codes::in_child();
}

fn api() -> Option<&'static Api> {
    // SAFETY: see `Shared`.
    unsafe { (*API.0.get()).as_ref() }
}

/// The function for the native half of tracemalloc.
const TRACEMALLOC: &core::ffi::CStr = c"_tracemalloc";

/// The interpreter's API; none where it is not one of those that are known. The list of objects must not change meanwhile.
fn find_api() -> Option<Api> {
    let version = Version::read(symbols::find(b"Py_GetVersion")?)?;
    // SAFETY: functions of CPython's C API, by the names and with the signatures that its documentation gives.
    unsafe {
        Some(Api {
            get_allocator: core::mem::transmute::<usize, GetAllocator>(symbols::find(b"PyMem_GetAllocator")?),
            set_allocator: core::mem::transmute::<usize, SetAllocator>(symbols::find(b"PyMem_SetAllocator")?),
            thread_state: core::mem::transmute::<usize, GetThreadState>(symbols::find(version.thread_state())?),
            bound_state: core::mem::transmute::<usize, GetThreadState>(symbols::find(
                b"PyGILState_GetThisThreadState",
            )?),
            is_finalizing: core::mem::transmute::<usize, IsFinalizing>(symbols::find(version.is_finalizing())?),
            config: core::mem::transmute::<usize, GetConfig>(symbols::find(b"_Py_GetConfig")?),
            allocator_name: core::mem::transmute::<usize, GetName>(symbols::find(b"_PyMem_GetCurrentAllocatorName")?),
            version,
            layout: Layout::of(version)?,
            code_type: symbols::find(b"PyCode_Type")?,
            teller: Teller::find(),
        })
    }
}

/// Looks for an interpreter, at the start of the process. Returns the [`target_flag`]s that tell what is missing.
pub fn prepare() -> u32 {
    let Some(table) = symbols::find(b"PyImport_Inittab") else { return 0 };
    let Some(api) = find_api() else { return target_flag::UNKNOWN_PYTHON };
    let reuse = if api.teller.is_none() { target_flag::UNSEEN_REUSE } else { 0 };
    // SAFETY: the process is starting: no other thread of it is in here, and no interpreter runs yet. The table ends with an
    // entry without a name.
    unsafe {
        *API.0.get() = Some(api);
        let table = *(table as *const *mut BuiltIn);
        let entry = |name| {
            let named = |i: &usize| core::ffi::CStr::from_ptr((*table.add(*i)).name) == name;
            let mut used = (0..).take_while(|&i| !(*table.add(i)).name.is_null());
            used.find(named).map(|i| &mut (*table.add(i)).init)
        };
        if let Some((init, program)) = entry(TRACEMALLOC).zip(program::Program::find())
            && let Some(own) = init.replace(program::init)
        {
            program::prepare(program, own as *mut c_void);
        }
        let Some(first) = entry(FIRST_MODULE).and_then(|init| init.replace(first_module)) else {
            return target_flag::UNKNOWN_PYTHON;
        };
        FIRST_INIT.store(first as *mut c_void, Ordering::Release);
    }
    reuse
}

/// In the place of the first module's own function.
unsafe extern "C" fn first_module() -> *mut c_void {
    if !IS_INSTALLED.swap(true, Ordering::AcqRel)
        && let Some(api) = api()
    {
        let is_debugged = is_debugged(api);
        install(api);
        if process::is_quiet() || process::is_sampling() {
            note_unseen_reuse();
        } else {
            // SAFETY: with the interpreter's lock, before its first module.
            unsafe { take_part(api, is_debugged) };
        }
    }
    let init = FIRST_INIT.load(Ordering::Acquire);
    // SAFETY: what stood in the table.
    unsafe { core::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *mut c_void>(init)() }
}

/// Whether the interpreter's own allocators are its debug ones. Before ours are there.
fn is_debugged(api: &Api) -> bool {
    // SAFETY: CPython's function, which returns a constant text, or null for allocators that it does not know.
    unsafe {
        let name = (api.allocator_name)();
        !name.is_null() && core::ffi::CStr::from_ptr(name).to_bytes().ends_with(b"debug")
    }
}

/// The interpreter is traced from its start: we hear of its objects, and are its tracemalloc.
unsafe fn take_part(api: &Api, is_debugged: bool) {
    // SAFETY: the caller's promise. The configuration is the interpreter's own, which reads it later than now.
    unsafe {
        let is_served = program::serve();
        // While its flag is raised CPython's own tracemalloc must not run, nor its debug allocators, which ask it when they find
        // memory overwritten.
        let teller = api.teller.filter(|teller| is_served && !(is_debugged && teller.raises_flag()));
        if !teller.is_some_and(|teller| teller.listen()) {
            note_unseen_reuse();
        }
        let config = (api.config)();
        if !is_served || config.is_null() {
            return;
        }
        let nframe: *mut c_int = config.add(api.version.configured_nframe()).cast();
        if program::begin_as_configured(nframe.read()) {
            nframe.write(0);
        }
    }
}

/// An aggregator that comes later shall say it.
fn note_unseen_reuse() {
    note(target_flag::UNSEEN_REUSE);
}

/// The interpreter's structures are not what its version says.
fn note_unknown() {
    note(target_flag::UNKNOWN_PYTHON);
}

fn note(flag: u32) {
    if let Some(process) = process::get() {
        process.header().target.flags.fetch_or(flag, Ordering::Relaxed);
    }
}

/// Whether what a frame refers to is a code object.
///
/// # Safety
/// A Python object.
unsafe fn is_code(object: usize) -> bool {
    const TYPE: usize = 8;
    // SAFETY: an object begins with its reference count and its type.
    api().is_some_and(|api| unsafe { ((object + TYPE) as *const usize).read() } == api.code_type)
}

/// What calls one of CPython's allocators, by its number.
#[derive(Clone, Copy)]
struct Functions {
    malloc: unsafe extern "C" fn(*mut c_void, usize) -> *mut u8,
    calloc: unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut u8,
    realloc: unsafe extern "C" fn(*mut c_void, *mut u8, usize) -> *mut u8,
    free: unsafe extern "C" fn(*mut c_void, *mut u8),
}

impl Functions {
    const fn of<const N: usize>() -> Functions {
        Functions { malloc: malloc::<N>, calloc: calloc::<N>, realloc: realloc::<N>, free: free::<N> }
    }
}

const OURS: [Functions; ALLOCATORS] = [Functions::of::<0>(), Functions::of::<1>(), Functions::of::<2>()];

/// Puts our allocators before the interpreter's. Called with its lock.
///
/// The context stays the one that was there. Threads may be calling an allocator in this moment (RAW needs no lock), and
/// read its five words one by one: every mixture of old and new ones is a call that works.
fn install(api: &Api) {
    reuse::set_pre_header(api.version.pre_header());
    for ((number, place), ours) in (0..).zip(0..).zip(OURS) {
        // SAFETY: CPython's documented functions, on a thread with its lock; what they had is kept before they get ours.
        unsafe {
            let mut now = NOTHING;
            (api.get_allocator)(number, &raw mut now);
            if now.malloc as usize == ours.malloc as usize {
                continue;
            }
            (*REAL.0.get())[place] = now;
            let Functions { malloc, calloc, realloc, free } = ours;
            (api.set_allocator)(number, &Allocator { context: now.context, malloc, calloc, realloc, free });
        }
    }
}

/// Takes our allocators away, where nobody has put another before them. Called with the interpreter's lock.
fn uninstall(api: &Api) {
    for ((number, place), ours) in (0..).zip(0..).zip(OURS) {
        // SAFETY: as in `install`; what was there before ours is kept for threads that are in them.
        unsafe {
            let mut now = NOTHING;
            (api.get_allocator)(number, &raw mut now);
            if now.malloc as usize == ours.malloc as usize {
                (api.set_allocator)(number, &raw const (*REAL.0.get())[place]);
            }
        }
    }
}

/// The allocator before ours of this number.
#[inline(always)]
fn real<const N: usize>() -> &'static Allocator {
    // SAFETY: written before ours is first called; see `Reals`.
    unsafe { &(*REAL.0.get())[N] }
}

/// Whether a call is to be passed on without a record: nothing is traced, or it is part of another call.
#[inline(always)]
fn is_passed_on() -> bool {
    process::is_quiet() || is_part()
}

/// Whether the call is part of another, which a signal handler may have left for good.
#[inline(always)]
fn is_part() -> bool {
    let noted = tls::in_python();
    noted != 0 && !was_abandoned(noted, stack_pointer())
}

/// Calls of our allocators from inside `call` are part of it.
#[inline(always)]
fn as_part<R>(call: impl FnOnce() -> R) -> R {
    let outer = tls::in_python();
    tls::set_in_python(stack_pointer());
    tls::set_read_stack(0);
    let result = call();
    tls::set_in_python(outer);
    result
}

/// # Safety
/// As CPython calls its allocators; so for all below.
unsafe extern "C" fn malloc<const N: usize>(context: *mut c_void, size: usize) -> *mut u8 {
    let real = real::<N>();
    // SAFETY: passed on; so for all below.
    let call = || unsafe { (real.malloc)(context, size) };
    if is_passed_on() {
        return call();
    }
    let block = as_part(call);
    record_alloc(block, size);
    block
}

unsafe extern "C" fn calloc<const N: usize>(context: *mut c_void, count: usize, size: usize) -> *mut u8 {
    let real = real::<N>();
    // SAFETY: as above.
    let call = || unsafe { (real.calloc)(context, count, size) };
    if is_passed_on() {
        return call();
    }
    let block = as_part(call);
    record_alloc(block, count.wrapping_mul(size));
    block
}

unsafe extern "C" fn realloc<const N: usize>(context: *mut c_void, old: *mut u8, size: usize) -> *mut u8 {
    let real = real::<N>();
    // SAFETY: as above.
    let call = || unsafe { (real.realloc)(context, old, size) };
    if is_passed_on() {
        return call();
    }
    if old.is_null() {
        let block = as_part(call);
        record_alloc(block, size);
        return block;
    }
    if process::is_sampling() {
        let what = (old, size.max(1), domain::PYTHON, stack_pointer());
        return sampling::reallocating(what, || as_part(call), |block| record_alloc(block, size));
    }
    let address = old.addr() as u64;
    record(|thread| thread.publish_plain(|stamp| event::in_domain(event::realloc(stamp, address), domain::PYTHON)));
    let block = as_part(call);
    if block.is_null() {
        let ended = |stamp| event::in_domain(event::realloc_end(stamp, address, false), domain::PYTHON);
        record(|thread| thread.publish_plain(ended));
    } else {
        tls::set_new_block(block.addr());
        record(|thread| {
            thread.publish_call_in_python(|stamp, stack| {
                event::reallocated(stamp, block.addr() as u64, size as u64, stack)
            })
        });
    }
    block
}

unsafe extern "C" fn free<const N: usize>(context: *mut c_void, block: *mut u8) {
    let real = real::<N>();
    // SAFETY: as above.
    let call = || unsafe { (real.free)(context, block) };
    if process::is_quiet() || block.is_null() {
        return call();
    }
    codes::freed(block.addr());
    if is_part() {
        return call();
    }
    if process::is_sampling() {
        let call = sampling::freeing(block, domain::PYTHON);
        if call != Call::Plain {
            sample_freeing(block, call);
        }
    } else {
        record(|thread| thread.publish_plain(|stamp| freed(stamp, block)));
    }
    as_part(call);
}

fn freed(stamp: u64, block: *mut u8) -> [u64; 2] {
    event::in_domain(event::free(stamp, block.addr() as u64), domain::PYTHON)
}

#[cold]
#[inline(never)]
fn sample_freeing(block: *mut u8, call: Call) {
    sampling::sample_freeing((block, domain::PYTHON), call, stack_pointer(), |thread| {
        thread.publish_plain(|stamp| freed(stamp, block))
    });
}

#[inline(always)]
fn record_alloc(block: *mut u8, size: usize) {
    if block.is_null() {
        return;
    }
    tls::set_new_block(block.addr());
    if process::is_sampling() {
        let call = sampling::allocated(size, domain::PYTHON);
        if call != Call::Plain {
            sampled(block, size, call);
        }
    } else {
        record(|thread| publish_alloc(thread, block, size));
    }
}

#[inline(always)]
fn publish_alloc(thread: &mut Thread, block: *mut u8, size: usize) -> Published {
    thread.publish_call_in_python(|stamp, stack| event::alloc(stamp, block.addr() as u64, size as u64, stack))
}

#[cold]
#[inline(never)]
fn sampled(block: *mut u8, size: usize, call: Call) {
    let what = (block, size, domain::PYTHON);
    sampling::sampled(what, call, stack_pointer(), |thread| publish_alloc(thread, block, size));
}

#[inline(always)]
fn record(publish: impl Fn(&mut Thread) -> Published) {
    hooks::record(stack_pointer(), publish);
}

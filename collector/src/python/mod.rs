//! CPython's own allocators: the `python` domain.
//!
//! ```text
//! an interpreter is loaded           ──> [`arrival`]: C API; [`layout`]: structures
//! first modules are initialised      ──> [`install`]: PyMem_SetAllocator for RAW, MEM and OBJ
//! an allocation                      ──> the real allocator ──> [`stack`] of frames ──> ring
//! an object in a kept block          ──> [`reuse`] ────────────────────────^
//! `import tracemalloc`               ──> [`program`] ──> ring ──> aggregator ──> the answer
//! ```
//!
//! `PYTHONMALLOC` and `-X dev` throw away an allocator set before the interpreter starts. So
//! Heapline's allocators are set by the creation of `_thread`, the first built-in module made by
//! every interpreter, through the table of built-in modules (`PyImport_Inittab`). No Python code
//! has run by then. A second interpreter in the same process gets Heapline's allocators again,
//! since CPython may have put its own back meanwhile.
//!
//! If an allocator hands a request on to another allocator (a large object goes to RAW), only the
//! outer request is recorded, as one block. The hooks never take the interpreter's lock, and a
//! thread walks only its own frames.

mod arrival;
mod chain;
mod codes;
mod join;
mod layout;
mod patch;
mod program;
mod published;
mod reuse;
mod stack;
mod version;
mod view;

pub use arrival::{called_from, closed, closing, expect, look_again, prepare};
pub use join::{join, part};
pub use stack::PythonStack;

use crate::platform::{sys, tls};
use crate::sampling::{Allocation, Call, Held};
use crate::thread::{Published, Thread, stack_pointer, was_abandoned};
use crate::{attach, process, real, sampling};
use core::cell::UnsafeCell;
use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use heapline_shared_format::arena::target_flag;
use heapline_shared_format::event::{self, domain};
use layout::Layout;
use reuse::Teller;
use version::Version;
use view::Comparing;

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

/// Functions and layouts of the interpreter.
struct Api {
    get_allocator: GetAllocator,
    set_allocator: SetAllocator,
    thread_state: GetThreadState,
    /// Returns the state bound to the thread, also while the thread is without the interpreter's
    /// lock.
    bound_state: GetThreadState,
    is_finalizing: IsFinalizing,
    is_initialized: IsFinalizing,
    /// `PyGILState_Ensure` and `PyGILState_Release`.
    lock: (Lock, Unlock),
    config: GetConfig,
    comparing: Comparing,
    /// `PyImport_ImportModule`.
    import: program::Import,
    version: Version,
    layout: Layout,
    /// `PyCode_Type`.
    code_type: usize,
    /// None if new objects in kept blocks cannot be seen.
    teller: Option<Teller>,
}

type GetAllocator = unsafe extern "C" fn(c_int, *mut Allocator);
type SetAllocator = unsafe extern "C" fn(c_int, *const Allocator);
type GetThreadState = unsafe extern "C" fn() -> *const u8;
type IsFinalizing = unsafe extern "C" fn() -> c_int;
type GetConfig = unsafe extern "C" fn() -> *mut u8;
type Lock = unsafe extern "C" fn() -> c_int;
type Unlock = unsafe extern "C" fn(c_int);

/// Number of CPython's allocators: RAW, MEM and OBJ.
const ALLOCATORS: usize = 3;

struct Shared<T>(UnsafeCell<Option<T>>);

// SAFETY: written while no known interpreter runs, so before any reader can run.
unsafe impl<T> Sync for Shared<T> {}

/// The real allocators, called by Heapline's allocators.
struct Reals(UnsafeCell<[Allocator; ALLOCATORS]>);

// SAFETY: written with the interpreter's lock, each entry before Heapline's allocator of the same
// number is first called.
unsafe impl Sync for Reals {}

/// An allocator that always fails, for entries of [`Reals`] not yet filled.
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
static IS_INSTALLED: AtomicBool = AtomicBool::new(false);

impl Api {
    /// Returns the state of the calling thread. None if the thread has no state, or if the state
    /// may be freed already: an ending interpreter frees the states of all threads but the thread
    /// that ends the interpreter, nearly always the first.
    ///
    /// Not covered: a daemon thread without the lock, looked at in the very moment in which the
    /// interpreter begins to end.
    #[inline(always)]
    fn own_state(&self) -> Option<*const u8> {
        // SAFETY: CPython's functions without arguments, which may be called without the
        // interpreter's lock.
        unsafe {
            if (self.is_finalizing)() != 0 && sys::gettid() != sys::getpid() {
                return None;
            }
            let current = (self.thread_state)();
            let state = if current.is_null() { (self.bound_state)() } else { current };
            (!state.is_null()).then_some(state)
        }
    }

    /// Whether an interpreter has begun, and has not ended since.
    fn runs(&self) -> bool {
        // SAFETY: CPython's `Py_IsInitialized` may be called at any time.
        unsafe { (self.is_initialized)() != 0 }
    }
}

/// Whether the process runs an interpreter with Heapline's allocators.
#[inline(always)]
pub fn is_running() -> bool {
    !cfg!(feature = "embedded") && IS_INSTALLED.load(Ordering::Relaxed)
}

/// Resets the state for a forked child.
pub fn in_child() {
    codes::in_child();
}

fn api() -> Option<&'static Api> {
    // SAFETY: `API` is written only while no known interpreter runs, before any reader can run (see
    // `Shared`).
    unsafe { (*API.0.get()).as_ref() }
}

/// Installs Heapline's allocators in an interpreter before its first module. The interpreter may be
/// the second of the process.
///
/// # Safety
/// 1. The calling thread holds the interpreter's lock.
/// 2. The interpreter has not made its first module yet.
unsafe fn interpreter_begins(api: &Api) {
    if real::came_later() && !attach::is_attached() {
        return;
    }
    unnote(target_flag::LATE_PYTHON);
    if IS_INSTALLED.swap(true, Ordering::AcqRel) {
        // Frees of the earlier interpreter, after CPython had put its own allocators back, were not
        // seen.
        codes::forget_all();
        program::interpreter_has_ended();
    }
    install(api);
    if process::is_quiet() || process::is_sampling() || process::is_forked() || real::came_later() {
        note_unseen_reuse();
    } else {
        // SAFETY: the caller gives promises 1 and 2.
        unsafe { take_part(api) };
    }
}

/// Serves tracemalloc and listens for new objects, for an interpreter traced from the start.
unsafe fn take_part(api: &Api) {
    // SAFETY: the caller gives promises 1 and 2 of `interpreter_begins`. The configuration belongs
    // to the interpreter, which reads the number of frames later than now.
    unsafe {
        let is_served = program::serve();
        // While tracemalloc's flag is raised, CPython's own tracemalloc must not run. Nor must
        // CPython's debug allocators, which ask tracemalloc when they find memory overwritten.
        let teller = api.teller.filter(|teller| is_served && !(view::is_debugged() && teller.raises_flag()));
        if !teller.is_some_and(|teller| teller.listen()) {
            note_unseen_reuse();
        }
        let config = (api.config)();
        if !is_served || config.is_null() {
            return;
        }
        program::take_over(config.add(api.version.configured_nframe()).cast(), api.import);
    }
}

/// Looks at what the interpreter may have changed since a code object was last described.
///
/// - The interpreter may compile functions.
/// - A tracer of the program's own may have replaced the listener for new objects. Heapline listens
///   again once the program listens no more. Reused blocks in between are not seen, and reports say
///   so.
#[cold]
fn look_at_interpreter() {
    let Some(api) = api() else { return };
    // SAFETY: CPython's function may be called at any time.
    let state = unsafe { (api.thread_state)() };
    if state.is_null() {
        return;
    }
    // SAFETY: a thread with a current state has the interpreter's lock, and the state is its own.
    unsafe {
        api.layout.note_jit(state);
        if reuse::hears() && !api.teller.is_some_and(|teller| teller.join()) {
            note_unseen_reuse();
        }
    }
}

/// Tells a later aggregator that reused blocks were not seen.
fn note_unseen_reuse() {
    note(target_flag::UNSEEN_REUSE);
}

/// Tells the aggregator that the interpreter's structures differ from the known layout of the
/// version.
fn note_unknown() {
    note(target_flag::UNKNOWN_PYTHON);
}

fn note(flag: u32) {
    if let Some(process) = process::get() {
        process.header().target.flags.fetch_or(flag, Ordering::Relaxed);
    }
}

fn unnote(flag: u32) {
    if let Some(process) = process::get() {
        process.header().target.flags.fetch_and(!flag, Ordering::Relaxed);
    }
}

/// Whether an object referred to by a frame is a code object.
///
/// # Safety
/// `object` is the address of a Python object.
unsafe fn is_code(object: usize) -> bool {
    // SAFETY: the caller guarantees an object, which has its type at the known place.
    api().is_some_and(|api| unsafe { ((object + api.layout.object().kind) as *const usize).read() } == api.code_type)
}

/// Heapline's functions for one of CPython's allocators.
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

/// Route from the interpreter's table to Heapline's allocators.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leads {
    /// The table holds Heapline's allocator.
    Directly,
    /// The table holds a foreign allocator, which wraps Heapline's allocator.
    Below,
    /// No route.
    Not,
}

/// Puts Heapline's allocators into the interpreter's tables, if they are not reached yet. The
/// caller holds the interpreter's lock.
///
/// The context of the replaced allocator is kept. Threads may be calling an allocator in this
/// moment (RAW needs no lock) and read the five words one by one: every mixture of old and new
/// words is a working call.
fn install(api: &Api) {
    reuse::set_layout(api.layout.object());
    let now = [0, 1, 2].map(|place| allocator(api, place));
    let leads = [0, 1, 2].map(|place| leads(&now[place], place));
    if leads.iter().all(|&leads| leads == Leads::Not) {
        view::note_name(api);
    }
    for (number, place) in (0..).zip(0..ALLOCATORS) {
        if leads[place] != Leads::Not {
            continue;
        }
        let Functions { malloc, calloc, realloc, free } = OURS[place];
        let context = now[place].context;
        // SAFETY: CPython's documented function, on a thread with the lock; the old allocator is
        // kept before Heapline's allocator replaces it.
        unsafe {
            (*REAL.0.get())[place] = now[place];
            (api.set_allocator)(number, &Allocator { context, malloc, calloc, realloc, free });
        }
    }
    // SAFETY: the caller holds the interpreter's lock.
    unsafe { view::serve(api) };
}

/// Returns the present entry of the interpreter's table.
fn allocator(api: &Api, number: c_int) -> Allocator {
    let mut now = NOTHING;
    // SAFETY: CPython's documented function, on a thread with the interpreter's lock.
    unsafe { (api.get_allocator)(number, &raw mut now) };
    now
}

/// Whether all tables of the interpreter hold Heapline's allocators.
fn are_ours(api: &Api) -> bool {
    (0..).zip(OURS).all(|(number, ours)| allocator(api, number).malloc as usize == ours.malloc as usize)
}

fn leads(now: &Allocator, place: usize) -> Leads {
    // SAFETY: `REAL` is written only with the interpreter's lock, which the caller holds.
    let real = unsafe { (*REAL.0.get())[place] };
    let is_same = |other: usize| now.malloc as usize == other;
    if is_same(OURS[place].malloc as usize) {
        Leads::Directly
    } else if is_same(real.malloc as usize) || real.malloc as usize == NOTHING.malloc as usize || !ends_in_ours(now) {
        Leads::Not
    } else {
        Leads::Below
    }
}

/// Stack address of the caller of [`ends_in_ours`] while probing; 0 otherwise.
static PROBE: AtomicUsize = AtomicUsize::new(0);
static IS_PROBE_SEEN: AtomicBool = AtomicBool::new(false);

/// Whether a call of this allocator reaches one of Heapline's allocators. If so, Heapline's
/// allocator in front of this allocator would make the two call each other without end.
fn ends_in_ours(allocator: &Allocator) -> bool {
    as_part(|| {
        IS_PROBE_SEEN.store(false, Ordering::Relaxed);
        PROBE.store(tls::in_python(), Ordering::Relaxed);
        // SAFETY: an allocator of the interpreter, called with the lock; the block is freed at
        // once.
        unsafe {
            let block = (allocator.malloc)(allocator.context, 1);
            (allocator.free)(allocator.context, block);
        }
        PROBE.store(0, Ordering::Relaxed);
        IS_PROBE_SEEN.load(Ordering::Relaxed)
    })
}

/// Tells [`ends_in_ours`] that the probing call has reached Heapline's allocator.
#[inline(always)]
fn answer_probe() {
    let probe = PROBE.load(Ordering::Relaxed);
    if probe != 0 && probe == tls::in_python() {
        IS_PROBE_SEEN.store(true, Ordering::Relaxed);
    }
}

/// Takes Heapline's allocators out of the tables, except where a foreign allocator was put in
/// front. The caller holds the interpreter's lock.
fn uninstall(api: &Api) {
    let mut is_whole = true;
    for ((number, place), ours) in (0..).zip(0..).zip(OURS) {
        if allocator(api, number).malloc as usize != ours.malloc as usize {
            is_whole = false;
            continue;
        }
        // SAFETY: CPython's documented function, with the lock. `REAL` keeps the old allocators for
        // threads still inside Heapline's allocators.
        unsafe { (api.set_allocator)(number, &raw const (*REAL.0.get())[place]) };
    }
    // A foreign wrapper may put Heapline's allocators back.
    if is_whole {
        // SAFETY: the caller holds the interpreter's lock.
        unsafe { view::end() };
    }
}

/// Returns the real allocator of this number.
#[inline(always)]
fn real<const N: usize>() -> &'static Allocator {
    // SAFETY: the entry was written before Heapline's allocator of this number is first called (see
    // `Reals`).
    unsafe { &(*REAL.0.get())[N] }
}

/// Whether a call is passed on without a record: nothing is traced, or the call is part of another
/// call.
#[inline(always)]
fn is_passed_on() -> bool {
    process::is_quiet() || is_part()
}

/// Whether the call is part of another call. A signal handler may have left the other call for
/// good.
#[inline(always)]
fn is_part() -> bool {
    let noted = tls::in_python();
    noted != 0 && !was_abandoned(noted, stack_pointer())
}

/// Runs `call` as the outer call: allocator calls inside are part of it, and are not recorded.
#[inline(always)]
fn as_part<R>(call: impl FnOnce() -> R) -> R {
    let outer = tls::in_python();
    tls::set_in_python(stack_pointer());
    tls::set_read_stack(0);
    let result = call();
    tls::set_in_python(outer);
    result
}

/// CPython's `malloc` function of allocator `N`.
///
/// # Safety
/// The caller upholds CPython's contract of `PyMemAllocatorEx.malloc`.
unsafe extern "C" fn malloc<const N: usize>(context: *mut c_void, size: usize) -> *mut u8 {
    let real = real::<N>();
    // SAFETY: the caller upholds the contract of `PyMemAllocatorEx.malloc`.
    let call = || unsafe { (real.malloc)(context, size) };
    if is_passed_on() {
        answer_probe();
        return call();
    }
    let block = as_part(call);
    record_alloc(block, size);
    block
}

unsafe extern "C" fn calloc<const N: usize>(context: *mut c_void, count: usize, size: usize) -> *mut u8 {
    let real = real::<N>();
    // SAFETY: CPython upholds the contract of `PyMemAllocatorEx.calloc`.
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
    // SAFETY: CPython upholds the contract of `PyMemAllocatorEx.realloc`.
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
        let what = Allocation { block: old, size: size.max(1), domain: domain::PYTHON };
        return sampling::reallocating(what, stack_pointer(), || as_part(call), |block| record_alloc(block, size));
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
    // SAFETY: CPython upholds the contract of `PyMemAllocatorEx.free`.
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
    sampling::sample_freeing(Held { block, domain: domain::PYTHON }, call, stack_pointer(), |thread| {
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
    let what = Allocation { block, size, domain: domain::PYTHON };
    sampling::sampled(what, call, stack_pointer(), |thread| publish_alloc(thread, block, size));
}

#[inline(always)]
fn record(publish: impl Fn(&mut Thread) -> Published) {
    crate::thread::record::record(stack_pointer(), publish);
}

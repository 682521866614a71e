//! CPython's own allocators: the `python` domain.
//!
//! ```text
//! an interpreter is loaded                       ──> [`arrival`]: its C API, [`layout`] its structures
//! it initialises its first modules               ──> [`install`]: PyMem_SetAllocator for RAW, MEM and OBJ
//! an allocation                                  ──> the real one ──> [`stack`] of Python frames ──> ring
//! an object in a block that was kept             ──> [`reuse`] ───────────────^
//! `import tracemalloc`                           ──> [`program`] ──> ring ──> aggregator ──> the answer
//! ```
//!
//! An allocator that is set before the interpreter starts is thrown away by `PYTHONMALLOC` and `-X dev`, so ours is set by
//! the first built-in module that every interpreter makes, `_thread`, through the table of built-in modules
//! (`PyImport_Inittab`). No Python code has run by then. An interpreter that ends and begins again gets them again, since
//! CPython may have put its own back meanwhile.
//!
//! A request that one domain hands on to another (a large object's to RAW) is one block, the outer one's. The interpreter's
//! lock is never taken; a thread walks its own frames only.

mod arrival;
mod codes;
mod join;
mod layout;
mod patch;
mod program;
mod reuse;
mod stack;
mod view;

pub use arrival::{called_from, closed, closing, expect, look_again, prepare};
pub use join::{join, part};
pub use stack::PythonStack;

use crate::platform::{sys, tls};
use crate::sampling::Call;
use crate::thread::{Published, Thread, stack_pointer, was_abandoned};
use crate::{attach, process, real, sampling};
use core::cell::UnsafeCell;
use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use heapline_shared_format::arena::target_flag;
use heapline_shared_format::event::{self, domain};
use layout::{Layout, Version};
use reuse::Teller;
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

/// What the interpreter gives us.
struct Api {
    get_allocator: GetAllocator,
    set_allocator: SetAllocator,
    thread_state: GetThreadState,
    /// The state that is bound to the thread, also while it is without the interpreter's lock.
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
    /// None where new objects in kept blocks cannot be seen.
    teller: Option<Teller>,
}

type GetAllocator = unsafe extern "C" fn(c_int, *mut Allocator);
type SetAllocator = unsafe extern "C" fn(c_int, *const Allocator);
type GetThreadState = unsafe extern "C" fn() -> *const u8;
type IsFinalizing = unsafe extern "C" fn() -> c_int;
type GetConfig = unsafe extern "C" fn() -> *mut u8;
type Lock = unsafe extern "C" fn() -> c_int;
type Unlock = unsafe extern "C" fn(c_int);

/// RAW, MEM and OBJ.
const ALLOCATORS: usize = 3;

struct Shared<T>(UnsafeCell<Option<T>>);

// SAFETY: written before anything that reads it can run: while no interpreter runs that is known.
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

    /// Whether an interpreter has begun, and not ended since.
    fn runs(&self) -> bool {
        // SAFETY: CPython's function, which may be called at any time.
        unsafe { (self.is_initialized)() != 0 }
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

/// The main interpreter is about to make its first module. It may be the second one of the process.
///
/// # Safety
/// With the interpreter's lock, before its first module.
unsafe fn interpreter_begins(api: &Api) {
    if real::came_later() && !attach::is_attached() {
        return;
    }
    unnote(target_flag::LATE_PYTHON);
    if IS_INSTALLED.swap(true, Ordering::AcqRel) {
        // What the earlier one freed after CPython had put its own allocators back was not seen.
        codes::forget_all();
        program::interpreter_has_ended();
    }
    install(api);
    if process::is_quiet() || process::is_sampling() || process::is_forked() || real::came_later() {
        note_unseen_reuse();
    } else {
        // SAFETY: the caller's promise.
        unsafe { take_part(api) };
    }
}

/// The interpreter is traced from its start: we hear of its objects, and are its tracemalloc.
unsafe fn take_part(api: &Api) {
    // SAFETY: the caller's promise. The configuration is the interpreter's own, which reads it later than now.
    unsafe {
        let is_served = program::serve();
        // While its flag is raised CPython's own tracemalloc must not run, nor its debug allocators, which ask it when they find
        // memory overwritten.
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

fn unnote(flag: u32) {
    if let Some(process) = process::get() {
        process.header().target.flags.fetch_and(!flag, Ordering::Relaxed);
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

/// What leads to our allocators.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leads {
    /// The interpreter's table.
    Directly,
    /// An allocator of somebody's, which had ours before it.
    Below,
    /// Nothing.
    Not,
}

/// Puts our allocators before the interpreter's, where they are not yet. Called with its lock.
///
/// The context stays the one that was there. Threads may be calling an allocator in this moment (RAW needs no lock), and
/// read its five words one by one: every mixture of old and new ones is a call that works.
fn install(api: &Api) {
    reuse::set_pre_header(api.version.pre_header());
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
        // SAFETY: CPython's documented function, on a thread with its lock; what it had is kept before it gets ours.
        unsafe {
            (*REAL.0.get())[place] = now[place];
            (api.set_allocator)(number, &Allocator { context, malloc, calloc, realloc, free });
        }
    }
    // SAFETY: the caller has the lock.
    unsafe { view::serve(api) };
}

/// What the interpreter's table holds now.
fn allocator(api: &Api, number: c_int) -> Allocator {
    let mut now = NOTHING;
    // SAFETY: CPython's documented function, on a thread with its lock.
    unsafe { (api.get_allocator)(number, &raw mut now) };
    now
}

/// Whether all of the interpreter's tables hold ours.
fn are_ours(api: &Api) -> bool {
    (0..).zip(OURS).all(|(number, ours)| allocator(api, number).malloc as usize == ours.malloc as usize)
}

fn leads(now: &Allocator, place: usize) -> Leads {
    // SAFETY: see `Reals`.
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

/// Where the caller of [`ends_in_ours`] stands.
static PROBE: AtomicUsize = AtomicUsize::new(0);
static IS_PROBE_SEEN: AtomicBool = AtomicBool::new(false);

/// Whether a call of this allocator comes to one of ours: ours before it would call themselves without end.
fn ends_in_ours(allocator: &Allocator) -> bool {
    as_part(|| {
        IS_PROBE_SEEN.store(false, Ordering::Relaxed);
        PROBE.store(tls::in_python(), Ordering::Relaxed);
        // SAFETY: an allocator of the interpreter's, with its lock; the block is given back at once.
        unsafe {
            let block = (allocator.malloc)(allocator.context, 1);
            (allocator.free)(allocator.context, block);
        }
        PROBE.store(0, Ordering::Relaxed);
        IS_PROBE_SEEN.load(Ordering::Relaxed)
    })
}

/// Tells [`ends_in_ours`] that its call has come here.
#[inline(always)]
fn answer_probe() {
    let probe = PROBE.load(Ordering::Relaxed);
    if probe != 0 && probe == tls::in_python() {
        IS_PROBE_SEEN.store(true, Ordering::Relaxed);
    }
}

/// Takes our allocators away, where nobody has put another before them. Called with the interpreter's lock.
fn uninstall(api: &Api) {
    let mut is_whole = true;
    for ((number, place), ours) in (0..).zip(0..).zip(OURS) {
        if allocator(api, number).malloc as usize != ours.malloc as usize {
            is_whole = false;
            continue;
        }
        // SAFETY: as in `install`; what was there before ours is kept for threads that are in them.
        unsafe { (api.set_allocator)(number, &raw const (*REAL.0.get())[place]) };
    }
    // Who has wrapped ours may put them back.
    if is_whole {
        // SAFETY: the caller has the lock.
        unsafe { view::end() };
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
        answer_probe();
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
    crate::thread::record::record(stack_pointer(), publish);
}

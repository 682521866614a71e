//! The native half of the standard library's tracemalloc, served by Heapline. The aggregator
//! answers the program's questions.
//!
//! ```text
//! tracemalloc.py, as installed ──> _tracemalloc, this module ──> [`ask`] ──> aggregator
//!                                          └──> [`objects`] from the answer
//! ```
//!
//! The program's calls (start, clear, reset) change the program's view only, and nothing seen by
//! the operator. Two kinds of processes get CPython's own module:
//!
//! - a process without tracing at the first import of the module;
//! - a forked child, in which a new trace begins with the first question.
//!
//! When the aggregator goes away, the module says that nothing is traced.
//!
//! All functions here run with the interpreter's lock, except those of [`track`]. A free-threaded
//! interpreter calls the module's functions on several threads at the same time: they share only
//! words that are read and written as a whole, and the place for answers, which has a turn.

mod api;
mod ask;
mod beginning;
mod objects;
pub mod track;

pub use api::Api;
pub use beginning::{Import, take_over};

use super::patch::{self, Purpose};
use super::reuse::{self, Teller};
use crate::platform::symbols::Scope;
use crate::process;
use api::Object;
use ask::{Answers, hidden};
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use heapline_shared_format::query::{self, MAX_NFRAME};

/// `PyMethodDef`.
#[repr(C)]
struct Method {
    name: *const c_char,
    function: Function,
    flags: c_int,
    doc: *const c_char,
}

/// A C function of a method, of the kind told by the flags: `PyCFunction` or a variant.
#[repr(C)]
#[derive(Clone, Copy)]
union Function {
    plain: unsafe extern "C" fn(Object, Object) -> Object,
    fast: unsafe extern "C" fn(Object, *const Object, isize) -> Object,
    none: usize,
}

/// Flags of a method: `METH_FASTCALL`, `METH_NOARGS`, `METH_O`.
const FAST: c_int = 0x80;
const WITHOUT_ARGUMENTS: c_int = 4;
const WITH_ONE: c_int = 8;

/// `PyModuleDef`, with an object's head of a number of words.
#[repr(C)]
struct Definition<const HEAD: usize> {
    head: [usize; HEAD],
    base: [usize; 3],
    name: *const c_char,
    doc: *const c_char,
    state_bytes: isize,
    methods: *const Method,
    rest: [usize; 4],
}

/// `PYTHON_API_VERSION`.
const API_VERSION: c_int = 1013;

struct Shared<T>(UnsafeCell<T>);

// SAFETY: used with the interpreter's lock only.
unsafe impl<T> Sync for Shared<T> {}

impl<const HEAD: usize> Definition<HEAD> {
    const fn of(head: [usize; HEAD]) -> Shared<Definition<HEAD>> {
        Shared(UnsafeCell::new(Definition {
            head,
            base: [0; 3],
            name: c"_tracemalloc".as_ptr(),
            doc: c"The native half of tracemalloc, served by Heapline from outside of the process.".as_ptr(),
            state_bytes: 0,
            methods: METHODS.0.get().cast_const().cast(),
            rest: [0; 4],
        }))
    }
}

/// The module's definition: a reference count of 1, and the type, which CPython fills in.
static DEFINITION: Shared<Definition<2>> = Definition::of([1, 0]);
/// The module's definition for a free-threaded build: the owner's count of references stands in the
/// upper half of the second word, and the count of an object that lives for ever is all ones.
static FREE_DEFINITION: Shared<Definition<4>> = Definition::of([0, 0xffff_ffff << 32, 0, 0]);

macro_rules! methods {
    ($($name:literal, $kind:ident $function:ident, $flags:ident, $doc:literal;)*) => {
        [$(Method {
            name: $name.as_ptr(),
            function: Function { $kind: $function },
            flags: $flags,
            doc: $doc.as_ptr(),
        },)* Method { name: ptr::null(), function: Function { none: 0 }, flags: 0, doc: ptr::null() }]
    };
}

static METHODS: Shared<[Method; 11]> = Shared(UnsafeCell::new(methods! {
    c"start", fast start, FAST,
        c"start($module, nframe=1, /)\n--\n\nBegin to trace blocks, with tracebacks of at most nframe frames.";
    c"stop", plain stop, WITHOUT_ARGUMENTS, c"stop($module, /)\n--\n\nEnd tracing and forget all traces.";
    c"is_tracing", plain is_tracing, WITHOUT_ARGUMENTS, c"is_tracing($module, /)\n--\n\nWhether blocks are traced.";
    c"clear_traces", plain clear_traces, WITHOUT_ARGUMENTS, c"clear_traces($module, /)\n--\n\nForget all traces.";
    c"reset_peak", plain reset_peak, WITHOUT_ARGUMENTS,
        c"reset_peak($module, /)\n--\n\nThe peak of get_traced_memory() becomes what is traced now.";
    c"get_traceback_limit", plain get_traceback_limit, WITHOUT_ARGUMENTS,
        c"get_traceback_limit($module, /)\n--\n\nMost frames of a traceback.";
    c"get_traced_memory", plain get_traced_memory, WITHOUT_ARGUMENTS,
        c"get_traced_memory($module, /)\n--\n\nBytes of all traced blocks: (now, at the peak).";
    c"get_tracemalloc_memory", plain get_tracemalloc_memory, WITHOUT_ARGUMENTS,
        c"get_tracemalloc_memory($module, /)\n--\n\nBytes that Heapline takes in this process.";
    c"_get_traces", plain get_traces, WITHOUT_ARGUMENTS,
        c"_get_traces($module, /)\n--\n\nAll traces: a list of (domain, size, traceback, total_nframe).";
    c"_get_object_traceback", plain get_object_traceback, WITH_ONE,
        c"_get_object_traceback($module, obj, /)\n--\n\nWhere an object's block was allocated, or None.";
}));

/// Functions of the interpreter, found when the interpreter arrives.
#[derive(Clone, Copy)]
pub struct Program {
    api: Api,
    own_functions: track::OwnFunctions,
}

impl Program {
    /// Looks the functions up. None if one is missing.
    pub fn find(scope: Scope) -> Option<Program> {
        Some(Program { api: Api::find(scope)?, own_functions: track::OwnFunctions::find(scope)? })
    }
}

static PROGRAM: Shared<Option<Program>> = Shared(UnsafeCell::new(None));
/// CPython's own init function of the module.
static OWN_INIT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
/// CPython's own module, in a forked child.
static OWN_MODULE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
/// Whether the process was traced when the interpreter started.
static IS_SERVED: AtomicBool = AtomicBool::new(false);
/// Most frames of a traceback, from the last `start`.
static NFRAME: AtomicU32 = AtomicU32::new(1);
/// Number of the session in which the program began to trace; 0 while the program does not trace.
static SESSION: AtomicU32 = AtomicU32::new(0);

/// Stores the functions of the interpreter and CPython's own init function of the module.
pub fn prepare(program: Program, own_init: *mut c_void) {
    // SAFETY: no interpreter runs yet, and nobody reads.
    unsafe { *PROGRAM.0.get() = Some(program) };
    OWN_INIT.store(own_init, Ordering::Release);
}

/// Whether all necessary functions were found in the interpreter.
pub fn is_possible() -> bool {
    program().is_some()
}

fn program() -> Option<&'static Program> {
    // SAFETY: written once, before the interpreter runs.
    unsafe { (*PROGRAM.0.get()).as_ref() }
}

/// Makes Heapline the tracemalloc of a starting interpreter. False if that is impossible; CPython's
/// own tracemalloc stays whole then.
///
/// # Safety
/// 1. The calling thread holds the interpreter's lock.
/// 2. The interpreter has not made its first module yet.
pub unsafe fn serve() -> bool {
    // SAFETY: the caller gives promises 1 and 2.
    let is_served = program().is_some_and(|program| unsafe { program.own_functions.replace() });
    IS_SERVED.store(is_served, Ordering::Release);
    is_served
}

/// Resets the state after the end of an interpreter. CPython's tracemalloc has stopped with the
/// interpreter.
pub fn interpreter_has_ended() {
    beginning::forget();
    end();
    if !process::is_quiet() {
        ask::tell_unseen();
    }
}

/// Forgets an interpreter after its code was unloaded.
///
/// # Safety
/// No interpreter runs.
pub unsafe fn forget() {
    interpreter_has_ended();
    IS_SERVED.store(false, Ordering::Release);
    OWN_INIT.store(ptr::null_mut(), Ordering::Release);
    OWN_MODULE.store(ptr::null_mut(), Ordering::Release);
    // SAFETY: the caller guarantees that no interpreter runs, so nobody reads.
    unsafe { *PROGRAM.0.get() = None };
}

/// Replaces `PyInit__tracemalloc`.
pub unsafe extern "C" fn init() -> *mut c_void {
    beginning::now();
    // Samples cannot answer for every object.
    let is_ours = IS_SERVED.load(Ordering::Acquire) || !(process::is_quiet() || process::is_sampling());
    match program().filter(|_| is_ours && !process::is_forked()) {
        Some(program) => create(&program.api),
        None => own_init(),
    }
}

/// Makes Heapline's module.
fn create(api: &Api) -> Object {
    /// `Py_MOD_GIL_NOT_USED`.
    const NOT_NEEDED: *const c_void = ptr::without_provenance(1);
    let is_free = super::api().is_some_and(|api| api.version.is_free_threaded());
    let definition: *mut c_void = if is_free { FREE_DEFINITION.0.get().cast() } else { DEFINITION.0.get().cast() };
    // SAFETY: the definition is a static, so it lives for ever, as CPython requires. A module that
    // does not say so makes a free-threaded interpreter take its lock.
    unsafe {
        let module = (api.create_module)(definition, API_VERSION);
        if let Some(set) = api.set_need_of_lock.filter(|_| !module.is_null()) {
            set(module, NOT_NEEDED);
        }
        module
    }
}

/// Makes CPython's own module.
fn own_init() -> Object {
    if process::is_forked() {
        // SAFETY: Python code hardly ever gets here without the interpreter's lock. A forked child
        // has one thread, unless the child has started others before its first question.
        unsafe { patch::undo(Purpose::Tracemalloc) };
        super::api().and_then(|api| api.teller).into_iter().for_each(|teller: Teller| {
            // SAFETY: the calling thread holds the interpreter's lock.
            unsafe { teller.ignore() }
        });
        super::note_unseen_reuse();
    }
    // SAFETY: `OWN_INIT` holds the function from the table of built-in modules.
    unsafe { core::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> Object>(OWN_INIT.load(Ordering::Acquire))() }
}

/// Returns the value of a number object and gives the object up. None for null; an exception is set
/// then.
///
/// # Safety
/// 1. `object` is null, or an owned reference to a number that is not negative.
/// 2. The interpreter's lock is held.
pub unsafe fn take_number(object: *mut c_void) -> Option<u64> {
    let api = &program()?.api;
    // SAFETY: the caller gives promises 1 and 2.
    api.own(object).map(|number| unsafe { (api.as_long)(number.get()) }.unsigned_abs())
}

/// Makes a number object.
///
/// # Safety
/// The interpreter's lock is held.
pub unsafe fn make_number(number: u64) -> *mut c_void {
    // SAFETY: the caller guarantees that the interpreter's lock is held.
    program().map_or(ptr::null_mut(), |program| unsafe { (program.api.number)(number) })
}

/// Tells the aggregator that the program traces from now on.
fn begin(nframe: u64) -> bool {
    let Some(process) = process::get() else { return false };
    let begun = Answers::await_place().and_then(|mut answers| answers.ask(query::START, [nframe, 0]));
    if begun.is_none() {
        return false;
    }
    let session = &process.header().session;
    NFRAME.store(u32::try_from(nframe).unwrap_or(MAX_NFRAME), Ordering::Relaxed);
    SESSION.store(session.number.load(Ordering::Acquire), Ordering::Release);
    if nframe > u64::from(session.nframe.load(Ordering::Relaxed)) {
        // More frames than before: threads must define their stacks anew.
        session.epoch.fetch_add(1, Ordering::AcqRel);
    }
    true
}

/// Whether the program traces, in a session still going on.
pub fn traces() -> bool {
    let session = SESSION.load(Ordering::Acquire);
    session != 0
        && process::get().is_some_and(|process| {
            process.is_answered() && process.header().session.number.load(Ordering::Acquire) == session
        })
}

/// Returns the place for answers. None while the program does not trace.
fn answers() -> Option<Answers> {
    if traces() { Answers::await_place() } else { None }
}

/// Lets CPython's own module do the call, in a forked child. None in any other process.
fn in_child(name: &CStr, arguments: Object) -> Option<Object> {
    if !process::is_forked() {
        return None;
    }
    let api = &program()?.api;
    let mut module = OWN_MODULE.load(Ordering::Acquire);
    if module.is_null() {
        module = own_init();
        OWN_MODULE.store(module, Ordering::Release);
        if !module.is_null() && SESSION.swap(0, Ordering::AcqRel) != 0 {
            let nframe = NFRAME.load(Ordering::Relaxed);
            // SAFETY: functions of the C API, called with the interpreter's lock; `module` is an
            // object.
            let started = unsafe { call(api, module, c"start", api.own((api.build)(c"(I)".as_ptr(), nframe))) };
            if started.is_null() {
                return Some(started);
            }
            // SAFETY: `started` is an owned reference.
            unsafe { (api.release)(started) };
        }
    }
    if module.is_null() {
        return Some(module);
    }
    // SAFETY: functions of the C API, called with the interpreter's lock; `module` and `arguments`
    // are objects.
    Some(unsafe {
        if arguments.is_null() {
            return Some(call(api, module, name, api.own((api.tuple)(0))));
        }
        (api.retain)(arguments);
        call(api, module, name, api.own(arguments))
    })
}

unsafe fn call(api: &Api, module: Object, name: &CStr, arguments: Option<api::Owned<'_>>) -> Object {
    // SAFETY: functions of the C API, called with the interpreter's lock.
    unsafe {
        let function = api.own((api.attribute)(module, name.as_ptr()));
        match function.zip(arguments) {
            Some((function, arguments)) => (api.call)(function.get(), arguments.get(), ptr::null_mut()),
            None => ptr::null_mut(),
        }
    }
}

/// Runs a method without arguments: by CPython's own module in a forked child, by `serve`
/// elsewhere.
fn without_arguments(name: &CStr, serve: impl FnOnce(&Api) -> Object) -> Object {
    match (in_child(name, ptr::null_mut()), program()) {
        (Some(done), _) => done,
        (None, Some(program)) => serve(&program.api),
        // Never happens: the module is made only if the interpreter's functions were found.
        (None, None) => ptr::null_mut(),
    }
}

/// Returns the object made of an answer, or null with an exception.
fn objects_of(api: &Api, made: Option<Object>) -> Object {
    made.unwrap_or_else(|| {
        // SAFETY: the calling thread holds the interpreter's lock.
        if unsafe { (api.occurred)() }.is_null() {
            return api.raise(api.runtime_error, c"Heapline's aggregator has given no answer");
        }
        ptr::null_mut()
    })
}

/// `start` of the module. Takes no tuple of arguments, like CPython's own `start`: one more tuple
/// in the interpreter's free list would be seen in the traces.
unsafe extern "C" fn start(_: Object, arguments: *const Object, count: isize) -> Object {
    let Some(program) = program() else { return ptr::null_mut() };
    let api = &program.api;
    let nframe = match count {
        0 => 1,
        // SAFETY: `count` arguments exist, and the lock is held. `PyNumber_Index` refuses other
        // objects than whole numbers.
        1 => match api.own(unsafe { (api.index)(arguments.read()) }) {
            // SAFETY: `number` is a number object, and the lock is held.
            Some(number) => unsafe { (api.as_long)(number.get()) },
            None => return ptr::null_mut(),
        },
        _ => return api.raise(api.type_error, c"start expected at most 1 argument"),
    };
    // SAFETY: the calling thread holds the interpreter's lock.
    if nframe == -1 && !unsafe { (api.occurred)() }.is_null() {
        return ptr::null_mut();
    }
    let Some(nframe) = u64::try_from(nframe).ok().filter(|&n| n >= 1 && n <= MAX_NFRAME.into()) else {
        return api.raise(api.value_error, c"the number of frames must be in range [1; 65535]");
    };
    if process::is_forked() {
        // SAFETY: the lock is held; `nframe` has the type of the format `K`.
        let arguments = api.own(unsafe { (api.build)(c"(K)".as_ptr(), nframe) });
        return arguments.and_then(|arguments| in_child(c"start", arguments.get())).unwrap_or(ptr::null_mut());
    }
    if traces() || begin(nframe) {
        return api.none();
    }
    api.raise(api.runtime_error, c"tracemalloc is served by Heapline in this process, and its aggregator is gone")
}

unsafe extern "C" fn stop(_: Object, _: Object) -> Object {
    without_arguments(c"stop", |api| {
        end();
        api.none()
    })
}

/// Tells the aggregator that the program traces no more.
fn end() {
    if let Some(mut answers) = answers() {
        // Without an aggregator there is nothing to stop.
        let _ = answers.ask(query::STOP, [0; 2]);
    }
    SESSION.store(0, Ordering::Release);
}

unsafe extern "C" fn is_tracing(_: Object, _: Object) -> Object {
    // SAFETY: the calling thread holds the interpreter's lock.
    without_arguments(c"is_tracing", |api| unsafe { (api.bool)(traces().into()) })
}

unsafe extern "C" fn clear_traces(_: Object, _: Object) -> Object {
    without_arguments(c"clear_traces", |api| told(api, query::CLEAR))
}

unsafe extern "C" fn reset_peak(_: Object, _: Object) -> Object {
    without_arguments(c"reset_peak", |api| told(api, query::RESET_PEAK))
}

/// Sends a message to the aggregator, if the program traces. Returns `None`.
fn told(api: &Api, what: u32) -> Object {
    if let Some(mut answers) = answers() {
        let _ = answers.ask(what, [0; 2]);
    }
    api.none()
}

unsafe extern "C" fn get_traceback_limit(_: Object, _: Object) -> Object {
    // SAFETY: the calling thread holds the interpreter's lock.
    without_arguments(c"get_traceback_limit", |api| unsafe { (api.number)(NFRAME.load(Ordering::Relaxed).into()) })
}

unsafe extern "C" fn get_traced_memory(_: Object, _: Object) -> Object {
    without_arguments(c"get_traced_memory", |api| {
        let [current, peak] = numbers(query::TRACED_MEMORY, answers()).unwrap_or_default();
        // SAFETY: two numbers of the type of the format `n`, with the lock.
        unsafe { (api.build)(c"(nn)".as_ptr(), current.cast_signed(), peak.cast_signed()) }
    })
}

unsafe extern "C" fn get_tracemalloc_memory(_: Object, _: Object) -> Object {
    without_arguments(c"get_tracemalloc_memory", |api| {
        let [bytes, _] = numbers(query::OWN_MEMORY, Answers::await_place()).unwrap_or_default();
        // SAFETY: the calling thread holds the interpreter's lock.
        unsafe { (api.number)(bytes) }
    })
}

fn numbers(asked: u32, answers: Option<Answers>) -> Option<[u64; 2]> {
    let mut answers = answers?;
    answers.ask(asked, [0; 2])?;
    Some(answers.numbers())
}

unsafe extern "C" fn get_traces(_: Object, _: Object) -> Object {
    without_arguments(c"_get_traces", |api| {
        // The list exists before the traces do, as in CPython's own module. Up to 3.13 the list
        // itself belongs to the program.
        // SAFETY: the calling thread holds the interpreter's lock.
        let make = || api.own(unsafe { (api.list)(0) });
        let is_hidden = super::api().is_some_and(|api| api.version.minor() >= 14);
        let Some(list) = (if is_hidden { hidden(make) } else { make() }) else { return ptr::null_mut() };
        let Some(mut answers) = answers() else { return list.into_object() };
        let text = answers.ask(query::TRACES, [0; 2]).and_then(|()| answers.text());
        drop(answers);
        // A missing answer must not become an empty list: the program would see an empty heap.
        let filled = text.and_then(|text| hidden(|| objects::append_traces(api, &list, text.words())));
        objects_of(api, filled.map(|()| list.into_object()))
    })
}

unsafe extern "C" fn get_object_traceback(_: Object, object: Object) -> Object {
    let Some(program) = program() else { return ptr::null_mut() };
    if process::is_forked() {
        // SAFETY: `object` is an object of the caller, and the lock is held.
        let arguments = program.api.own(unsafe { (program.api.build)(c"(O)".as_ptr(), object) });
        return arguments
            .and_then(|arguments| in_child(c"_get_object_traceback", arguments.get()))
            .unwrap_or(ptr::null_mut());
    }
    // SAFETY: `object` is an object of the caller.
    let block = unsafe { reuse::block_of(object.cast()) };
    traceback(&program.api, block, 0)
}

/// Returns the frames that allocated a block; `None` if the block is not traced.
fn traceback(api: &Api, block: usize, domain: c_uint) -> Object {
    let text = answers().and_then(|mut answers| {
        answers.ask(query::TRACEBACK, [block as u64, domain.into()])?;
        answers.text()
    });
    match text {
        None => api.none(),
        Some(text) => objects_of(api, objects::traceback(api, text.words())),
    }
}

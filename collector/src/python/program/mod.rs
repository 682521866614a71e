//! `import tracemalloc`, served by Heapline: the native half of the standard library's module, answered by the aggregator.
//!
//! ```text
//! tracemalloc.py, as installed ──> _tracemalloc, this module ──> [`ask`] ──> aggregator
//!                                          └──> [`objects`] of what it says
//! ```
//!
//! What the program does with it (start, clear, reset) changes what the program sees, and nothing that the operator sees. A
//! process that is not traced when it first imports the module gets CPython's own; so does a forked child, whose trace
//! begins anew with its first question. When the aggregator goes away the module says that nothing is
//! traced.
//!
//! The interpreter's lock is held wherever this runs, but in [`track`].

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

/// `PyCFunction` and its kin: which of them, the flags tell.
#[repr(C)]
#[derive(Clone, Copy)]
union Function {
    plain: unsafe extern "C" fn(Object, Object) -> Object,
    fast: unsafe extern "C" fn(Object, *const Object, isize) -> Object,
    none: usize,
}

/// `METH_FASTCALL`, `METH_NOARGS`, `METH_O`.
const FAST: c_int = 0x80;
const WITHOUT_ARGUMENTS: c_int = 4;
const WITH_ONE: c_int = 8;

/// `PyModuleDef`.
#[repr(C)]
struct Definition {
    references: usize,
    kind: usize,
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

// SAFETY: the interpreter's, used with its lock.
unsafe impl<T> Sync for Shared<T> {}

static DEFINITION: Shared<Definition> = Shared(UnsafeCell::new(Definition {
    references: 1,
    kind: 0,
    base: [0; 3],
    name: c"_tracemalloc".as_ptr(),
    doc: c"The native half of tracemalloc, served by Heapline from outside of the process.".as_ptr(),
    state_bytes: 0,
    methods: METHODS.0.get().cast_const().cast(),
    rest: [0; 4],
}));

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

/// Everything that is found when the interpreter is.
#[derive(Clone, Copy)]
pub struct Program {
    api: Api,
    own_functions: track::OwnFunctions,
}

impl Program {
    /// Looks for it.
    pub fn find(scope: Scope) -> Option<Program> {
        Some(Program { api: Api::find(scope)?, own_functions: track::OwnFunctions::find(scope)? })
    }
}

static PROGRAM: Shared<Option<Program>> = Shared(UnsafeCell::new(None));
/// CPython's own function for the module.
static OWN_INIT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
/// CPython's own module, in a forked child.
static OWN_MODULE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
/// The process was traced when its interpreter started.
static IS_SERVED: AtomicBool = AtomicBool::new(false);
/// Frames of a traceback: the last that was asked for.
static NFRAME: AtomicU32 = AtomicU32::new(1);
/// The session in which tracing began; 0 while the program does not trace.
static SESSION: AtomicU32 = AtomicU32::new(0);

/// What was found, and CPython's own function for the module.
pub fn prepare(program: Program, own_init: *mut c_void) {
    // SAFETY: no interpreter runs yet, and nobody reads.
    unsafe { *PROGRAM.0.get() = Some(program) };
    OWN_INIT.store(own_init, Ordering::Release);
}

/// Whether the interpreter has all that is needed.
pub fn is_possible() -> bool {
    program().is_some()
}

fn program() -> Option<&'static Program> {
    // SAFETY: written once, before the interpreter runs.
    unsafe { (*PROGRAM.0.get()).as_ref() }
}

/// The interpreter starts, traced: from now on we are its tracemalloc. False, and CPython's own stays whole, where that cannot be.
///
/// # Safety
/// With the interpreter's lock, before its first module.
pub unsafe fn serve() -> bool {
    // SAFETY: the caller's promise.
    let is_served = program().is_some_and(|program| unsafe { program.own_functions.replace() });
    IS_SERVED.store(is_served, Ordering::Release);
    is_served
}

/// An interpreter has ended, and another begins: CPython's tracemalloc has stopped with the first.
pub fn interpreter_has_ended() {
    beginning::forget();
    end();
    if !process::is_quiet() {
        ask::tell_unseen();
    }
}

/// The interpreter's code is gone.
///
/// # Safety
/// No interpreter runs.
pub unsafe fn forget() {
    interpreter_has_ended();
    IS_SERVED.store(false, Ordering::Release);
    OWN_INIT.store(ptr::null_mut(), Ordering::Release);
    OWN_MODULE.store(ptr::null_mut(), Ordering::Release);
    // SAFETY: the caller's promise.
    unsafe { *PROGRAM.0.get() = None };
}

/// In the place of `PyInit__tracemalloc`.
pub unsafe extern "C" fn init() -> *mut c_void {
    beginning::now();
    // Samples cannot answer for every object.
    let is_ours = IS_SERVED.load(Ordering::Acquire) || !(process::is_quiet() || process::is_sampling());
    match program().filter(|_| is_ours && !process::is_forked()) {
        // SAFETY: a definition that lives for ever, as CPython wants it.
        Some(program) => unsafe { (program.api.create_module)(DEFINITION.0.get().cast(), API_VERSION) },
        None => own_init(),
    }
}

/// CPython's own module.
fn own_init() -> Object {
    if process::is_forked() {
        // SAFETY: with the interpreter's lock, without which hardly anybody calls these functions; and a forked child has one
        // thread, unless it has started others before its first question.
        unsafe { patch::undo(Purpose::Tracemalloc) };
        super::api().and_then(|api| api.teller).into_iter().for_each(|teller: Teller| {
            // SAFETY: with the interpreter's lock.
            unsafe { teller.ignore() }
        });
        super::note_unseen_reuse();
    }
    // SAFETY: what stood in the table of built-in modules.
    unsafe { core::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> Object>(OWN_INIT.load(Ordering::Acquire))() }
}

/// The value of a number object, which is given up. None for null, for which an exception is set.
///
/// # Safety
/// A reference of the caller's to a number that is not negative; the interpreter's lock is held, here and below.
pub unsafe fn take_number(object: *mut c_void) -> Option<u64> {
    let api = &program()?.api;
    // SAFETY: the caller's promise.
    api.own(object).map(|number| unsafe { (api.as_long)(number.get()) }.unsigned_abs())
}

/// A number object.
///
/// # Safety
/// The interpreter's lock is held.
pub unsafe fn make_number(number: u64) -> *mut c_void {
    // SAFETY: the caller's promise.
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
        // More frames than were kept: threads shall define their stacks anew.
        session.epoch.fetch_add(1, Ordering::AcqRel);
    }
    true
}

/// Whether the program traces, in a session that goes on.
pub fn traces() -> bool {
    let session = SESSION.load(Ordering::Acquire);
    session != 0
        && process::get().is_some_and(|process| {
            process.is_answered() && process.header().session.number.load(Ordering::Acquire) == session
        })
}

/// The place for answers, while the program traces.
fn answers() -> Option<Answers> {
    if traces() { Answers::await_place() } else { None }
}

/// Lets CPython's own module do it, in a forked child. None elsewhere.
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
            // SAFETY: the C API, with the interpreter's lock; so for below.
            let started = unsafe { call(api, module, c"start", api.own((api.build)(c"(I)".as_ptr(), nframe))) };
            if started.is_null() {
                return Some(started);
            }
            // SAFETY: a reference that is ours.
            unsafe { (api.release)(started) };
        }
    }
    if module.is_null() {
        return Some(module);
    }
    // SAFETY: see above.
    Some(unsafe {
        if arguments.is_null() {
            return Some(call(api, module, name, api.own((api.tuple)(0))));
        }
        (api.retain)(arguments);
        call(api, module, name, api.own(arguments))
    })
}

unsafe fn call(api: &Api, module: Object, name: &CStr, arguments: Option<api::Owned<'_>>) -> Object {
    // SAFETY: the C API, with the interpreter's lock.
    unsafe {
        let function = api.own((api.attribute)(module, name.as_ptr()));
        match function.zip(arguments) {
            Some((function, arguments)) => (api.call)(function.get(), arguments.get(), ptr::null_mut()),
            None => ptr::null_mut(),
        }
    }
}

/// The rest of a function that has no arguments: in a forked child CPython's own does it.
fn without_arguments(name: &CStr, serve: impl FnOnce(&Api) -> Object) -> Object {
    match (in_child(name, ptr::null_mut()), program()) {
        (Some(done), _) => done,
        (None, Some(program)) => serve(&program.api),
        // The module is not made without it.
        (None, None) => ptr::null_mut(),
    }
}

/// What came of an answer that could not be made objects of.
fn objects_of(api: &Api, made: Option<Object>) -> Object {
    made.unwrap_or_else(|| {
        // SAFETY: with the interpreter's lock.
        if unsafe { (api.occurred)() }.is_null() {
            return api.raise(api.runtime_error, c"Heapline's aggregator has given no answer");
        }
        ptr::null_mut()
    })
}

/// Without a tuple of arguments, as CPython's own: a tuple more in its free list would be seen in the traces.
unsafe extern "C" fn start(_: Object, arguments: *const Object, count: isize) -> Object {
    let Some(program) = program() else { return ptr::null_mut() };
    let api = &program.api;
    let nframe = match count {
        0 => 1,
        // SAFETY: so many arguments, with the interpreter's lock. No number, and a number with a fraction, is an error.
        1 => match api.own(unsafe { (api.index)(arguments.read()) }) {
            // SAFETY: as above.
            Some(number) => unsafe { (api.as_long)(number.get()) },
            None => return ptr::null_mut(),
        },
        _ => return api.raise(api.type_error, c"start expected at most 1 argument"),
    };
    // SAFETY: with the interpreter's lock.
    if nframe == -1 && !unsafe { (api.occurred)() }.is_null() {
        return ptr::null_mut();
    }
    let Some(nframe) = u64::try_from(nframe).ok().filter(|&n| n >= 1 && n <= MAX_NFRAME.into()) else {
        return api.raise(api.value_error, c"the number of frames must be in range [1; 65535]");
    };
    if process::is_forked() {
        // SAFETY: as above; a number of the type that the format says.
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
    // SAFETY: with the interpreter's lock.
    without_arguments(c"is_tracing", |api| unsafe { (api.bool)(traces().into()) })
}

unsafe extern "C" fn clear_traces(_: Object, _: Object) -> Object {
    without_arguments(c"clear_traces", |api| told(api, query::CLEAR))
}

unsafe extern "C" fn reset_peak(_: Object, _: Object) -> Object {
    without_arguments(c"reset_peak", |api| told(api, query::RESET_PEAK))
}

/// Tells the aggregator something, if the program traces.
fn told(api: &Api, what: u32) -> Object {
    if let Some(mut answers) = answers() {
        let _ = answers.ask(what, [0; 2]);
    }
    api.none()
}

unsafe extern "C" fn get_traceback_limit(_: Object, _: Object) -> Object {
    // SAFETY: with the interpreter's lock.
    without_arguments(c"get_traceback_limit", |api| unsafe { (api.number)(NFRAME.load(Ordering::Relaxed).into()) })
}

unsafe extern "C" fn get_traced_memory(_: Object, _: Object) -> Object {
    without_arguments(c"get_traced_memory", |api| {
        let [current, peak] = numbers(query::TRACED_MEMORY, answers()).unwrap_or_default();
        // SAFETY: two numbers of the type that the format says.
        unsafe { (api.build)(c"(nn)".as_ptr(), current.cast_signed(), peak.cast_signed()) }
    })
}

unsafe extern "C" fn get_tracemalloc_memory(_: Object, _: Object) -> Object {
    without_arguments(c"get_tracemalloc_memory", |api| {
        let [bytes, _] = numbers(query::OWN_MEMORY, Answers::await_place()).unwrap_or_default();
        // SAFETY: with the interpreter's lock.
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
        // The list itself is the program's, and there before the traces are, as in CPython's own module.
        // SAFETY: with the interpreter's lock.
        let Some(list) = api.own(unsafe { (api.list)(0) }) else { return ptr::null_mut() };
        let Some(mut answers) = answers() else { return list.into_object() };
        let text = answers.ask(query::TRACES, [0; 2]).and_then(|()| answers.text());
        drop(answers);
        // No answer is no empty list: the program would take it for an empty heap.
        let filled = text.and_then(|text| hidden(|| objects::append_traces(api, &list, text.words())));
        objects_of(api, filled.map(|()| list.into_object()))
    })
}

unsafe extern "C" fn get_object_traceback(_: Object, object: Object) -> Object {
    let Some(program) = program() else { return ptr::null_mut() };
    if process::is_forked() {
        // SAFETY: with the interpreter's lock.
        let arguments = program.api.own(unsafe { (program.api.build)(c"(O)".as_ptr(), object) });
        return arguments
            .and_then(|arguments| in_child(c"_get_object_traceback", arguments.get()))
            .unwrap_or(ptr::null_mut());
    }
    // SAFETY: an object that the caller has.
    let block = unsafe { reuse::block_of(object.cast()) };
    traceback(&program.api, block, 0)
}

/// The frames that allocated a block; `None` where that is not traced.
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

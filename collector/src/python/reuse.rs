//! New objects in blocks kept by the interpreter for reuse (free lists). No allocator is called for
//! such an object, but the block belongs to the new object from then on.
//!
//! tracemalloc is told of every new object and attributes the block to the object's line. Heapline
//! does the same, by the same source:
//!
//! | CPython | Source |
//! | --- | --- |
//! | up to 3.12 | `_Py_NewReference`: if a flag is set, calls a function, patched to jump here |
//! | from 3.13 | interface `PyRefTracer_SetTracer` |
//!
//! If neither is found, a reused block stays with the line that requested the memory, and reports
//! say so.

use super::layout::ObjectLayout;
use super::patch::{self, Purpose};
use crate::arch::flagged_call::{self, Flag, FlaggedCall};
use crate::platform::symbols::Scope;
use crate::platform::tls;
use crate::thread::record::record;
use crate::thread::stack_pointer;
use crate::{process, sampling};
use core::ffi::{c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering};
use heapline_shared_format::event::{self, domain};

/// Source of news about new objects.
#[derive(Clone, Copy)]
pub enum Teller {
    /// Flag of tracemalloc, and the function called while the flag is set.
    Flag { flag: usize, function: usize },
    /// `PyRefTracer_SetTracer` and `PyRefTracer_GetTracer`.
    Tracer(SetTracer, GetTracer),
}

type SetTracer = unsafe extern "C" fn(Option<Tracer>, *mut c_void) -> c_int;
type GetTracer = unsafe extern "C" fn(*mut *mut c_void) -> Option<Tracer>;
type Tracer = unsafe extern "C" fn(*mut u8, c_int, *mut c_void) -> c_int;

/// `PyRefTracer_CREATE`.
const CREATE: c_int = 0;
const HAS_GC: usize = 1 << 14;
const PRE_HEADER_BYTES: usize = 16;

/// Layout of the interpreter's objects: kind, flags, head of the garbage collector, and flags for
/// the words before the object.
static LAYOUT: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];
static FLAG: AtomicPtr<AtomicI32> = AtomicPtr::new(ptr::null_mut());
/// Whether the collector listens by the interface. The program may have taken the interface over.
static HEARS: AtomicBool = AtomicBool::new(false);

impl Teller {
    /// Looks for a source, before the interpreter begins. None without a source, or if the flag is
    /// already set.
    pub fn find(scope: Scope) -> Option<Teller> {
        if let Some((set, get)) = scope.find(b"PyRefTracer_SetTracer").zip(scope.find(b"PyRefTracer_GetTracer")) {
            // SAFETY: functions of CPython's C API, by their documented signatures.
            return Some(unsafe {
                Teller::Tracer(
                    core::mem::transmute::<usize, SetTracer>(set),
                    core::mem::transmute::<usize, GetTracer>(get),
                )
            });
        }
        let entry = scope.find(b"_Py_NewReference")?;
        // SAFETY: code of a function, readable for `flagged_call::LOOKED_AT` bytes: the function is
        // longer, or other functions follow.
        let code = unsafe { &*(entry as *const [u8; flagged_call::LOOKED_AT]) };
        let FlaggedCall { flag, function } = flagged_call::read(code, entry)?;
        let flag = match flag {
            Flag::At(flag) => flag,
            // SAFETY: the slot is in the object's own table of addresses, already filled by the
            // loader.
            Flag::Behind { slot, offset } => unsafe { (slot as *const usize).read() + offset },
        };
        let function = scope.find(b"_PyTraceMalloc_NewReference").unwrap_or(function);
        // SAFETY: the flag is a word read by the interpreter's own code.
        let is_off = unsafe { (flag as *const i32).read() } == 0;
        is_off.then_some(Teller::Flag { flag, function })
    }

    /// Whether listening makes CPython's own tracemalloc look active.
    pub fn raises_flag(self) -> bool {
        matches!(self, Teller::Flag { .. })
    }

    /// Starts listening for new objects. False if that is impossible.
    ///
    /// # Safety
    /// 1. The calling thread holds the interpreter's lock.
    /// 2. The interpreter has not made its first module yet.
    pub unsafe fn listen(self) -> bool {
        match self {
            Teller::Flag { flag, function } => {
                let told = told as unsafe extern "C" fn(*mut u8) -> c_int;
                // SAFETY: the function takes an object, and its result is not used; the caller
                // gives promises 1 and 2.
                if !unsafe { patch::jump(Purpose::Tracemalloc, function, told as usize) } {
                    return false;
                }
                let flag = flag as *mut AtomicI32;
                FLAG.store(flag, Ordering::Release);
                // SAFETY: the interpreter's flag, an aligned int.
                unsafe { (*flag).store(1, Ordering::Relaxed) };
                true
            }
            // SAFETY: the caller holds the lock.
            Teller::Tracer(..) => unsafe { self.join() },
        }
    }

    /// Starts listening in a running interpreter. False if that is impossible, or if the program
    /// itself listens.
    ///
    /// # Safety
    /// The calling thread holds the interpreter's lock.
    pub unsafe fn join(self) -> bool {
        let Teller::Tracer(set, get) = self else { return false };
        // SAFETY: CPython's documented functions; the caller holds the lock.
        let hears = unsafe {
            match get(ptr::null_mut()) {
                None => set(Some(told_by_tracer), ptr::null_mut()) == 0,
                Some(tracer) => is_ours(tracer),
            }
        };
        HEARS.fetch_or(hears, Ordering::Relaxed);
        hears
    }

    /// Stops listening by the interface, if listening. A patched function finds out by itself.
    ///
    /// # Safety
    /// The calling thread holds the interpreter's lock.
    pub unsafe fn part(self) {
        if let Teller::Tracer(set, get) = self
            && HEARS.swap(false, Ordering::Relaxed)
        {
            // SAFETY: CPython's documented functions; the caller holds the lock.
            unsafe {
                if get(ptr::null_mut()).is_some_and(is_ours) {
                    set(None, ptr::null_mut());
                }
            }
        }
    }

    /// Stops listening.
    ///
    /// # Safety
    /// The calling thread holds the interpreter's lock.
    pub unsafe fn ignore(self) {
        match self {
            Teller::Flag { .. } => {
                lower_flag();
                // The flag belongs to CPython from here on.
                FLAG.store(ptr::null_mut(), Ordering::Release);
            }
            // SAFETY: the caller holds the lock.
            Teller::Tracer(..) => unsafe { self.part() },
        }
    }
}

fn is_ours(tracer: Tracer) -> bool {
    ptr::fn_addr_eq(tracer, told_by_tracer as Tracer)
}

/// Forgets the sources after the interpreter's code was unloaded.
pub fn forget() {
    FLAG.store(ptr::null_mut(), Ordering::Release);
    HEARS.store(false, Ordering::Relaxed);
}

/// Sets the layout of the interpreter's objects.
pub fn set_layout(layout: ObjectLayout) {
    let ObjectLayout { kind, flags, gc_head, pre_header } = layout;
    LAYOUT
        .iter()
        .zip([kind, flags, gc_head, pre_header])
        .for_each(|(kept, offset)| kept.store(offset, Ordering::Relaxed));
}

#[inline(always)]
fn layout() -> ObjectLayout {
    let [kind, flags, gc_head, pre_header] = LAYOUT.each_ref().map(|kept| kept.load(Ordering::Relaxed));
    ObjectLayout { kind, flags, gc_head, pre_header }
}

/// Whether the collector listens by the interface.
pub fn hears() -> bool {
    HEARS.load(Ordering::Relaxed)
}

/// Raises the flag again, after a time without tracing.
#[cold]
pub fn resume() {
    // SAFETY: `FLAG` is null, or the interpreter's flag.
    if let Some(flag) = unsafe { FLAG.load(Ordering::Acquire).as_ref() } {
        flag.store(1, Ordering::Relaxed);
    }
}

fn lower_flag() {
    // SAFETY: `FLAG` is null, or the interpreter's flag.
    if let Some(flag) = unsafe { FLAG.load(Ordering::Acquire).as_ref() } {
        flag.store(0, Ordering::Relaxed);
    }
}

unsafe extern "C" fn told(object: *mut u8) -> c_int {
    if process::is_quiet() {
        // Without tracing the program runs at full speed again.
        lower_flag();
        return 0;
    }
    // SAFETY: the interpreter passes an object about to live.
    unsafe { record_object(object) };
    0
}

unsafe extern "C" fn told_by_tracer(object: *mut u8, what: c_int, _: *mut c_void) -> c_int {
    if what == CREATE && !process::is_quiet() {
        // SAFETY: the interpreter passes an object about to live.
        unsafe { record_object(object) };
    }
    0
}

#[inline(always)]
unsafe fn record_object(object: *mut u8) {
    // SAFETY: the caller guarantees an object.
    let block = unsafe { block_of(object) };
    if tls::new_block() == block {
        // The block was allocated for this object just now.
        tls::set_new_block(0);
        return;
    }
    if tls::hides() != 0 {
        return;
    }
    if process::is_sampling() && !sampling::has(core::ptr::without_provenance_mut(block), domain::PYTHON) {
        return;
    }
    record(stack_pointer(), |thread| thread.publish_in_python(|stamp, stack| event::reuse(stamp, block as u64, stack)));
}

/// Returns the address of an object's block. Words kept before the object by the object's type are
/// part of the block.
///
/// # Safety
/// `object` is a Python object.
#[inline(always)]
pub unsafe fn block_of(object: *const u8) -> usize {
    let ObjectLayout { kind, flags, gc_head, pre_header } = layout();
    // SAFETY: the caller guarantees an object, with its type at the known place.
    let flags = unsafe {
        let kind = (object.add(kind) as *const *const u8).read();
        (kind.add(flags) as *const usize).read()
    };
    let of_gc = if flags & HAS_GC != 0 { gc_head } else { 0 };
    let of_type = if flags & pre_header != 0 { PRE_HEADER_BYTES } else { 0 };
    object.addr() - of_gc - of_type
}

//! Objects loaded, and functions looked up, after the attach or after the start of a program with a
//! preloaded collector.
//!
//! The program's own `dlopen` and `dlsym` lead here. Both real functions depend on their caller:
//! `dlopen` for the caller's search path, `dlsym` with a pseudo-handle for the caller's place in
//! the order. Where the caller matters, the hook jumps to the real function instead of calling. New
//! objects are then examined in the next call that comes by, together with objects still being
//! loaded during the attach. The loader itself binds later objects to a preloaded collector, unless
//! they were opened with RTLD_DEEPBIND or in another namespace.
//!
//! The next call also finds objects loaded by the C library itself (name services, character sets).

use super::slots::{self, Counts, Look, Unbound};
use super::{Hooks, is_attached, is_leading};
use crate::platform::elf;
use crate::platform::objects::{self, LoadedObject};
use crate::real::Next;
use crate::{doors, inner, offered, process, python, real};
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

static HOOKS: AtomicPtr<Hooks> = AtomicPtr::new(core::ptr::null_mut());
static DLOPEN: Next = Next::new(c"dlopen");
static DLSYM: Next = Next::new(c"dlsym");
static DLVSYM: Next = Next::new(c"dlvsym");
static DLMOPEN: Next = Next::new(c"dlmopen");
/// Whether objects that look in their own dependencies first are being opened, or were opened since
/// the last look.
static HAS_DEEP: AtomicBool = AtomicBool::new(false);

const RTLD_DEEPBIND: c_int = 8;
const RTLD_NEXT: usize = usize::MAX;

/// Objects without need of a second look.
struct Seen {
    objects: [usize; Seen::MOST],
    count: usize,
    /// The loader's counts at the last look.
    history: (u64, u64),
    /// Whether nothing was left for another look.
    is_complete: bool,
}

impl Seen {
    /// Greatest number of remembered objects. Objects beyond are examined each time.
    const MOST: usize = 4096;

    /// Returns whether there is nothing to examine, with the loader's present counts.
    fn is_current(&mut self, history: (u64, u64)) -> bool {
        if self.is_complete && self.history == history {
            return true;
        }
        if self.history.1 != history.1 {
            // An object was unloaded, and another object may lie at the same address.
            self.count = 0;
        }
        self.history = history;
        self.is_complete = true;
        false
    }

    fn knows(&self, object: &LoadedObject) -> bool {
        self.objects[..self.count].contains(&object.extent.start)
    }

    fn note(&mut self, object: &LoadedObject) {
        if let Some(place) = self.objects.get_mut(self.count) {
            *place = object.extent.start;
            self.count += 1;
        }
    }
}

struct Shared(UnsafeCell<Seen>);

// SAFETY: used only inside of `objects::each` and `objects::until`, which let one thread in at a
// time.
unsafe impl Sync for Shared {}

static SEEN: Shared =
    Shared(UnsafeCell::new(Seen { objects: [0; Seen::MOST], count: 0, history: (0, 0), is_complete: false }));

/// Sets the hooks to which calls are led from now on.
pub fn begin(hooks: &'static Hooks) {
    HOOKS.store((&raw const *hooks).cast_mut(), Ordering::Release);
}

/// Returns the hooks, after a call of [`begin`].
pub(super) fn hooks() -> Option<&'static Hooks> {
    // SAFETY: the pointer is null, or points to a static of the library.
    unsafe { HOOKS.load(Ordering::Acquire).as_ref() }
}

/// Examines every object, known objects too.
pub fn patch_all() -> Counts {
    patch(true)
}

/// Notes all objects loaded now as examined.
pub fn note_all() {
    let mut is_first = true;
    objects::each(|object| {
        // SAFETY: `objects::each` lets one thread in at a time.
        let seen = unsafe { &mut *SEEN.0.get() };
        if core::mem::take(&mut is_first) {
            (seen.history, seen.is_complete) = (object.history, true);
        }
        seen.note(object);
        offered::offer(object);
    });
}

/// Leads all calls back to the original functions.
pub fn undo_all(hooks: &Hooks) -> Counts {
    let mut counts = Counts::default();
    objects::each(|object| {
        slots::undo(object, hooks, &mut counts);
        offered::withdraw(object);
    });
    counts
}

/// Examines objects not examined yet, or all objects. When the function returns, the objects are
/// done, whichever thread did the work.
fn patch(all: bool) -> Counts {
    let mut counts = Counts::default();
    let Some(hooks) = hooks() else { return counts };
    let (mut is_first, mut is_deep) = (true, false);
    let is_whole = objects::until(|object| {
        // SAFETY: `objects::until` lets one thread in at a time.
        let seen = unsafe { &mut *SEEN.0.get() };
        if core::mem::take(&mut is_first) {
            if all {
                (seen.count, seen.is_complete) = (0, false);
            }
            // Checked in here, because a detaching thread clears the flag before it waits to come
            // in here.
            if !is_leading() || seen.is_current(object.history) {
                return ControlFlow::Break(());
            }
            is_deep = HAS_DEEP.swap(false, Ordering::AcqRel);
        }
        if !seen.knows(object) {
            let early = counts.early;
            let unbound = match is_attached() {
                _ if is_deep || object.namespace.is_some() => Unbound::PastCollector,
                true => Unbound::ToOriginal,
                false => Unbound::ToCollector,
            };
            slots::patch(object, Look { hooks, unbound }, &mut counts);
            offered::offer(object);
            if counts.early == early {
                seen.note(object);
            } else {
                seen.is_complete = false;
            }
        }
        ControlFlow::Continue(())
    });
    if !is_whole {
        // SAFETY: the flag only means that there is more to examine.
        unsafe { (*SEEN.0.get()).is_complete = false };
    }
    if !is_attached() {
        // At the first look no constructor has allocated yet.
        process::count_unled(counts.foreign, if all { 0 } else { counts.started });
    }
    counts
}

/// Examines new objects, if there are any.
pub fn look_again() {
    if is_leading() {
        patch(false);
        python::look_again();
    }
}

fn note_mode(mode: c_int) {
    if mode & RTLD_DEEPBIND != 0 {
        HAS_DEEP.store(true, Ordering::Release);
    }
}

/// Returns the function to jump to for `dlopen`, where the caller matters; null when `dlopen` may
/// be called from here.
///
/// # Safety
/// 1. `file` is a C string or null.
/// 2. `caller` is a return address of the program.
pub unsafe extern "C" fn jump_to_dlopen(file: *const c_char, mode: c_int, _: usize, caller: usize) -> *mut () {
    look_again();
    // SAFETY: the caller guarantees a C string or null in `file`.
    unsafe { jump_to_open(&DLOPEN, file, mode, caller) }
}

/// Returns the function to jump to for `dlmopen`, where the caller matters; null when `dlmopen` may
/// be called from here.
///
/// # Safety
/// 1. `file` is a C string or null.
/// 2. `caller` is a return address of the program.
pub unsafe extern "C" fn jump_to_dlmopen(_: isize, file: *const c_char, mode: c_int, caller: usize) -> *mut () {
    look_again();
    // SAFETY: the caller guarantees a C string or null in `file`.
    unsafe { jump_to_open(&DLMOPEN, file, mode, caller) }
}

unsafe fn jump_to_open(next: &Next, file: *const c_char, mode: c_int, caller: usize) -> *mut () {
    // SAFETY: the caller guarantees a C string or null in `file`.
    let name = if file.is_null() { &[][..] } else { unsafe { CStr::from_ptr(file) }.to_bytes() };
    let is_searched = !name.is_empty() && !name.contains(&b'/');
    let asks_for_caller = name.contains(&b'$') || (is_searched && has_search_path(caller));
    if asks_for_caller && is_leading() {
        python::expect();
    }
    if asks_for_caller || !is_leading() {
        note_mode(mode);
        return next.get().unwrap_or(core::ptr::null_mut());
    }
    core::ptr::null_mut()
}

/// Returns whether the loader looks in a search path that depends on the caller: the path of the
/// caller's object, or the path of an object that has loaded the caller's object.
fn has_search_path(caller: usize) -> bool {
    const DT_RPATH: u64 = 15;
    const DT_RUNPATH: u64 = 29;
    let own = elf::find_object(caller);
    let mut has_path = own.is_none_or(|object| object.loaded().dynamic([DT_RPATH, DT_RUNPATH]) != [0, 0]);
    objects::until(|object| {
        has_path |= !object.is_program && object.loaded.dynamic([DT_RPATH])[0] != 0;
        if has_path { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    has_path
}

/// `dlopen`, for a caller without a search path of its own.
///
/// # Safety
/// The caller upholds the contract of the C function `dlopen`.
pub unsafe extern "C" fn dlopen(file: *const c_char, mode: c_int) -> *mut c_void {
    let Some(next) = DLOPEN.get() else { return core::ptr::null_mut() };
    type Function = unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void;
    note_mode(mode);
    // SAFETY: `next` is the C function `dlopen`, and the caller upholds the contract of `dlopen`.
    let handle = unsafe { core::mem::transmute::<*mut (), Function>(next)(file, mode) };
    look_at_loaded(handle);
    handle
}

/// `dlmopen`, for a caller without a search path of its own.
///
/// # Safety
/// The caller upholds the contract of the C function `dlmopen`.
pub unsafe extern "C" fn dlmopen(namespace: isize, file: *const c_char, mode: c_int) -> *mut c_void {
    let Some(next) = DLMOPEN.get() else { return core::ptr::null_mut() };
    type Function = unsafe extern "C" fn(isize, *const c_char, c_int) -> *mut c_void;
    note_mode(mode);
    // SAFETY: `next` is the C function `dlmopen`, and the caller upholds the contract of `dlmopen`.
    let handle = unsafe { core::mem::transmute::<*mut (), Function>(next)(namespace, file, mode) };
    look_at_loaded(handle);
    handle
}

fn look_at_loaded(handle: *mut c_void) {
    if !handle.is_null() && is_leading() {
        let errno = real::errno();
        objects::renew(handle);
        look_again();
        inner::look_at(handle);
        real::set_errno(errno);
    }
}

/// Examines the object of a handle used by the program for a look-up. The handle may come from a
/// `dlopen` that was jumped to.
fn look_behind(handle: *mut c_void) {
    if !handle.is_null() && handle.addr() != RTLD_NEXT {
        inner::look_at(handle);
    }
}

/// Returns whether calls may have to be led for a symbol, whichever caller asks for the symbol.
fn is_led(handle: *mut c_void, name: &CStr) -> bool {
    let is_hooked = || hooks().is_some_and(|hooks| hooks.named(name).is_some());
    // A look-up in the caller's own scope finds a preloaded collector first.
    let depends_on_caller = handle.addr() == RTLD_NEXT || (handle.is_null() && !is_attached());
    !depends_on_caller && is_leading() && (is_hooked() || doors::shapes::of(name.to_bytes()).is_some())
}

/// Returns the function to jump to for `dlsym`, where the caller matters or the symbol is not
/// hooked; otherwise null.
///
/// # Safety
/// `name` is a C string.
pub unsafe extern "C" fn jump_to_dlsym(handle: *mut c_void, name: *const c_char) -> *mut () {
    look_again();
    look_behind(handle);
    // SAFETY: the caller guarantees a C string in `name`.
    let name = unsafe { CStr::from_ptr(name) };
    if is_led(handle, name) { core::ptr::null_mut() } else { DLSYM.get().unwrap_or(core::ptr::null_mut()) }
}

/// Returns the function to jump to for `dlvsym`, where the caller matters or the symbol is not
/// hooked; otherwise null.
///
/// # Safety
/// `name` is a C string.
pub unsafe extern "C" fn jump_to_dlvsym(handle: *mut c_void, name: *const c_char) -> *mut () {
    look_again();
    look_behind(handle);
    // SAFETY: the caller guarantees a C string in `name`.
    let name = unsafe { CStr::from_ptr(name) };
    if is_led(handle, name) { core::ptr::null_mut() } else { DLVSYM.get().unwrap_or(core::ptr::null_mut()) }
}

/// `dlsym` of a hooked function. Returns the hook where the original would be found, and a door for
/// a function of another allocator.
///
/// # Safety
/// The caller upholds the contract of the C function `dlsym`.
pub unsafe extern "C" fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    let Some(next) = DLSYM.get() else { return core::ptr::null_mut() };
    type Function = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
    // SAFETY: `next` is the C function `dlsym`, and the caller guarantees a C string in `name`.
    unsafe { led(core::mem::transmute::<*mut (), Function>(next)(handle, name), name) }
}

/// `dlvsym` of a hooked function. Returns the hook where the original would be found, and a door
/// for a function of another allocator.
///
/// # Safety
/// The caller upholds the contract of the C function `dlvsym`.
pub unsafe extern "C" fn dlvsym(handle: *mut c_void, name: *const c_char, version: *const c_char) -> *mut c_void {
    let Some(next) = DLVSYM.get() else { return core::ptr::null_mut() };
    type Function = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> *mut c_void;
    // SAFETY: `next` is the C function `dlvsym`, and the caller guarantees C strings.
    unsafe { led(core::mem::transmute::<*mut (), Function>(next)(handle, name, version), name) }
}

/// Returns the function given to the program, for a function found by a look-up by name.
///
/// # Safety
/// `name` is a C string.
unsafe fn led(found: *mut c_void, name: *const c_char) -> *mut c_void {
    // SAFETY: the caller guarantees a C string in `name`.
    let name = unsafe { CStr::from_ptr(name) };
    let hook = hooks().and_then(|hooks| hooks.named(name));
    if found.is_null() {
        return found;
    }
    if let Some(hook) = hook.filter(|hook| hook.original() == found.addr()) {
        return hook.address() as *mut c_void;
    }
    let mut target = None;
    objects::all(|_| target = slots::door(name, found.addr()));
    target.map_or(found, core::ptr::with_exposed_provenance_mut)
}

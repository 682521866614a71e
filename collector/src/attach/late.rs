//! What is loaded or looked up after the attach.
//!
//! The program's own `dlopen` and `dlsym` lead here. Both ask who calls them: `dlopen` for the caller's search path,
//! `dlsym` with a pseudo-handle for its place in the order. So where that matters they are jumped to, and what is new is
//! looked at in the next call that comes by; so is what was being loaded during the attach. (The preloaded library needs none of this: the loader itself
//! binds later objects to it.)
//!
//! What the C library loads by itself (name services, character sets) is met in the same way, by the next call.

use super::objects::{self, LoadedObject};
use super::slots::{self, Counts};
use super::{Hooks, is_attached};
use crate::elf;
use crate::loader::Next;
use crate::{python, real};
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicPtr, Ordering};

static HOOKS: AtomicPtr<Hooks> = AtomicPtr::new(core::ptr::null_mut());
static DLOPEN: Next = Next::new(c"dlopen");
static DLSYM: Next = Next::new(c"dlsym");

/// Objects that need no second look.
struct Seen {
    objects: [usize; Seen::MOST],
    count: usize,
    /// The loader's counts at the last look.
    history: (u64, u64),
    /// Nothing was left for another look.
    is_complete: bool,
}

impl Seen {
    /// Objects beyond that are looked at each time.
    const MOST: usize = 4096;

    /// Whether there is anything to look at, with these counts now.
    fn is_current(&mut self, history: (u64, u64)) -> bool {
        if self.is_complete && self.history == history {
            return true;
        }
        if self.history.1 != history.1 {
            // Another object may lie where one was.
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

// SAFETY: used inside of `objects::each` only, which lets one thread in at a time.
unsafe impl Sync for Shared {}

static SEEN: Shared =
    Shared(UnsafeCell::new(Seen { objects: [0; Seen::MOST], count: 0, history: (0, 0), is_complete: false }));

/// From now on these hooks are led to.
pub fn begin(hooks: &'static Hooks) {
    HOOKS.store((&raw const *hooks).cast_mut(), Ordering::Release);
}

/// The hooks, once an aggregator has called.
pub(super) fn hooks() -> Option<&'static Hooks> {
    // SAFETY: a static of the library, or null.
    unsafe { HOOKS.load(Ordering::Acquire).as_ref() }
}

/// Looks at every object, also those that are known.
pub fn patch_all() -> Counts {
    patch(true)
}

/// Leads everything back.
pub fn undo_all(hooks: &Hooks) -> Counts {
    let mut counts = Counts::default();
    objects::each(|object| slots::undo(object, hooks, &mut counts));
    counts
}

/// Looks at the objects that were not looked at yet, or at `all`. When this returns they are done, whichever thread did it.
fn patch(all: bool) -> Counts {
    let mut counts = Counts::default();
    let Some(hooks) = hooks() else { return counts };
    let mut is_first = true;
    objects::until(|object| {
        // SAFETY: one thread at a time is in here.
        let seen = unsafe { &mut *SEEN.0.get() };
        if core::mem::take(&mut is_first) {
            if all {
                (seen.count, seen.is_complete) = (0, false);
            }
            // Asked in here: whoever detaches says so before it comes in here itself.
            if !is_attached() || seen.is_current(object.history) {
                return ControlFlow::Break(());
            }
        }
        if !seen.knows(object) {
            let early = counts.early;
            slots::patch(object, hooks, &mut counts);
            if counts.early == early {
                seen.note(object);
            } else {
                seen.is_complete = false;
            }
        }
        ControlFlow::Continue(())
    });
    counts
}

/// Looks at what is new, if something is.
pub fn look_again() {
    if is_attached() {
        patch(false);
    }
    if leads_here() {
        python::look_again();
    }
}

/// Whether the program's calls come here: of the preloaded library they always do.
fn leads_here() -> bool {
    is_attached() || !real::came_later()
}

/// Where `dlopen` is to be jumped to, because it matters who calls; null when it may be called from here.
///
/// # Safety
/// `file` is a C string or null; `caller` a return address of the program's.
pub unsafe extern "C" fn jump_to_dlopen(file: *const c_char, caller: usize) -> *mut () {
    look_again();
    // SAFETY: the caller's promise.
    let name = if file.is_null() { &[][..] } else { unsafe { CStr::from_ptr(file) }.to_bytes() };
    let is_searched = !name.is_empty() && !name.contains(&b'/');
    let asks_for_caller = name.contains(&b'$') || (is_searched && has_search_path(caller));
    if asks_for_caller && leads_here() {
        python::expect();
    }
    if asks_for_caller || !leads_here() {
        return DLOPEN.get().unwrap_or(core::ptr::null_mut());
    }
    core::ptr::null_mut()
}

fn has_search_path(caller: usize) -> bool {
    const DT_RPATH: u64 = 15;
    const DT_RUNPATH: u64 = 29;
    elf::find_object(caller).is_none_or(|object| object.loaded().dynamic([DT_RPATH, DT_RUNPATH]) != [0, 0])
}

/// `dlopen`, for a caller without a search path of its own.
///
/// # Safety
/// As the C function's.
pub unsafe extern "C" fn dlopen(file: *const c_char, mode: c_int) -> *mut c_void {
    let Some(next) = DLOPEN.get() else { return core::ptr::null_mut() };
    type Function = unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void;
    // SAFETY: the C function of that name.
    let handle = unsafe { core::mem::transmute::<*mut (), Function>(next)(file, mode) };
    if !handle.is_null() {
        let errno = real::errno();
        look_again();
        real::set_errno(errno);
    }
    handle
}

/// Where `dlsym` is to be jumped to, because it matters who calls or it is no function of ours; else null.
///
/// # Safety
/// `name` is a C string.
pub unsafe extern "C" fn jump_to_dlsym(handle: *mut c_void, name: *const c_char) -> *mut () {
    const NEXT: usize = usize::MAX;
    look_again();
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(name) };
    let is_hooked = handle.addr() != NEXT && is_attached() && hooks().is_some_and(|hooks| hooks.named(name).is_some());
    if is_hooked { core::ptr::null_mut() } else { DLSYM.get().unwrap_or(core::ptr::null_mut()) }
}

/// `dlsym` of a function that is hooked: the hook, where the original would be found.
///
/// # Safety
/// As the C function's.
pub unsafe extern "C" fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    let Some(next) = DLSYM.get() else { return core::ptr::null_mut() };
    type Function = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
    // SAFETY: the C function of that name, and a C string.
    let (found, name) =
        unsafe { (core::mem::transmute::<*mut (), Function>(next)(handle, name), CStr::from_ptr(name)) };
    match hooks().and_then(|hooks| hooks.named(name)) {
        Some(hook) if hook.original() != 0 && hook.original() == found.addr() => hook.address() as *mut c_void,
        _ => found,
    }
}

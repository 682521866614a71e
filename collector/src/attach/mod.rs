//! Being brought into a process that runs already.
//!
//! ```text
//! aggregator ──> dlopen ──> [`attach`]: the process's state, an idle arena, and in all loaded objects
//!                                       the places that hold malloc's address ([`objects`], [`slots`])
//! the program's dlopen, dlsym ──> [`late`]: the same for what comes later
//! aggregator ──> [`detach`]: all places as they were
//! ```
//!
//! The hooks are the preloaded library's; only the way to them differs. A place is changed to a
//! hook only where the place holds the very function that the hook will call; a place for another
//! allocator's function is changed to a door for that function ([`crate::doors`]). The code stays
//! loaded for ever, since a thread may stand in it; undone, nothing leads to it.
//!
//! A preloaded collector needs the same for calls that the loader binds past it
//! ([`begin_preloaded`]).

pub mod late;
pub(crate) mod slots;

use crate::doors::shapes;
#[cfg(feature = "preload")]
use crate::platform::symbols;
use crate::platform::{elf, environment, objects};
use crate::start;
use crate::{cxx, fork, inner, process, python, real};
use core::ffi::CStr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use heapline_shared_format::inject::{Request, status};
use slots::Counts;

/// A function that calls are to be led to.
pub struct Hook {
    name: &'static CStr,
    function: *const (),
    /// The original, once it is known.
    original: AtomicUsize,
    /// Code of the program's that jumps to wherever its own place leads; 0 when it has none.
    stub: AtomicUsize,
}

// SAFETY: the pointer is a function's, which any thread may call.
unsafe impl Sync for Hook {}

impl Hook {
    /// `function` here for the C library's `name`.
    pub const fn new(name: &'static CStr, function: *const ()) -> Hook {
        Hook { name, function, original: AtomicUsize::new(0), stub: AtomicUsize::new(0) }
    }

    /// Where calls are led to.
    fn address(&self) -> usize {
        self.function.addr()
    }

    /// Where calls went, 0 when there is no such function.
    fn original(&self) -> usize {
        self.original.load(Ordering::Relaxed)
    }

    fn stub(&self) -> usize {
        self.stub.load(Ordering::Relaxed)
    }
}

/// All of them, in groups.
pub struct Hooks(pub &'static [&'static [Hook]]);

impl Hooks {
    fn iter(&self) -> impl Iterator<Item = &'static Hook> {
        self.0.iter().copied().flatten()
    }

    /// The hook of a name.
    fn named(&self, name: &CStr) -> Option<&'static Hook> {
        self.iter().find(|hook| hook.name == name)
    }

    /// A set that all names are in, and nearly no others: an object may have a hundred thousand.
    fn beginnings(&self) -> Beginnings {
        let names = self.iter().map(|hook| hook.name.to_bytes()).chain(shapes::names());
        Beginnings(names.fold(0, |set, name| set | Beginnings::bit(name)))
    }
}

/// How names begin.
#[derive(Clone, Copy)]
struct Beginnings(u128);

impl Beginnings {
    /// The shortest hooked name is `brk`.
    const BYTES: usize = 3;

    fn bit(name: &[u8]) -> u128 {
        let word = name.iter().take(Beginnings::BYTES).fold(0u32, |word, &byte| word << 8 | u32::from(byte));
        1 << (word.wrapping_mul(0x9e37_79b1) >> 25)
    }

    /// # Safety
    /// A C string.
    #[inline]
    unsafe fn may_have(self, name: *const core::ffi::c_char) -> bool {
        let mut bytes = [0u8; Beginnings::BYTES];
        for (i, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: the caller's promise: up to its zero, which ends this.
            *byte = unsafe { name.add(i).cast::<u8>().read() };
            if *byte == 0 {
                return false;
            }
        }
        self.0 & Beginnings::bit(&bytes) != 0
    }
}

static IS_ATTACHED: AtomicBool = AtomicBool::new(false);
static IS_PRELOADED: AtomicBool = AtomicBool::new(false);

/// Whether an aggregator has led the calls of a running process here.
pub fn is_attached() -> bool {
    IS_ATTACHED.load(Ordering::Acquire)
}

/// Whether what is loaded from now on is looked at.
pub fn is_leading() -> bool {
    IS_PRELOADED.load(Ordering::Acquire) || is_attached()
}

#[cfg(feature = "preload")]
unsafe extern "Rust" {
    /// The hooks of the library around the collector.
    #[link_name = "heapline_hooks"]
    static HOOKS: Hooks;
}

/// The program starts with the collector, to which the loader binds nearly all calls. The others
/// are led here: those of an allocator's functions that the collector does not export, and those of
/// objects that look past the collector.
///
/// Called with the first event, which may come before the constructors of most objects, and by the
/// collector's own.
#[cfg(feature = "preload")]
pub fn begin_preloaded() {
    // SAFETY: a constant of the library's, by that name and of that type.
    let hooks = unsafe { &*(&raw const HOOKS) };
    if real::came_later() || !elf::can_find_objects() {
        return;
    }
    if IS_PRELOADED.load(Ordering::Acquire) {
        // What the loader was not done with at the first event.
        late::look_again();
        return;
    }
    late::begin(hooks);
    objects::all(|objects| {
        for hook in hooks.iter() {
            hook.original.store(symbols::next(hook.name.to_bytes()).unwrap_or(0), Ordering::Relaxed);
            hook.stub.store(objects.stub(hook.name.to_bytes()).unwrap_or(0), Ordering::Relaxed);
        }
    });
    IS_PRELOADED.store(true, Ordering::Release);
    if has_other_allocators() {
        late::patch_all();
    } else {
        late::note_all();
    }
}

/// Nothing is bound to a collector that is no library.
#[cfg(not(feature = "preload"))]
pub fn begin_preloaded() {}

#[cfg_attr(not(feature = "preload"), expect(dead_code, reason = "asked by a preloaded collector"))]
/// Whether an object has functions of an allocator that the collector does not stand in front of.
fn has_other_allocators() -> bool {
    let mut has_others = false;
    objects::each(|object| {
        let is_c_librarys = object.extent.contains(real::errno_location());
        let mut names = shapes::names().chain(shapes::PREFIXED);
        has_others |= !is_c_librarys && names.any(|name| defines_allocators(object, name));
    });
    has_others
}

fn defines_allocators(object: &objects::LoadedObject, name: &[u8]) -> bool {
    // The C++ library's operators are none.
    !shapes::is_operator(name) && object.loaded.symbol(name).is_some()
}

/// Starts the collector, if this is the first time, and leads calls to it.
///
/// Runs on a thread that the aggregator has found outside of the allocator and the loader.
pub fn attach(request: &mut Request, hooks: &'static Hooks) {
    if environment::is_disabled() {
        request.status = status::DISABLED;
        return;
    }
    if !elf::can_find_objects() {
        request.status = status::OLD_GLIBC;
        return;
    }
    late::begin(hooks);
    find_originals(hooks);
    // Before any call is led here: two threads may come at once.
    real::prepare();
    let is_new = process::get().is_none();
    if is_new && start::start_injected(request.pool_bytes).is_none() {
        request.status = status::NO_MEMORY;
        return;
    }
    if is_new {
        fork::watch();
    }
    process::set_own_path(path(request));
    IS_ATTACHED.store(true, Ordering::Release);
    inner::pass_over_loaded();
    // Twice: a call that is bound for the first time meanwhile may overwrite its place with the
    // original.
    let counts = late::patch_all();
    let again = late::patch_all();
    request.patched = counts.patched + again.patched;
    request.foreign = again.foreign;
    request.refused = again.refused;
    request.python = python::join();
    request.status = status::DONE;
}

/// The path in a request.
fn path(request: &Request) -> &[u8] {
    let (Ok(at), Ok(bytes)) = (usize::try_from(request.path), usize::try_from(request.path_bytes)) else { return &[] };
    if at == 0 {
        return &[];
    }
    // SAFETY: the aggregator has put it there for this call.
    unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(at), bytes) }
}

/// Leads all calls back to where they went.
pub fn detach(request: &mut Request, hooks: &'static Hooks) {
    IS_ATTACHED.store(false, Ordering::Release);
    let Counts { patched, refused, .. } = late::undo_all(hooks);
    request.patched = patched;
    request.refused = refused;
    request.python = python::part();
    request.status = status::DONE;
}

/// Gives back all memory and the descriptor, if that is asked for and not only the answers.
///
/// Runs while no other thread does, and none stands in the collector or has memory of the
/// collector's in its words.
pub fn release(request: &mut Request, _: &'static Hooks) {
    request.thread_words = crate::platform::tls::offset();
    if request.pool_bytes != 0 {
        // SAFETY: the caller's promise.
        unsafe { start::release() };
    }
    request.status = status::DONE;
}

/// The original of a hooked function. `dlsym` would find a program's stub in its place, which leads
/// back to the hook.
pub fn original(name: &CStr) -> *mut () {
    let original = late::hooks().and_then(|hooks| hooks.named(name)).map_or(0, Hook::original);
    core::ptr::with_exposed_provenance_mut(original)
}

/// Notes where calls of the hooked functions go now.
fn find_originals(hooks: &'static Hooks) {
    objects::all(|objects| {
        for hook in hooks.iter() {
            hook.original.store(objects.find(hook.name.to_bytes()).unwrap_or(0), Ordering::Relaxed);
            hook.stub.store(objects.stub(hook.name.to_bytes()).unwrap_or(0), Ordering::Relaxed);
        }
        cxx::find_originals();
    });
}

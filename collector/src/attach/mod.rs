//! Attach to a running process.
//!
//! ```text
//! aggregator ──> dlopen ──> [`attach`]: process state, an idle arena, and in all loaded objects
//!                           the places with malloc's address ([`objects`], [`slots`])
//! the program's dlopen, dlsym ──> [`late`]: the same for objects loaded later
//! aggregator ──> [`detach`]: all places as before
//! ```
//!
//! The hooks belong to the preloaded library; only the way to the hooks differs. A place is changed
//! to a hook only where the place holds the very function called by the hook. A place for a
//! function of another allocator is changed to a door for the function ([`crate::doors`]). The code
//! stays loaded for ever, since a thread may be inside. After a detach nothing leads to the code.
//!
//! A preloaded collector needs the change of places too, for calls bound past the collector by the
//! loader ([`begin_preloaded`]).

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

/// A function to which calls are to be led.
pub struct Hook {
    name: &'static CStr,
    function: *const (),
    /// Address of the original function, once known.
    original: AtomicUsize,
    /// Address of code in the program that jumps to wherever the code's own place leads; 0 without
    /// such code.
    stub: AtomicUsize,
}

// SAFETY: the pointer is the address of a function, and any thread may call the function.
unsafe impl Sync for Hook {}

impl Hook {
    /// Returns a hook: `function` here for the C library's `name`.
    pub const fn new(name: &'static CStr, function: *const ()) -> Hook {
        Hook { name, function, original: AtomicUsize::new(0), stub: AtomicUsize::new(0) }
    }

    /// Returns the target of led calls.
    fn address(&self) -> usize {
        self.function.addr()
    }

    /// Returns the original target of the calls, 0 when there is no such function.
    fn original(&self) -> usize {
        self.original.load(Ordering::Relaxed)
    }

    fn stub(&self) -> usize {
        self.stub.load(Ordering::Relaxed)
    }
}

/// All hooks, in groups.
pub struct Hooks(pub &'static [&'static [Hook]]);

impl Hooks {
    fn iter(&self) -> impl Iterator<Item = &'static Hook> {
        self.0.iter().copied().flatten()
    }

    /// Returns the hook for a name.
    fn named(&self, name: &CStr) -> Option<&'static Hook> {
        self.iter().find(|hook| hook.name == name)
    }

    /// Returns a set with the beginnings of all hooked names. Nearly no other name is in the set;
    /// an object may have a hundred thousand names.
    fn beginnings(&self) -> Beginnings {
        let names = self.iter().map(|hook| hook.name.to_bytes()).chain(shapes::names());
        Beginnings(names.fold(0, |set, name| set | Beginnings::bit(name)))
    }
}

/// A set of the beginnings of names.
#[derive(Clone, Copy)]
struct Beginnings(u128);

impl Beginnings {
    /// Bytes of a beginning: the shortest hooked name is `brk`.
    const BYTES: usize = 3;

    fn bit(name: &[u8]) -> u128 {
        let word = name.iter().take(Beginnings::BYTES).fold(0u32, |word, &byte| word << 8 | u32::from(byte));
        1 << (word.wrapping_mul(0x9e37_79b1) >> 25)
    }

    /// Returns whether the set may contain a name.
    ///
    /// # Safety
    /// `name` is a C string.
    #[inline]
    unsafe fn may_have(self, name: *const core::ffi::c_char) -> bool {
        let mut bytes = [0u8; Beginnings::BYTES];
        for (i, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: the caller guarantees a C string, and the loop ends at the zero byte.
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

/// Returns whether an aggregator has led the calls of a running process here.
pub fn is_attached() -> bool {
    IS_ATTACHED.load(Ordering::Acquire)
}

/// Returns whether objects loaded from now on are examined.
pub fn is_leading() -> bool {
    IS_PRELOADED.load(Ordering::Acquire) || is_attached()
}

#[cfg(feature = "preload")]
unsafe extern "Rust" {
    /// The hooks of the library around the collector.
    #[link_name = "heapline_hooks"]
    static HOOKS: Hooks;
}

/// Begins in a program started with the collector. The loader binds nearly all calls to the
/// collector. Other calls are led here: calls of allocator functions not exported by the collector,
/// and calls of objects that look past the collector.
///
/// Called with the first event, which may come before the constructors of most objects, and again
/// by the collector's own constructor.
#[cfg(feature = "preload")]
pub fn begin_preloaded() {
    // SAFETY: the library around the collector defines a constant of this name and type.
    let hooks = unsafe { &*(&raw const HOOKS) };
    if real::came_later() || !elf::can_find_objects() {
        return;
    }
    if IS_PRELOADED.load(Ordering::Acquire) {
        // Objects still owned by the loader at the first event.
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

/// Does nothing: no call is bound to a collector built without the preload.
#[cfg(not(feature = "preload"))]
pub fn begin_preloaded() {}

#[cfg_attr(not(feature = "preload"), expect(dead_code, reason = "asked by a preloaded collector"))]
/// Returns whether an object has functions of an allocator without hooks in the collector.
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
    // The C++ library's operators are not functions of an allocator.
    !shapes::is_operator(name) && object.loaded.symbol(name).is_some()
}

/// Starts the collector at the first attach, and leads calls to the collector.
///
/// Runs on a thread found by the aggregator outside of the allocator and the loader.
pub fn attach(request: &mut Request, hooks: &'static Hooks) {
    if environment::is_disabled() {
        request.status = status::DISABLED;
        return;
    }
    if !elf::can_find_objects() {
        request.status = status::NO_OBJECTS;
        return;
    }
    late::begin(hooks);
    find_originals(hooks);
    // Before any call is led here, because two threads may come at once.
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
    // Twice, because a call bound for the first time meanwhile may overwrite its place with the
    // original.
    let counts = late::patch_all();
    let again = late::patch_all();
    request.patched = counts.patched + again.patched;
    request.foreign = again.foreign;
    request.refused = again.refused;
    request.python = python::join();
    request.status = status::DONE;
}

/// Returns the path in a request.
fn path(request: &Request) -> &[u8] {
    let (Ok(at), Ok(bytes)) = (usize::try_from(request.path), usize::try_from(request.path_bytes)) else { return &[] };
    if at == 0 {
        return &[];
    }
    // SAFETY: the aggregator has written `path_bytes` bytes at `path` for the time of this call.
    unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(at), bytes) }
}

/// Leads all calls back to the original functions.
pub fn detach(request: &mut Request, hooks: &'static Hooks) {
    IS_ATTACHED.store(false, Ordering::Release);
    let Counts { patched, refused, .. } = late::undo_all(hooks);
    request.patched = patched;
    request.refused = refused;
    request.python = python::part();
    request.status = status::DONE;
}

/// Gives back all memory and the descriptor, if the request asks for more than the answers.
///
/// Runs while no other thread runs. No thread is inside the collector, or has a pointer to memory
/// of the collector in its words.
pub fn release(request: &mut Request, _: &'static Hooks) {
    request.thread_words = crate::platform::tls::offset();
    if request.pool_bytes != 0 {
        // SAFETY: the aggregator guarantees that no other thread runs, is inside the collector, or
        // points to memory of the collector.
        unsafe { start::release() };
    }
    request.status = status::DONE;
}

/// Returns the original of a hooked function. `dlsym` might find a stub of the program instead,
/// which leads back to the hook.
pub fn original(name: &CStr) -> *mut () {
    let original = late::hooks().and_then(|hooks| hooks.named(name)).map_or(0, Hook::original);
    core::ptr::with_exposed_provenance_mut(original)
}

/// Stores the present targets of the hooked functions.
fn find_originals(hooks: &'static Hooks) {
    objects::all(|objects| {
        for hook in hooks.iter() {
            hook.original.store(objects.find(hook.name.to_bytes()).unwrap_or(0), Ordering::Relaxed);
            hook.stub.store(objects.stub(hook.name.to_bytes()).unwrap_or(0), Ordering::Relaxed);
        }
        cxx::find_originals();
    });
}

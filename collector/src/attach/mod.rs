//! Being brought into a process that runs already.
//!
//! ```text
//! aggregator ──> dlopen ──> [`attach`]: the process's state, an idle arena, and in all loaded objects
//!                                       the places that hold malloc's address ([`objects`], [`slots`])
//! the program's dlopen, dlsym ──> [`late`]: the same for what comes later
//! aggregator ──> [`detach`]: all places as they were
//! ```
//!
//! The hooks are the preloaded library's; only the way to them differs. A place is changed only where it holds the very
//! function that the hook will call: an object that has an allocator of its own keeps it. The code stays loaded for
//! ever, since a thread may stand in it; undone, nothing leads to it.

pub mod late;
pub mod objects;
pub(crate) mod slots;

use crate::{environment, fork, process, python};
use core::ffi::CStr;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use heapline_shared_format::inject::{Request, status};
use slots::Counts;

/// A function that calls are to be led to.
pub struct Hook {
    name: &'static CStr,
    function: *const (),
    of_allocator: bool,
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
        Hook { name, function, of_allocator: false, original: AtomicUsize::new(0), stub: AtomicUsize::new(0) }
    }

    /// Only where the object that defines `malloc` defines this too: C++ operators that end in malloc are recorded there.
    pub const fn of_allocator(name: &'static CStr, function: *const ()) -> Hook {
        Hook { name, function, of_allocator: true, original: AtomicUsize::new(0), stub: AtomicUsize::new(0) }
    }

    /// Where calls are led to.
    fn address(&self) -> usize {
        self.function.addr()
    }

    /// Where calls went, 0 when there is no such function or it is not to be replaced.
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
        Beginnings(self.iter().fold(0, |set, hook| set | Beginnings::bit(hook.name.to_bytes())))
    }
}

/// How names begin.
#[derive(Clone, Copy)]
struct Beginnings(u64);

impl Beginnings {
    /// The shortest hooked name is `brk`.
    const BYTES: usize = 3;

    fn bit(name: &[u8]) -> u64 {
        let word = name.iter().take(Beginnings::BYTES).fold(0u32, |word, &byte| word << 8 | u32::from(byte));
        1 << (word.wrapping_mul(0x9e37_79b1) >> 26)
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
/// Places that lead to another allocator, by the last look at everything.
static FOREIGN: AtomicU64 = AtomicU64::new(0);

/// Whether calls are led here by changed places.
pub fn is_attached() -> bool {
    IS_ATTACHED.load(Ordering::Acquire)
}

/// Starts the collector, if this is the first time, and leads calls to it.
///
/// Runs on a thread that the aggregator has found outside of the allocator and the loader.
pub fn attach(request: &mut Request, hooks: &'static Hooks) {
    if environment::is_disabled() {
        request.status = status::DISABLED;
        return;
    }
    if !crate::elf::can_find_objects() {
        request.status = status::OLD_GLIBC;
        return;
    }
    late::begin(hooks);
    find_originals(hooks);
    let is_new = process::get().is_none();
    if is_new && process::start_injected(request.pool_bytes).is_none() {
        request.status = status::NO_MEMORY;
        return;
    }
    if is_new {
        fork::watch();
    }
    process::set_own_path(path(request));
    IS_ATTACHED.store(true, Ordering::Release);
    // Twice: a call that is bound for the first time meanwhile may overwrite its place with the original.
    let counts = late::patch_all();
    let again = late::patch_all();
    FOREIGN.store(again.foreign, Ordering::Relaxed);
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

/// The original of a hooked function. `dlsym` would find a program's stub in its place, which leads back to the hook.
pub fn original(name: &CStr) -> *mut () {
    let original = late::hooks().and_then(|hooks| hooks.named(name)).map_or(0, Hook::original);
    core::ptr::with_exposed_provenance_mut(original)
}

/// Notes where calls of the hooked functions go now.
fn find_originals(hooks: &'static Hooks) {
    let object_of = |address| crate::elf::find_object(address).map(|object| object.start);
    objects::all(|objects| {
        let allocator = objects.find(b"malloc").and_then(object_of);
        let is_allocators = |address| object_of(address) == allocator;
        for hook in hooks.iter() {
            let found = objects.find(hook.name.to_bytes()).unwrap_or(0);
            let is_wanted = found != 0 && (!hook.of_allocator || is_allocators(found));
            hook.original.store(if is_wanted { found } else { 0 }, Ordering::Relaxed);
            hook.stub.store(objects.stub(hook.name.to_bytes()).unwrap_or(0), Ordering::Relaxed);
        }
    });
}

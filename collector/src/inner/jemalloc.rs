//! jemalloc's listeners: functions that it calls after each allocation and before each free.
//!
//! `experimental.hooks.install` of `mallctl`, in jemalloc 5.2.0 to 5.3.1. jemalloc holds no lock
//! while a listener runs, and calls none for what a listener does. The kinds of calls are numbered
//! by version.

use crate::attach::is_leading;
use crate::platform::elf;
use crate::unwind::Entry;
use crate::{hooks, process, real};
use core::arch::naked_asm;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Listeners that can be in place at one time.
const MOST: usize = 32;

static LISTENERS: [Listener; MOST] = [const { Listener::new() }; MOST];

/// A listener in the jemalloc of one object. jemalloc passes its address back with each call.
pub struct Listener {
    /// Where the object begins; [`Listener::FREE`] or [`Listener::TAKEN`] where there is none.
    start: AtomicUsize,
    /// The object's `mallctl`.
    control: AtomicUsize,
    /// By what jemalloc knows the listener; 0 when it is to be removed no more.
    handle: AtomicUsize,
    /// Kinds of calls are numbered with `pvalloc` among them.
    has_pvalloc: AtomicBool,
}

/// A listener is in place.
pub struct Begun {
    /// No block was allocated before.
    pub has_all: bool,
}

type Mallctl = unsafe extern "C" fn(*const c_char, *mut c_void, *mut usize, *mut c_void, usize) -> c_int;

/// `mallctl`.
#[derive(Clone, Copy)]
struct Control(Mallctl);

/// `hooks_t` of jemalloc's `hook.h`.
#[repr(C)]
struct Functions {
    allocated: usize,
    freeing: usize,
    expanded: usize,
    extra: *const Listener,
}

impl Control {
    /// # Safety
    /// The address of a jemalloc's `mallctl`, which stays loaded.
    unsafe fn at(address: usize) -> Control {
        // SAFETY: the caller's promise.
        Control(unsafe { core::mem::transmute::<usize, Mallctl>(address) })
    }

    /// Reads a value, after another was written if there is one.
    fn exchange<R: Default, W>(self, name: &CStr, new: Option<&mut W>) -> Option<R> {
        let (mut value, mut bytes) = (R::default(), size_of::<R>());
        let (new, new_bytes) = new.map_or((ptr::null_mut(), 0), |new| (ptr::from_mut(new).cast(), size_of::<W>()));
        // SAFETY: jemalloc's function; it writes and reads at most as many bytes as it is told.
        let status = unsafe { self.0(name.as_ptr(), (&raw mut value).cast(), &raw mut bytes, new, new_bytes) };
        (status == 0 && bytes == size_of::<R>()).then_some(value)
    }

    fn read<R: Default>(self, name: &CStr) -> Option<R> {
        self.exchange::<R, u8>(name, None)
    }

    fn version(self) -> Option<Version> {
        let text = self.read::<usize>(c"version").filter(|&text| text != 0)?;
        // SAFETY: a constant text of the library's.
        Version::parse(unsafe { CStr::from_ptr(text as *const c_char) }.to_bytes())
    }

    /// Whether it is sure that no block was allocated yet: this thread has none, and no other has
    /// come by.
    fn is_fresh(self) -> bool {
        /// `MALLCTL_ARENAS_ALL`.
        const THREADS: &CStr = c"stats.arenas.4096.nthreads";
        let own = self.read::<u64>(c"thread.allocated");
        let mut epoch = 1u64;
        let refreshed = self.exchange::<u64, _>(c"epoch", Some(&mut epoch));
        own == Some(0) && refreshed.is_some() && self.read::<u32>(THREADS).is_some_and(|threads| threads <= 1)
    }
}

/// A release, and how many changes were made since.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Version {
    release: [u32; 3],
    changes: u32,
}

impl Version {
    const FIRST: Version = Version { release: [5, 2, 0], changes: 0 };
    /// From then on `pvalloc` is a kind of call.
    const PVALLOC: Version = Version { release: [5, 3, 0], changes: 3 };
    /// Later ones have no listeners, or others.
    const LAST: Version = Version { release: [5, 3, 1], changes: 41 };

    /// `5.3.0-0-g54eaed1d8b56`.
    fn parse(text: &[u8]) -> Option<Version> {
        let text = core::str::from_utf8(text).ok()?;
        let mut parts = text.split('-');
        let mut numbers = parts.next()?.split('.').map(str::parse);
        let release = [numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?];
        Some(Version { release, changes: parts.next()?.parse().ok()? })
    }
}

impl Listener {
    const FREE: usize = 0;
    const TAKEN: usize = 1;

    const fn new() -> Listener {
        let [start, control, handle] = [const { AtomicUsize::new(0) }; 3];
        Listener { start, control, handle, has_pvalloc: AtomicBool::new(false) }
    }

    /// All, in place or not.
    pub fn all() -> impl Iterator<Item = &'static Listener> {
        LISTENERS.iter()
    }

    /// Puts a listener into the jemalloc with this control function, in the object that begins at
    /// `start`. None where the jemalloc takes none.
    pub fn begin(start: usize, control: usize) -> Option<Begun> {
        // SAFETY: the object's function of that name, and the object is pinned by whoever has
        // opened it.
        let calls = unsafe { Control::at(control) };
        let version = calls.version()?;
        if !(Version::FIRST..=Version::LAST).contains(&version) {
            return None;
        }
        let listener = LISTENERS.iter().find(|listener| listener.take())?;
        listener.control.store(control, Ordering::Relaxed);
        listener.has_pvalloc.store(version >= Version::PVALLOC, Ordering::Relaxed);
        let has_all = calls.is_fresh();
        let mut functions = Functions {
            allocated: (allocated as *const ()).addr(),
            freeing: (freeing as *const ()).addr(),
            expanded: (expanded as *const ()).addr(),
            extra: listener,
        };
        let Some(handle) = calls.exchange::<usize, _>(c"experimental.hooks.install", Some(&mut functions)) else {
            listener.start.store(Listener::FREE, Ordering::Release);
            return None;
        };
        listener.handle.store(handle, Ordering::Relaxed);
        listener.start.store(start, Ordering::Release);
        Some(Begun { has_all })
    }

    fn take(&self) -> bool {
        self.start.compare_exchange(Listener::FREE, Listener::TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Whether the object that begins there has this listener.
    pub fn is_in(&self, start: usize) -> bool {
        start > Listener::TAKEN && self.start.load(Ordering::Acquire) == start
    }

    /// Frees the listener of an object that is gone.
    pub fn forget_unloaded(&self) {
        let start = self.start.load(Ordering::Acquire);
        let is_there = || elf::find_object(start).is_some_and(|object| object.start == start);
        if start > Listener::TAKEN && !is_there() {
            let _ = self.start.compare_exchange(start, Listener::FREE, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Removes the listener, once and for all: other threads may be about to call it.
    #[cold]
    fn end(&self) {
        let mut handle = self.handle.swap(0, Ordering::AcqRel);
        if handle == 0 {
            return;
        }
        self.start.store(Listener::TAKEN, Ordering::Release);
        // SAFETY: a call of this very jemalloc is on the stack.
        let calls = unsafe { Control::at(self.control.load(Ordering::Relaxed)) };
        let removing = c"experimental.hooks.remove".as_ptr();
        // SAFETY: jemalloc's function; it reads the handle that it has given.
        unsafe { calls.0(removing, ptr::null_mut(), ptr::null_mut(), (&raw mut handle).cast(), size_of::<usize>()) };
    }

    /// Runs `record` if something is recorded, and removes the listener where nothing will be any
    /// more.
    fn heard(&self, record: impl FnOnce()) {
        let errno = real::errno();
        if !process::is_quiet() {
            record();
        } else if !is_leading() {
            self.end();
        }
        real::set_errno(errno);
    }

    fn call(&self, kind: c_int) -> Call {
        use Call::{Aligned, Counted, Moved, Plain, Unknown};
        const OLD: [Call; 9] = [Plain, Call::To, Aligned, Counted, Aligned, Plain, Plain, Moved, Moved];
        const NEW: [Call; 10] = [Plain, Call::To, Aligned, Counted, Aligned, Plain, Plain, Plain, Moved, Moved];
        let kinds = if self.has_pvalloc.load(Ordering::Relaxed) { &NEW[..] } else { &OLD[..] };
        usize::try_from(kind).ok().and_then(|kind| kinds.get(kind)).copied().unwrap_or(Unknown)
    }
}

/// What the arguments of an allocation are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    /// `malloc`, `valloc`, `pvalloc`, `mallocx`: the size first.
    Plain,
    /// `posix_memalign`: place, alignment, size.
    To,
    /// `aligned_alloc`, `memalign`: alignment, size.
    Aligned,
    /// `calloc`: count, size.
    Counted,
    /// `realloc`, `rallocx`: block, size.
    Moved,
    /// Not known to any version.
    Unknown,
}

/// An entry that makes a frame, so that its own place on the stack can be told, and calls.
macro_rules! listens {
    ($(#[$doc:meta])* $name:ident => $call:path, $($instruction:literal),*) => {
        $(#[$doc])*
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                "push rbp",
                ".cfi_def_cfa_offset 16",
                ".cfi_offset rbp, -16",
                "mov rbp, rsp",
                ".cfi_def_cfa_register rbp",
                $($instruction,)*
                "call {call}",
                "leave",
                ".cfi_def_cfa rsp, 8",
                "ret",
                ".cfi_endproc",
                call = sym $call,
            )
        }
    };
}

listens!(
    /// `hook_alloc(extra, kind, result, result_raw, args)`; behind them the slot and rbp.
    allocated => on_allocated, "lea r9, [rbp + 8]", "sub rsp, 8", "push qword ptr [rbp]"
);
listens!(
    /// `hook_dalloc(extra, kind, address, args)`; behind them the slot.
    freeing => on_freeing, "lea r8, [rbp + 8]"
);
listens!(
    /// `hook_expand(extra, kind, address, old_usize, new_usize, result_raw, args)`: the old size
    /// gives way to the slot, the new one to rbp, and args come from the stack behind them.
    expanded => on_expanded, "lea rcx, [rbp + 8]", "mov r8, qword ptr [rbp]", "sub rsp, 8", "push qword ptr [rbp + 16]"
);

/// # Safety
/// As jemalloc calls: `arguments` are three words.
unsafe extern "C" fn on_allocated(
    listener: &Listener,
    kind: c_int,
    block: *mut u8,
    result: usize,
    arguments: &[usize; 3],
    slot: usize,
    rbp: usize,
) {
    let entry = Entry { slot, rbp };
    let [first, second, third] = *arguments;
    listener.heard(|| match listener.call(kind) {
        Call::Plain => hooks::record_alloc(block, first, entry),
        Call::To if result == 0 => hooks::record_alloc(block, third, entry),
        Call::Aligned => hooks::record_alloc(block, second, entry),
        // A product that overflows fails.
        Call::Counted => hooks::record_alloc(block, first.saturating_mul(second), entry),
        Call::Moved if first != 0 => hooks::record_moved(first as *mut u8, block, second, entry),
        Call::Moved => hooks::record_alloc(block, second, entry),
        Call::To | Call::Unknown => {}
    });
}

/// # Safety
/// As jemalloc calls: `arguments` are three words.
unsafe extern "C" fn on_freeing(listener: &Listener, kind: c_int, block: *mut u8, arguments: &[usize; 3], slot: usize) {
    const REALLOC: c_int = 3;
    // A block that is moved was recorded with its new place.
    let is_moved = kind >= REALLOC && arguments[1] != 0;
    if !is_moved {
        listener.heard(|| hooks::record_free(block, slot));
    }
}

/// # Safety
/// As jemalloc calls: `arguments` are four words.
unsafe extern "C" fn on_expanded(
    listener: &Listener,
    kind: c_int,
    block: *mut u8,
    slot: usize,
    rbp: usize,
    usable: usize,
    arguments: &[usize; 4],
) {
    const XALLOCX: c_int = 2;
    let size = arguments[1];
    // xallocx may leave the block as it is.
    if kind != XALLOCX || usable >= size {
        listener.heard(|| hooks::record_moved(block, block, size, Entry { slot, rbp }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_order_and_nothing_else_is_one() {
        let parse = |text: &str| Version::parse(text.as_bytes());
        let known = ["5.2.0-0-gb0b3e49a", "5.3.0-0-g54eaed1d8b56", "5.3.0-196-ga25b9b8b", "5.3.1-0-g81034ce1"];
        assert!(known.map(parse).is_sorted());
        assert!(known.iter().all(|text| parse(text).is_some_and(|v| (Version::FIRST..=Version::LAST).contains(&v))));
        for other in ["5.1.0-0-g61efbda7", "5.3.1-42-gff2c2548", "6.0.0-0-g12345678"] {
            assert!(parse(other).is_some_and(|v| !(Version::FIRST..=Version::LAST).contains(&v)), "{other}");
        }
        assert_eq!(["", "5.3", "0.0.0-missing-g0", "5.3.0", "five"].map(parse), [None; 5]);
    }

    #[test]
    fn kinds_of_calls_follow_the_version() {
        let listener = Listener::new();
        assert!(listener.call(7) == Call::Moved && listener.call(9) == Call::Unknown);
        listener.has_pvalloc.store(true, Ordering::Relaxed);
        assert!(
            listener.call(7) == Call::Plain && listener.call(9) == Call::Moved && listener.call(-1) == Call::Unknown
        );
    }
}

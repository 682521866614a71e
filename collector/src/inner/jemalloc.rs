//! Listeners of jemalloc: functions called by jemalloc after each allocation and before each free.
//!
//! `experimental.hooks.install` of `mallctl` installs a listener, in jemalloc 5.2.0 to 5.3.1.
//! jemalloc holds no lock while a listener runs, and calls no listener for allocations of a
//! listener. The numbers of the kinds of calls depend on the version.

use crate::platform::elf;
use crate::unwind::Entry;
use crate::{hooks, process, real};
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Greatest number of listeners at one time.
const MOST: usize = 32;

static LISTENERS: [Listener; MOST] = [const { Listener::new() }; MOST];

/// A listener in the jemalloc of one object. jemalloc passes the listener's address with each call.
pub struct Listener {
    /// Start of the object; [`Listener::FREE`] or [`Listener::TAKEN`] without an object.
    start: AtomicUsize,
    /// Address of the object's `mallctl`.
    control: AtomicUsize,
    /// jemalloc's handle of the listener; 0 when the listener is not to be removed any more.
    handle: AtomicUsize,
    /// Whether `pvalloc` is among the numbered kinds of calls.
    has_pvalloc: AtomicBool,
}

/// Result of installing a listener.
pub struct Begun {
    /// Whether no block was allocated before.
    pub has_all: bool,
}

type Mallctl = unsafe extern "C" fn(*const c_char, *mut c_void, *mut usize, *mut c_void, usize) -> c_int;

/// The function `mallctl` of a jemalloc.
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
    /// Returns the control function at an address.
    ///
    /// # Safety
    /// `address` is the address of a jemalloc's `mallctl`, and the jemalloc stays loaded.
    unsafe fn at(address: usize) -> Control {
        // SAFETY: the caller guarantees the address of a `mallctl` that stays loaded.
        Control(unsafe { core::mem::transmute::<usize, Mallctl>(address) })
    }

    /// Reads a value, after writing `new` if given.
    fn exchange<R: Default, W>(self, name: &CStr, new: Option<&mut W>) -> Option<R> {
        let (mut value, mut bytes) = (R::default(), size_of::<R>());
        let (new, new_bytes) = new.map_or((ptr::null_mut(), 0), |new| (ptr::from_mut(new).cast(), size_of::<W>()));
        // SAFETY: the function is jemalloc's `mallctl`, which writes and reads at most the given
        // numbers of bytes.
        let status = unsafe { self.0(name.as_ptr(), (&raw mut value).cast(), &raw mut bytes, new, new_bytes) };
        (status == 0 && bytes == size_of::<R>()).then_some(value)
    }

    fn read<R: Default>(self, name: &CStr) -> Option<R> {
        self.exchange::<R, u8>(name, None)
    }

    fn version(self) -> Option<Version> {
        let text = self.read::<usize>(c"version").filter(|&text| text != 0)?;
        // SAFETY: the version is a constant text of the library.
        Version::parse(unsafe { CStr::from_ptr(text as *const c_char) }.to_bytes())
    }

    /// Returns whether it is certain that no block was allocated yet: this thread has allocated
    /// none, no other living thread has come by, and ended threads have left no counts (a build
    /// without statistics has none). A large block is jemalloc's own, for the cache of this thread.
    fn is_fresh(self) -> bool {
        // 4096 is `MALLCTL_ARENAS_ALL`.
        const THREADS: &CStr = c"stats.arenas.4096.nthreads";
        const SMALL: &CStr = c"stats.arenas.4096.small.nmalloc";
        const LARGE: &CStr = c"stats.arenas.4096.large.nmalloc";
        let own = self.read::<u64>(c"thread.allocated");
        let mut epoch = 1u64;
        let refreshed = self.exchange::<u64, _>(c"epoch", Some(&mut epoch));
        own == Some(0)
            && refreshed.is_some()
            && self.read::<u32>(THREADS).is_some_and(|threads| threads <= 1)
            && self.read::<u64>(SMALL).is_none_or(|blocks| blocks == 0)
            && self.read::<u64>(LARGE).is_none_or(|blocks| blocks <= 1)
    }
}

/// A release, and the number of changes since the release.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Version {
    release: [u32; 3],
    changes: u32,
}

impl Version {
    const FIRST: Version = Version { release: [5, 2, 0], changes: 0 };
    /// First version with `pvalloc` as a kind of call.
    const PVALLOC: Version = Version { release: [5, 3, 0], changes: 3 };
    /// Last version with these listeners. Later versions have none, or different listeners.
    const LAST: Version = Version { release: [5, 3, 1], changes: 41 };

    /// Parses a version such as `5.3.0-0-g54eaed1d8b56`.
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
    /// Marks of a start, which is the beginning of a page: the listener is about to be in place, or
    /// was removed.
    const BEGINS: usize = 1;
    const ENDED: usize = 2;

    const fn new() -> Listener {
        let [start, control, handle] = [const { AtomicUsize::new(0) }; 3];
        Listener { start, control, handle, has_pvalloc: AtomicBool::new(false) }
    }

    /// Returns all listeners, in place or not.
    pub fn all() -> impl Iterator<Item = &'static Listener> {
        LISTENERS.iter()
    }

    /// Puts a listener into the jemalloc with this control function, in the object beginning at
    /// `start`. Returns `None` when the jemalloc takes no listener, or has one of ours.
    pub fn begin(start: usize, control: usize) -> Option<Begun> {
        // SAFETY: `control` is the object's `mallctl`, and the opener of the object keeps the
        // object loaded.
        let calls = unsafe { Control::at(control) };
        let version = calls.version()?;
        if !(Version::FIRST..=Version::LAST).contains(&version) {
            return None;
        }
        let listener = LISTENERS.iter().find(|listener| listener.take(start))?;
        let is_of_object = |other: &Listener| other.start.load(Ordering::Acquire) & !Listener::BEGINS == start;
        let mut functions = Functions {
            allocated: (allocated as *const ()).addr(),
            freeing: (freeing as *const ()).addr(),
            expanded: (expanded as *const ()).addr(),
            extra: listener,
        };
        listener.control.store(control, Ordering::Relaxed);
        listener.has_pvalloc.store(version >= Version::PVALLOC, Ordering::Relaxed);
        let is_single = LISTENERS.iter().filter(|other| is_of_object(other)).count() == 1;
        let install = |_| calls.exchange::<usize, _>(c"experimental.hooks.install", Some(&mut functions));
        let Some(handle) = Some(()).filter(|()| is_single).and_then(install) else {
            listener.start.store(Listener::FREE, Ordering::Release);
            return None;
        };
        listener.start.store(start, Ordering::Release);
        listener.handle.store(handle, Ordering::Release);
        // Asked now: whatever another thread has allocated before is counted by now.
        Some(Begun { has_all: calls.is_fresh() })
    }

    fn take(&self, start: usize) -> bool {
        let begins = start | Listener::BEGINS;
        self.start.compare_exchange(Listener::FREE, begins, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Returns whether the object beginning at `start` has this listener.
    pub fn is_in(&self, start: usize) -> bool {
        start != Listener::FREE && self.start.load(Ordering::Acquire) == start
    }

    /// Frees the listener of an unloaded object.
    pub fn forget_unloaded(&self) {
        let marked = self.start.load(Ordering::Acquire);
        let start = marked & !Listener::ENDED;
        let is_there = || elf::object_start(start) == Some(start);
        if start != Listener::FREE && marked & Listener::BEGINS == 0 && !is_there() {
            let _ = self.start.compare_exchange(marked, Listener::FREE, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Removes the listener. The place is not used again while the object is loaded: other threads
    /// may be about to call the listener.
    #[cold]
    fn end(&self) {
        let mut handle = self.handle.swap(0, Ordering::AcqRel);
        if handle == 0 {
            return;
        }
        self.start.fetch_or(Listener::ENDED, Ordering::AcqRel);
        // SAFETY: a call of this jemalloc is on the stack, so the jemalloc is still loaded.
        let calls = unsafe { Control::at(self.control.load(Ordering::Relaxed)) };
        let removing = c"experimental.hooks.remove".as_ptr();
        // SAFETY: the function is jemalloc's `mallctl`, and reads only the handle given by
        // jemalloc.
        unsafe { calls.0(removing, ptr::null_mut(), ptr::null_mut(), (&raw mut handle).cast(), size_of::<usize>()) };
    }

    /// Runs `record` while events are recorded. When nothing is recorded any more, the listener is
    /// removed, so that jemalloc is as fast as before; a later session does not know the blocks.
    ///
    /// A forked child keeps the listener: the fork may have come while another thread held the lock
    /// of jemalloc's listeners, which no handler of forks gives back.
    fn heard(&self, record: impl FnOnce()) {
        let errno = real::errno();
        if !process::is_quiet() {
            record();
        } else if !process::is_forked() {
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

/// Meaning of the arguments of an allocation.
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
    /// Unknown in every version.
    Unknown,
}

listener_entries! {
    /// `hook_alloc(extra, kind, result, result_raw, args)`, with slot and base pointer behind.
    alloc allocated => on_allocated;
    /// `hook_dalloc(extra, kind, address, args)`, with the slot behind.
    dalloc freeing => on_freeing;
    /// `hook_expand(extra, kind, address, old_usize, new_usize, result_raw, args)`: the slot takes
    /// the place of the new size, and the base pointer comes behind.
    expand expanded => on_expanded;
}

/// Records an allocation.
///
/// # Safety
/// jemalloc is the caller: `arguments` are three words.
unsafe extern "C" fn on_allocated(
    listener: &Listener,
    kind: c_int,
    block: *mut u8,
    result: usize,
    arguments: &[usize; 3],
    slot: usize,
    bp: usize,
) {
    let entry = Entry { slot, bp };
    let [first, second, third] = *arguments;
    listener.heard(|| match listener.call(kind) {
        Call::Plain => hooks::record_alloc(block, first, entry),
        Call::To if result == 0 => hooks::record_alloc(block, third, entry),
        Call::Aligned => hooks::record_alloc(block, second, entry),
        // An overflowing product makes the call fail.
        Call::Counted => hooks::record_alloc(block, first.saturating_mul(second), entry),
        Call::Moved if first != 0 => hooks::record_moved(first as *mut u8, block, second, entry),
        Call::Moved => hooks::record_alloc(block, second, entry),
        Call::To | Call::Unknown => {}
    });
}

/// Records a free.
///
/// # Safety
/// jemalloc is the caller: `arguments` are three words.
unsafe extern "C" fn on_freeing(listener: &Listener, kind: c_int, block: *mut u8, arguments: &[usize; 3], slot: usize) {
    const REALLOC: c_int = 3;
    // A moved block was recorded together with the new place. rallocx frees no block alone.
    let is_moved = kind > REALLOC || kind == REALLOC && arguments[1] != 0;
    if !is_moved {
        listener.heard(|| hooks::record_free(block, slot));
    }
}

/// Records a resized block.
///
/// # Safety
/// jemalloc is the caller: `arguments` are four words.
unsafe extern "C" fn on_expanded(
    listener: &Listener,
    kind: c_int,
    block: *mut u8,
    old_usable: usize,
    slot: usize,
    usable: usize,
    arguments: &[usize; 4],
    bp: usize,
) {
    const XALLOCX: c_int = 2;
    let size = arguments[1];
    // xallocx may leave the block unchanged: the block does not grow enough, or does not shrink to
    // a smaller class. Sizes of one class differ by less than a half.
    let is_resized = usable >= size && (usable != old_usable || size > old_usable / 2);
    if kind != XALLOCX || is_resized {
        listener.heard(|| hooks::record_moved(block, block, size, Entry { slot, bp }));
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

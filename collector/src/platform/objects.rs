//! The objects loaded by the loader, while the loader cannot change them.
//!
//! glibc's `dl_iterate_phdr` holds the lock under which objects are loaded and unloaded. The
//! function is called on the program's own paths into the loader (`dlopen`, and the injected call),
//! never inside of an allocation.
//!
//! musl's `dl_iterate_phdr` holds no lock while it calls back, but reports only objects that are
//! there for ever: nothing is unloaded, and an object of a `dlopen` in progress is not reported. So
//! the number of reported objects bounds the lists, and threads take turns by a word of the
//! collector (`Turn`).

use crate::platform::auxiliary::{PT_DYNAMIC, PT_GNU_RELRO, PT_LOAD, PT_NOTE, ProgramHeader};
use crate::platform::elf::{Loaded, Namespace};
use crate::platform::{elf, libc, sys};
use core::ffi::{c_char, c_int, c_void};
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use heapline_shared_format::arena::{CALLS_NOTE_KIND, NOTE_NAME};

/// `struct dl_phdr_info` of `<link.h>`.
#[repr(C)]
struct Info {
    bias: usize,
    name: *const c_char,
    headers: *const ProgramHeader,
    count: u16,
    added: u64,
    removed: u64,
    tls: usize,
    tls_data: *mut c_void,
}

unsafe extern "C" {
    fn dl_iterate_phdr(
        callback: unsafe extern "C" fn(*mut Info, usize, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
}

/// A range of addresses.
#[derive(Clone, Copy, Default)]
pub struct Range {
    /// First address.
    pub start: usize,
    /// Address behind the last.
    pub end: usize,
}

impl Range {
    /// Returns whether the address lies in the range.
    pub fn contains(&self, address: usize) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// A loaded object.
pub struct LoadedObject {
    /// Dynamic section of the object.
    pub loaded: Loaded,
    /// Range from the first byte of the object to the last.
    pub extent: Range,
    /// Whether the object is the program, not a library.
    pub is_program: bool,
    /// Range protected by the loader once the object is relocated.
    pub relro: Range,
    /// Numbers of loads and unloads of objects in this process so far.
    pub history: (u64, u64),
    /// The namespace made for the object by `dlmopen`; `None` in the program's namespace.
    pub namespace: Option<Namespace>,
    /// Address of the word by which the object calls the collector's functions (`heapline.h`); 0
    /// for an object without such calls.
    pub calls: usize,
}

/// All objects of the program's namespace. They stay loaded while the value exists.
pub struct Objects {
    held: (),
}

impl Objects {
    /// Returns the definition of a symbol, in the loader's order. The collector's own object is
    /// left out.
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        self.others()?.find_map(|object| object.symbol(name))
    }

    /// Returns the stub of a function: where a position-dependent program lets other objects find a
    /// function of another object.
    pub fn stub(&self, name: &[u8]) -> Option<usize> {
        self.others()?.find_map(|object| object.stub(name))
    }

    fn others(&self) -> Option<impl Iterator<Item = Loaded>> {
        let () = self.held;
        others(elf::loaded()?)
    }
}

fn others(objects: impl Iterator<Item = Loaded>) -> Option<impl Iterator<Item = Loaded>> {
    let own = elf::own_bias();
    Some(objects.filter(move |object| Some(object.bias) != own))
}

/// Returns the first definition of a symbol in a namespace, in the order in which objects were
/// loaded, and whether all definitions are the same. The collector's own object is left out. The
/// loader's lock is held.
pub fn definition(namespace: Option<Namespace>, name: &[u8]) -> Option<(usize, bool)> {
    let objects = namespace.or_else(|| Namespace::all().next())?.objects();
    let mut found = others(objects)?.filter_map(|object| object.symbol(name));
    let first = found.next()?;
    Some((first, found.all(|other| other == first)))
}

/// Calls `look` once, while no object is loaded or unloaded.
pub fn all(mut look: impl FnMut(&Objects)) {
    let mut is_done = false;
    each(|_| {
        if !core::mem::replace(&mut is_done, true) {
            look(&Objects { held: () });
        }
    });
}

/// Brings the collector's own table of objects up to date, if there is one. `handle` is null or a
/// handle just returned by the loader. To be called after `dlopen` and `dlclose`.
pub fn renew(handle: *const c_void) {
    if elf::keeps_table() {
        all(|_| elf::renew(handle));
    }
}

/// Calls `look` for each loaded object of all namespaces, in the loader's order. The collector's
/// own object is left out. The loader's lock is held over all calls, so only one thread at a time
/// runs this function.
pub fn each(mut look: impl FnMut(&LoadedObject)) {
    let _ = until(|object| {
        look(object);
        ControlFlow::Continue(())
    });
}

/// Calls `look` as [`each`] does, until `look` breaks off. Returns false when an object of another
/// namespace was left out, because the loader is still at work on the object.
pub fn until(mut look: impl FnMut(&LoadedObject) -> ControlFlow<()>) -> bool {
    let _turn = libc::is_musl().then(|| {
        let turn = Turn::take();
        count_committed();
        turn
    });
    let mut is_whole = true;
    let own = elf::own_bias();
    let mut look = |object: LoadedObject| match Some(object.loaded.bias) == own {
        true => ControlFlow::Continue(()),
        false => look(&object),
    };
    let mut is_first = true;
    iterate(|info| {
        if core::mem::take(&mut is_first) {
            // While the loader's lock is held, the other namespaces do not change either.
            for namespace in Namespace::all().skip(1) {
                for object in namespace.objects() {
                    match describe_mapped(object, info, namespace) {
                        Some(object) => look(object)?,
                        None => is_whole = false,
                    }
                }
            }
        }
        describe(info).map_or(ControlFlow::Continue(()), &mut look)
    });
    is_whole
}

/// Counts the objects that musl's loader has for ever.
fn count_committed() {
    let mut count = 0;
    iterate(|_| {
        count += 1;
        ControlFlow::Continue(())
    });
    elf::set_committed(count);
}

/// The turn of a thread to look at the objects of musl's loader. A signal handler of the thread may
/// take the turn once more.
struct Turn {
    is_outermost: bool,
}

/// Process and thread of the present turn; 0 for none.
static TURN: AtomicU64 = AtomicU64::new(0);

impl Turn {
    /// Waits until no other thread has the turn. The other thread runs code of the collector only.
    fn take() -> Turn {
        const NAP_NANOSECONDS: u64 = 50_000;
        static NOBODY: AtomicU32 = AtomicU32::new(0);
        let own = u64::from(sys::getpid()) << 32 | u64::from(sys::gettid());
        let mut free = 0;
        loop {
            match TURN.compare_exchange(free, own, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Turn { is_outermost: true },
                Err(holder) if holder == own => return Turn { is_outermost: false },
                // The thread was in the process that made this process.
                Err(holder) if holder >> 32 != own >> 32 => free = holder,
                Err(_) => {
                    free = 0;
                    sys::futex_wait(&NOBODY, 0, NAP_NANOSECONDS);
                }
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.is_outermost {
            TURN.store(0, Ordering::Release);
        }
    }
}

/// Returns the definition of a name in the objects behind the collector, in the loader's order.
/// Uses only `dl_iterate_phdr`, present in every glibc.
pub fn behind(name: &[u8]) -> Option<usize> {
    let own = (behind as fn(&[u8]) -> Option<usize> as *const ()).addr();
    let (mut is_behind, mut found) = (false, None);
    iterate(|info| {
        let Some(object) = describe(info) else { return ControlFlow::Continue(()) };
        if object.extent.contains(own) {
            is_behind = true;
        } else if is_behind {
            found = object.loaded.symbol(name);
        }
        if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    found
}

/// Calls `look` for the loader's description of each object in the program's namespace, until
/// `look` breaks off.
fn iterate<F: FnMut(&Info) -> ControlFlow<()>>(mut look: F) {
    unsafe extern "C" fn callback<F: FnMut(&Info) -> ControlFlow<()>>(
        info: *mut Info,
        _: usize,
        data: *mut c_void,
    ) -> c_int {
        // SAFETY: `info` is the loader's own description, and `data` points to the function of
        // `iterate`.
        let (info, look) = unsafe { (&*info, &mut *data.cast::<F>()) };
        c_int::from(look(info).is_break())
    }
    // SAFETY: `data` points to the function taken by the callback, alive for the duration of the
    // call.
    unsafe { dl_iterate_phdr(callback::<F>, (&raw mut look).cast()) };
}

fn describe(info: &Info) -> Option<LoadedObject> {
    // SAFETY: the headers are the loader's copy of the object's program headers.
    let headers = unsafe { core::slice::from_raw_parts(info.headers, info.count as usize) };
    let dynamic = ranges(headers, info.bias, PT_DYNAMIC).next()?.start as *const [u64; 2];
    let loaded = Loaded::new(info.bias, dynamic);
    let is_first = || Namespace::program().and_then(|program| program.objects().next());
    let is_program = match libc::is_musl() {
        true => is_first().is_some_and(|first| first.dynamic_section() == loaded.dynamic_section()),
        // SAFETY: glibc's name of the object is a C string or null. The name of the program is
        // empty.
        false => info.name.is_null() || unsafe { *info.name } == 0,
    };
    LoadedObject::new(loaded, headers, is_program, info, None)
}

/// Describes an object of another namespace, which `dl_iterate_phdr` does not report.
fn describe_mapped(loaded: Loaded, info: &Info, namespace: Namespace) -> Option<LoadedObject> {
    let mapped = loaded.mapped()?;
    LoadedObject::new(loaded, mapped.program_headers(), false, info, Some(namespace))
}

fn ranges(headers: &[ProgramHeader], bias: usize, kind: u32) -> impl Iterator<Item = Range> {
    elf::ranges(headers, bias, kind).map(|range| Range { start: range.start, end: range.end })
}

/// Finds the note of `heapline.h` among the notes of an object, and returns the address of the word
/// that the note names.
///
/// # Safety
/// The range is mapped.
unsafe fn calls(notes: Range) -> Option<usize> {
    const HEAD_BYTES: usize = 12;
    let mut at = notes.start;
    while at.is_multiple_of(4) && at + HEAD_BYTES <= notes.end {
        // SAFETY: the head lies in the range.
        let [name_bytes, content_bytes, kind] = unsafe { (at as *const [u32; 3]).read() };
        let name = at + HEAD_BYTES;
        let content = name.checked_add((name_bytes as usize).next_multiple_of(4))?;
        let next = content.checked_add((content_bytes as usize).next_multiple_of(4))?;
        if next > notes.end {
            return None;
        }
        if kind == CALLS_NOTE_KIND && name_bytes as usize == NOTE_NAME.len() && content_bytes == 8 {
            // SAFETY: name and content lie in the range.
            let (found, distance) =
                unsafe { ((name as *const [u8; NOTE_NAME.len()]).read(), (content as *const isize).read_unaligned()) };
            if found == NOTE_NAME {
                return Some(content.wrapping_add_signed(distance)).filter(|word| word.is_multiple_of(8));
            }
        }
        at = next;
    }
    None
}

impl LoadedObject {
    fn new(
        loaded: Loaded,
        headers: &[ProgramHeader],
        is_program: bool,
        info: &Info,
        namespace: Option<Namespace>,
    ) -> Option<LoadedObject> {
        let whole = |all: Range, one: Range| Range { start: all.start.min(one.start), end: all.end.max(one.end) };
        let extent = ranges(headers, loaded.bias, PT_LOAD).reduce(whole)?;
        let relro = ranges(headers, loaded.bias, PT_GNU_RELRO).next().unwrap_or_default();
        let notes = ranges(headers, loaded.bias, PT_NOTE);
        // SAFETY: the loader has mapped the notes, and they are data that nobody changes.
        let calls = notes.filter_map(|notes| unsafe { calls(notes) }).find(|&word| extent.contains(word)).unwrap_or(0);
        let history = (info.added, info.removed);
        Some(LoadedObject { loaded, extent, is_program, relro, history, namespace, calls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_and_its_functions_are_found() {
        let mut count = 0;
        let mut protected = 0;
        each(|object| {
            count += 1;
            protected += usize::from(object.relro.end > object.relro.start);
            assert!(object.extent.contains(object.extent.start));
        });
        assert!(count >= 1 && protected >= 1, "the C library at the least: the test itself is left out");
        let mut malloc = None;
        all(|objects| malloc = objects.find(b"malloc"));
        let found = crate::platform::elf::find_object(malloc.expect("the C library has it")).expect("in an object");
        assert!(found.path().windows(5).any(|part| part == b"libc."), "the test defines no malloc");
    }
}

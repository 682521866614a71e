//! Allocators inside of objects, with a listener for their blocks.
//!
//! A library or a program may contain a jemalloc under a prefix (Rust's `_rjem_`, Arrow's,
//! DuckDB's). The surrounding code calls the functions of the jemalloc directly, so no place with
//! their addresses can be led to the hooks. jemalloc 5.2 to 5.3.1 calls listeners after each
//! allocation and before each free. No code has to change.
//!
//! 1. `objects` lists the objects loaded by a returned `dlopen`, or by the start of the program.
//! 2. `file` finds the control function of the jemalloc in the object's file, by a table of
//!    symbols.
//! 3. `jemalloc` asks for the version and puts a listener in place, through the control function.
//! 4. The object's MODULE record marks the blocks of the object as recorded. An object without the
//!    mark is named as not seen.
//!
//! An object is asked only when all of the object is ready to be called. A thread that comes by
//! while another thread loads the object leaves the object alone.

mod file;
mod jemalloc;
mod objects;

use crate::attach::is_leading;
use crate::platform::elf;
use crate::platform::elf::Loaded;
use crate::{fail, modules, process, real, thread};
use core::ffi::c_void;
use jemalloc::Listener;
use objects::{Known, Objects};

/// Handles of `dlopen` already examined.
static HANDLES: Known = Known::new();
/// Objects already examined, by their dynamic sections.
static OBJECTS: Known = Known::new();

/// Examines the objects present at the start of the program.
pub fn look_at_start() {
    if is_leading() && !process::is_sandboxed() {
        look(Objects::of_program());
    }
}

/// Examines the object of an open handle, and all objects needed by the object.
pub fn look_at(handle: *mut c_void) {
    // In a sandbox a system call that the program does not make itself may end the program.
    if is_leading() && !process::is_sandboxed() && HANDLES.claim(handle.addr()) {
        look(Objects::behind(handle, &OBJECTS));
    }
}

/// Leaves all objects loaded now alone for ever: the blocks already given out by their allocators
/// are not known.
pub fn pass_over_loaded() {
    if let Some(objects) = Objects::of_program() {
        for object in objects.iter() {
            OBJECTS.claim(object.dynamic_section());
        }
    }
}

/// Examines objects. While nothing is recorded, objects are only noted: a later recording would not
/// know their blocks.
fn look(objects: Option<Objects>) {
    let Some(objects) = objects else { return };
    let errno = real::errno();
    // Of two threads at once, one examines an object; the other goes on.
    for object in objects.iter().filter(|object| OBJECTS.claim(object.dynamic_section())) {
        if !process::is_quiet() {
            let _ = listen_to(&object, &objects);
        }
    }
    real::set_errno(errno);
}

/// Puts a listener into the object's jemalloc. Returns `None` without a jemalloc in the object, or
/// for a jemalloc without listeners.
fn listen_to(object: &Loaded, objects: &Objects) -> Option<()> {
    let mapped = object.mapped()?;
    if is_recorded(mapped.start) || exports_allocator(object) {
        return None;
    }
    // The calls of jemalloc's are not guarded: a handler of a signal may run in the middle of one.
    let control = fail::guard(|| file::control(&mapped, objects.buffer())).flatten()?;
    let begun = Listener::begin(mapped.start, control)?;
    process::count_unled(0, u64::from(!begun.has_all));
    fail::guard(|| {
        let thread = thread::enter(thread::stack_pointer())?;
        modules::announce_again(thread, &mapped);
        thread::leave(thread);
        Some(())
    })
    .flatten()
}

/// Returns whether other objects call the object's allocator by names with calls led to hooks and
/// doors.
fn exports_allocator(object: &Loaded) -> bool {
    [&b"malloc"[..], b"je_malloc", b"PyMem_RawMalloc"].iter().any(|name| object.symbol(name).is_some())
}

/// Returns whether a listener records the blocks of the object beginning at `start`.
pub fn is_recorded(start: usize) -> bool {
    Listener::all().any(|listener| listener.is_in(start))
}

/// Forgets unloaded objects. To be called after `dlclose`: handles and addresses of objects may be
/// used again.
pub fn unloaded() {
    HANDLES.forget(|_| true);
    OBJECTS.forget(|address| elf::object_start(address).is_none());
    Listener::all().for_each(Listener::forget_unloaded);
}

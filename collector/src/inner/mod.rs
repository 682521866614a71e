//! Allocators inside of objects, which tell a listener about their blocks.
//!
//! A library or a program may contain a jemalloc under a prefix (Rust's `_rjem_`, Arrow's,
//! DuckDB's). The code around the jemalloc calls its functions directly, so no place that holds
//! their addresses can be led to the hooks. jemalloc 5.2 to 5.3.1 calls listeners after each
//! allocation and before each free; no code has to change.
//!
//! 1. [`objects`] lists what was loaded by a `dlopen` that has returned, or by the start of the
//!    program.
//! 2. [`file`] finds the jemalloc's control function in the object's file, by a table of symbols.
//! 3. [`jemalloc`] asks for the version and puts a listener in place, by that function.
//! 4. The object's MODULE record says that its blocks are recorded; an object without it is named
//!    as not seen.
//!
//! An object is asked only when all of it is ready to be called: a thread that comes by while
//! another thread loads the object leaves it alone.

mod file;
mod jemalloc;
mod objects;

use crate::attach::is_leading;
use crate::platform::elf;
use crate::platform::elf::Loaded;
use crate::{modules, process, real, thread};
use core::ffi::c_void;
use jemalloc::Listener;
use objects::{Known, Objects};

/// Handles of `dlopen` that were looked at.
static HANDLES: Known = Known::new();
/// Objects that were looked at, by their dynamic sections.
static OBJECTS: Known = Known::new();

/// Looks at the objects that the program has started with.
pub fn look_at_start() {
    if is_leading() {
        look(Objects::of_program());
    }
}

/// Looks at the object of an open handle, and at all objects that it needs.
pub fn look_at(handle: *mut c_void) {
    if is_leading() && !HANDLES.has(handle.addr()) {
        look(Objects::behind(handle, &OBJECTS));
        HANDLES.note(handle.addr());
    }
}

/// Leaves alone, for ever, what is loaded now: what such an allocator has given out is not known.
pub fn pass_over_loaded() {
    if let Some(objects) = Objects::of_program() {
        objects.iter().for_each(|object| OBJECTS.note(object.dynamic_section()));
    }
}

/// While nothing is recorded, objects are only noted: their blocks are unknown to whoever begins to
/// record later.
fn look(objects: Option<Objects>) {
    let Some(objects) = objects else { return };
    let errno = real::errno();
    for object in objects.iter().filter(|object| !OBJECTS.has(object.dynamic_section())) {
        if !process::is_quiet() {
            let _ = listen_to(&object, &objects);
        }
        OBJECTS.note(object.dynamic_section());
    }
    real::set_errno(errno);
}

/// Puts a listener into the object's jemalloc. None where the object has no jemalloc, or one
/// without listeners.
fn listen_to(object: &Loaded, objects: &Objects) -> Option<()> {
    let mapped = object.mapped()?;
    if is_recorded(mapped.start) || exports_allocator(object) {
        return None;
    }
    let control = file::control(&mapped, objects.buffer())?;
    let begun = Listener::begin(mapped.start, control)?;
    process::count_unled(0, u64::from(!begun.has_all));
    let thread = thread::enter(thread::stack_pointer())?;
    modules::announce_again(thread, &mapped);
    thread::leave(thread);
    Some(())
}

/// Whether other objects call the object's allocator by names whose calls are led to the hooks and
/// doors.
fn exports_allocator(object: &Loaded) -> bool {
    [&b"malloc"[..], b"je_malloc", b"PyMem_RawMalloc"].iter().any(|name| object.symbol(name).is_some())
}

/// Whether the blocks of the object that begins there are recorded by a listener.
pub fn is_recorded(start: usize) -> bool {
    Listener::all().any(|listener| listener.is_in(start))
}

/// To be called after `dlclose`: handles, and places of objects, may be used again.
pub fn unloaded() {
    HANDLES.forget(|_| true);
    OBJECTS.forget(|address| elf::find_object(address).is_none());
    Listener::all().for_each(Listener::forget_unloaded);
}

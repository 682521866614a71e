//! Objects known to the aggregator. Each object is announced once a session, when a walk first
//! meets code of the object.
//!
//! Announcing at the first meeting covers every way of loading code: the loader, `dlopen`, NSS and
//! iconv from inside libc, and constructors that run before `dlopen` returns. No hook takes the
//! loader's lock. Objects leave by `dlclose` ([`unloaded`]), or are found gone when another object
//! takes their place.

use crate::platform::elf::Object;
use crate::platform::{elf, executable, sys};
use crate::process::Process;
use crate::thread::Thread;
use crate::unwind::generated;
use crate::{fail, inner, process};
use core::ops::Range;
use core::sync::atomic::Ordering;
use heapline_shared_format::event::{self, ModuleFlags};

/// Tells the aggregator about an object, unless the object is announced already.
pub fn announce(thread: &mut Thread, object: &Object) {
    let Some(process) = process::get() else { return };
    if process.modules().claim(object, thread.session()) {
        tell(process, thread, object);
    }
}

/// Tells the aggregator about an object with changed properties.
pub fn announce_again(thread: &mut Thread, object: &Object) {
    let Some(process) = process::get() else { return };
    process.modules().claim(object, thread.session());
    tell(process, thread, object);
}

fn tell(process: &'static Process, thread: &mut Thread, object: &Object) {
    fail::point(fail::Site::Module);
    let (start, end) = (object.start as u64, object.end as u64);
    let replaced = |s: u64, e: u64| s < end && start < e && (s, e) != (start, end);
    let mut any_replaced = false;
    while let Some(old) = process.modules().take(replaced) {
        thread.publish_unload(old);
        any_replaced = true;
    }
    if generated::forget(object.start..object.end) || any_replaced {
        forget_code(process);
    }
    let mut buffer = [0u8; 1024];
    let path = absolute_path(object.path(), &mut buffer);
    let build_id = object.build_id();
    let build_id = &build_id[..build_id.len().min(event::MAX_BUILD_ID_BYTES)];
    let flags = ModuleFlags { is_program: object.path().is_empty(), is_recorded: inner::is_recorded(object.start) };
    thread.publish_module(start..end, object.bias as u64, flags, build_id, path);
}

/// Returns the path of an object in two parts.
///
/// - The path of the program itself, which the loader does not name: asked of the kernel now, since
///   exec may replace the program.
/// - A relative path: the working directory goes before the path.
fn absolute_path<'a>(path: &'a [u8], buffer: &'a mut [u8]) -> [&'a [u8]; 2] {
    if path.is_empty() {
        let n = executable::path(buffer);
        return [&[], &buffer[..n]];
    }
    let is_relative = !path.starts_with(b"/") && path.contains(&b'/');
    let last = buffer.len() - 1;
    let directory = match is_relative.then(|| sys::current_directory(&mut buffer[..last])).flatten() {
        Some(n) => {
            buffer[n] = b'/';
            &buffer[..=n]
        }
        None => &[],
    };
    [directory, &path[..path.len().min(event::MAX_PATH_BYTES - directory.len())]]
}

/// Tells the aggregator about unloaded objects. To be called after `dlclose`.
pub fn unloaded(thread: Option<&mut Thread>) {
    let Some(process) = process::get() else { return };
    let is_gone = |start: u64, _| {
        #[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
        let start = start as usize;
        elf::object_start(start) != Some(start)
    };
    let mut any = false;
    let mut thread = thread;
    while let Some(start) = process.modules().take(is_gone) {
        if let Some(thread) = thread.as_deref_mut() {
            thread.publish_unload(start);
        }
        any = true;
    }
    if any {
        forget_code(process);
    }
}

/// Notes that the program has unmapped a range of addresses, or mapped other pages there.
pub fn replaced(range: Range<usize>) {
    if generated::forget(range)
        && let Some(process) = process::get()
    {
        forget_code(process);
    }
}

/// Makes every thread forget all knowledge of code by address.
fn forget_code(process: &Process) {
    process.rules().clear();
    process.header().session.epoch.fetch_add(1, Ordering::Release);
}

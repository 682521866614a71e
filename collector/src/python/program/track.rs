//! Blocks tracked explicitly by extension modules through tracemalloc's C functions (numpy's
//! arrays: domain 389047).
//!
//! The entries of CPython's C functions jump here. A tracked block is recorded whether the program
//! traces or not. The return values are those of the program's tracemalloc.
//!
//! Limit: a module may untrack only blocks tracked while the program traced. The operator then
//! keeps seeing blocks already gone. numpy untracks all.

use super::{program, traceback, traces};
use crate::platform::symbols::Scope;
use crate::python::patch;
use crate::python::patch::Purpose;
use crate::thread::record::record;
use crate::thread::stack_pointer;
use core::ffi::{c_int, c_uint, c_void};
use core::ptr;
use heapline_shared_format::event::{self, Tracked};

const IS_DONE: c_int = 0;
const IS_NOT_TRACING: c_int = -2;

/// Addresses of CPython's functions.
#[derive(Clone, Copy)]
pub struct OwnFunctions {
    track: usize,
    untrack: usize,
    traceback: usize,
}

impl OwnFunctions {
    /// Looks the functions up. None if one is missing.
    pub fn find(scope: Scope) -> Option<OwnFunctions> {
        Some(OwnFunctions {
            track: scope.find(b"PyTraceMalloc_Track")?,
            untrack: scope.find(b"PyTraceMalloc_Untrack")?,
            traceback: scope.find(b"_PyTraceMalloc_GetTraceback")?,
        })
    }

    /// Makes the entries of CPython's functions jump here. False, and nothing done, if the system
    /// forbids the change.
    ///
    /// # Safety
    /// 1. The calling thread holds the interpreter's lock.
    /// 2. The interpreter has not made its first module yet, so nobody runs the functions.
    pub unsafe fn replace(&self) -> bool {
        type Track = unsafe extern "C" fn(c_uint, usize, usize) -> c_int;
        type Untrack = unsafe extern "C" fn(c_uint, usize) -> c_int;
        type Traceback = unsafe extern "C" fn(c_uint, usize) -> *mut c_void;
        // SAFETY: the caller gives promises 1 and 2; the signatures are from CPython's headers.
        unsafe {
            let is_done = patch::jump(Purpose::Tracemalloc, self.track, track as Track as usize)
                && patch::jump(Purpose::Tracemalloc, self.untrack, untrack as Untrack as usize)
                && patch::jump(Purpose::Tracemalloc, self.traceback, get_traceback as Traceback as usize);
            if !is_done {
                patch::undo(Purpose::Tracemalloc);
            }
            is_done
        }
    }
}

/// `PyTraceMalloc_Track`. May be called without the interpreter's lock.
unsafe extern "C" fn track(domain: c_uint, address: usize, size: usize) -> c_int {
    record(stack_pointer(), |thread| {
        thread.publish_in_python(|stamp, stack| {
            event::track(stamp, Tracked::Domain(domain), address as u64, size as u64, stack)
        })
    });
    status()
}

/// `PyTraceMalloc_Untrack`. May be called without the interpreter's lock.
unsafe extern "C" fn untrack(domain: c_uint, address: usize) -> c_int {
    record(stack_pointer(), |thread| {
        thread.publish_plain(|stamp| event::untrack(stamp, Tracked::Domain(domain), address as u64))
    });
    status()
}

fn status() -> c_int {
    if traces() { IS_DONE } else { IS_NOT_TRACING }
}

/// `_PyTraceMalloc_GetTraceback`. Called with the interpreter's lock.
unsafe extern "C" fn get_traceback(domain: c_uint, address: usize) -> *mut c_void {
    program().map_or(ptr::null_mut(), |program| traceback(&program.api, address, domain))
}

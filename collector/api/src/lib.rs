//! Calls of Heapline from within a program: marks in the history, pools of the program's own, and
//! pauses. The same as `heapline.h` for C and C++.
//!
//! Where nobody traces the program, each call is one load and one branch. The crate needs no
//! library and has no dependency. Elsewhere than on 64-bit Linux the functions do nothing.
//!
//! ```
//! let page = [0u8; 4096];
//! heapline::mark("deploy 42"); // report --at mark:"deploy 42"
//! heapline::track("pages", page.as_ptr(), page.len()); // report --domain pool:pages
//! heapline::untrack("pages", page.as_ptr());
//! {
//!     let _pause = heapline::pause();
//!     // What this thread allocates here does not count.
//! }
//! ```
#![no_std]

use core::marker::PhantomData;

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod word;

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
mod word {
    //! Nobody traces here.

    pub struct Functions {
        pub mark: fn(*const u8, usize),
        pub track: fn(*const u8, usize, *const u8, usize),
        pub untrack: fn(*const u8, usize, *const u8),
        pub pause: fn(),
        pub resume: fn(),
    }

    pub fn functions() -> Option<&'static Functions> {
        None
    }
}

use word::functions;

/// Puts a mark into the history. At most 256 bytes of the text are kept.
#[inline]
pub fn mark(text: &str) {
    if let Some(functions) = functions() {
        (functions.mark)(text.as_ptr(), text.len());
    }
}

/// Records a block that the program has taken from a pool of its own.
///
/// The pool is a domain of its own, `pool:NAME`, with at most 64 bytes of the name. A second block
/// at the same address of the pool takes the place of the first. Nothing is read at the address.
#[inline]
pub fn track<T: ?Sized>(pool: &str, address: *const T, bytes: usize) {
    if let Some(functions) = functions() {
        (functions.track)(pool.as_ptr(), pool.len(), address.cast(), bytes);
    }
}

/// Records that a block of the pool is given back.
#[inline]
pub fn untrack<T: ?Sized>(pool: &str, address: *const T) {
    if let Some(functions) = functions() {
        (functions.untrack)(pool.as_ptr(), pool.len(), address.cast());
    }
}

/// A pause of the calling thread, until the value is dropped.
#[derive(Debug)]
#[must_use = "the pause ends when the value is dropped"]
pub struct Pause {
    /// Whether somebody traced when the pause began.
    is_begun: bool,
    /// A pause belongs to the thread that has begun the pause.
    here: PhantomData<*const ()>,
}

/// Lets the allocations of the calling thread count no more, until the value is dropped. Frees
/// still count. Pauses may lie in each other.
#[inline]
pub fn pause() -> Pause {
    Pause { is_begun: begin_pause(), here: PhantomData }
}

impl Drop for Pause {
    fn drop(&mut self) {
        if self.is_begun {
            end_pause();
        }
    }
}

/// Begins a pause that a call of [`end_pause`] ends, for code that cannot keep a [`Pause`]. Returns
/// whether somebody traces.
#[inline]
pub fn begin_pause() -> bool {
    let functions = functions();
    if let Some(functions) = functions {
        (functions.pause)();
    }
    functions.is_some()
}

/// Ends a pause of [`begin_pause`] on the same thread.
#[inline]
pub fn end_pause() {
    if let Some(functions) = functions() {
        (functions.resume)();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_happens_where_nobody_traces() {
        super::mark("a mark");
        let block = [0u8; 8];
        super::track("a pool", block.as_ptr(), block.len());
        super::untrack("a pool", block.as_ptr());
        drop(super::pause());
    }
}

//! What a process says of its forks, so that a child can begin with a copy of its table.
//!
//! The place of a fork in the order of events is a record that is written just before it, by a handler that libc calls
//! inside `fork` after the program's own ones (`pthread_atfork`; so forks that libc makes itself have it too). The thread's
//! word [`tls::fork`] keeps the number, and the child, whose only thread that is, sends it along. `_Fork` and a raw clone
//! call no handlers: such a child begins without a copy.
//!
//! ```text
//! bits of the word: | over 1 | session 31 | number 32 |
//! ```

use crate::platform::{elf, sys, tls};
use crate::real::Next;
use crate::start;
use crate::thread::record::record;
use crate::thread::{Published, stack_pointer};
use core::cell::Cell;
use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use heapline_shared_format::{event, query};

/// The fork is over, in the parent.
const OVER: u64 = 1 << 63;

/// Process id of the child that the word of its thread speaks of.
static CHILD: AtomicU32 = AtomicU32::new(0);

optional!(
    /// What `pthread_atfork` is in a library that glibc loads.
    register_address,
    "register_atfork_address",
    "__register_atfork"
);

type Handler = unsafe extern "C" fn();

/// Has libc call the handlers, from the first call on. Before the program can register its own, so that ours comes last before
/// the fork.
pub fn watch() {
    static IS_WATCHING: AtomicBool = AtomicBool::new(false);
    type Register = unsafe extern "C" fn(Handler, Handler, Handler, *const u8) -> c_int;
    unsafe extern "C" {
        /// By which libc knows whose handlers go when the library is unloaded.
        static __dso_handle: u8;
    }
    let register = register_address();
    if register == 0 || !elf::can_find_objects() || IS_WATCHING.swap(true, Ordering::Relaxed) {
        return;
    }
    // SAFETY: glibc's function, with functions that stay. Where there is no memory for it, children
    // begin without copies.
    unsafe { core::mem::transmute::<usize, Register>(register)(prepare, in_parent, in_child, &raw const __dso_handle) };
}

/// Number of the fork that this process was made by, as its parent counts; 0 where it is not known.
pub fn own_number() -> u64 {
    let word = tls::fork();
    // A vfork child has its parent's word, and is none of its kind.
    let is_own = CHILD.load(Ordering::Relaxed) == sys::getpid();
    if word & OVER == 0 && is_own { word } else { 0 }
}

unsafe extern "C" fn prepare() {
    // A child that has not begun is to have a table of its own before it has children.
    let process = start::get_or_start(stack_pointer());
    tls::set_fork(0);
    let Some(process) = process.filter(|process| process.is_traced() && process.is_self()) else { return };
    let header = process.header();
    if header.tree.follows.load(Ordering::Acquire) == 0 {
        return;
    }
    let number = u64::from(header.tree.forks.fetch_add(1, Ordering::Relaxed).wrapping_add(1));
    let session = u64::from(header.session.number.load(Ordering::Relaxed)) << 32 & !OVER;
    if number != 0 && say(query::FORK, [session | number, 0]) {
        tls::set_fork(session | number);
    }
}

unsafe extern "C" fn in_parent() {
    let word = tls::fork();
    if word != 0 {
        say(query::FORKED, [word, 0]);
        tls::set_fork(word | OVER);
    }
}

unsafe extern "C" fn in_child() {
    CHILD.store(sys::getpid(), Ordering::Relaxed);
}

/// `fork`. The parent says who its child is, so that a copy that the child does not ask for is not kept for ever.
///
/// # Safety
/// As the C function's.
pub unsafe fn fork() -> c_int {
    static NEXT: Next = Next::new(c"fork");
    let Some(next) = NEXT.get() else { return -1 };
    // SAFETY: the C function of that name.
    let pid = unsafe { core::mem::transmute::<*mut (), unsafe extern "C" fn() -> c_int>(next)() };
    let word = tls::fork();
    if pid != 0 && word & OVER != 0 {
        say(query::CHILD, [word & !OVER, u64::try_from(pid).unwrap_or(0)]);
        tls::set_fork(0);
    }
    pid
}

/// Whether it is in the ring.
fn say(what: u32, arguments: [u64; 2]) -> bool {
    let is_said = Cell::new(false);
    record(stack_pointer(), |thread| {
        let published = thread.publish_plain(|stamp| event::query(stamp, 0, what, arguments));
        is_said.set(published == Published::Yes);
        published
    });
    is_said.get()
}

//! Records of forks, so that the aggregator can begin a child with a copy of its parent's live
//! table.
//!
//! A record written just before a fork marks the place of the fork in the order of events. A
//! `pthread_atfork` handler writes the record. libc calls the handler inside `fork`, after the
//! handlers of the program, also for forks made by libc itself. Steps:
//!
//! 1. The handler stores the number of the fork in the thread's word [`tls::fork`].
//! 2. The forking thread is the only thread of the child, so the child finds the number in the
//!    word.
//! 3. The child sends the number along with its arena.
//!
//! `_Fork` and a raw clone call no handlers: a child of theirs begins without a copy.
//!
//! Bits of the word:
//!
//! ```text
//! | over 1 | session 31 | number 32 |
//! ```

use crate::platform::{elf, sys, tls};
use crate::real::Next;
use crate::start;
use crate::thread::record::record;
use crate::thread::{self, Published, stack_pointer};
use core::cell::Cell;
use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use heapline_shared_format::{event, query};

/// Bit of the word: the fork is over, in the parent.
const OVER: u64 = 1 << 63;

/// Process id of the forked child to which the word of the thread belongs.
static CHILD: AtomicU32 = AtomicU32::new(0);

optional!(
    /// Address of `__register_atfork`, the function behind `pthread_atfork` in a library loaded by
    /// glibc.
    register_address,
    "register_atfork_address",
    "__register_atfork"
);

optional!(
    /// Address of `pthread_atfork`, of musl. glibc puts the function into each library with a call
    /// of it.
    pub(crate) atfork_address,
    "pthread_atfork_address",
    "pthread_atfork"
);

type Handler = unsafe extern "C" fn();

/// Registers the fork handlers with libc, once. Must run before the program can register handlers
/// of its own: libc calls the first registered `prepare` handler last, just before the fork.
pub fn watch() {
    static IS_WATCHING: AtomicBool = AtomicBool::new(false);
    type Register = unsafe extern "C" fn(Handler, Handler, Handler, *const u8) -> c_int;
    unsafe extern "C" {
        /// libc's key for removing the handlers of a library when the library is unloaded.
        static __dso_handle: u8;
    }
    // musl takes no key: nothing is ever unloaded there. A fourth argument goes unnoticed.
    let register = match register_address() {
        0 => atfork_address(),
        address => address,
    };
    if register == 0 || !elf::can_find_objects() || IS_WATCHING.swap(true, Ordering::Relaxed) {
        return;
    }
    // SAFETY: libc's function, with handlers of a library, which is never unloaded. Without memory
    // for the registration, children begin without copies.
    let register = || unsafe {
        core::mem::transmute::<usize, Register>(register)(prepare, in_parent, in_child, &raw const __dso_handle)
    };
    // musl's function allocates by a hook. The block is not the program's.
    thread::in_allocator(register);
}

/// Returns the word of the fork by which the parent made this process; 0 if unknown.
pub fn own_number() -> u64 {
    let word = tls::fork();
    // A vfork child shares the parent's word, but was not made by the fork in the word.
    let is_own = CHILD.load(Ordering::Relaxed) == sys::getpid();
    if word & OVER == 0 && is_own { word } else { 0 }
}

unsafe extern "C" fn prepare() {
    // A forked child without an arena makes one now, before it has children.
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

/// `fork`. Also records the process id of the child in the parent, so that the aggregator does not
/// keep forever a copy for which the child never asks.
///
/// # Safety
/// The caller upholds the contract of the C function `fork`.
pub unsafe fn fork() -> c_int {
    static NEXT: Next = Next::new(c"fork");
    let Some(next) = NEXT.get() else { return -1 };
    // SAFETY: `next` is the C function `fork`.
    let pid = unsafe { core::mem::transmute::<*mut (), unsafe extern "C" fn() -> c_int>(next)() };
    let word = tls::fork();
    if pid != 0 && word & OVER != 0 {
        say(query::CHILD, [word & !OVER, u64::try_from(pid).unwrap_or(0)]);
        tls::set_fork(0);
    }
    pid
}

/// Writes a query record. Returns whether the record is in the ring.
fn say(what: u32, arguments: [u64; 2]) -> bool {
    let is_said = Cell::new(false);
    record(stack_pointer(), |thread| {
        let published = thread.publish_plain(|stamp| event::query(stamp, 0, what, arguments));
        is_said.set(published == Published::Yes);
        published
    });
    is_said.get()
}

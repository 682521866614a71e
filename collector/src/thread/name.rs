//! The name of a thread at its end.
//!
//! A thread sends its name with its first event. Many threads are named later, and the aggregator
//! looks at names only now and then. So a thread that ends sends a changed name: the C library
//! calls the destructor of a thread-specific value of the collector.

use super::Thread;
use crate::platform::sys;
use crate::real;
use core::ffi::{c_int, c_uint, c_void};
use core::sync::atomic::{AtomicU32, Ordering};
use heapline_shared_format::event;

optional!(
    /// `pthread_key_create` by glibc's other name for the function, which no hook has. musl has
    /// only the one name.
    create_address,
    "pthread_key_create_address",
    "__pthread_key_create"
);
optional!(
    /// `pthread_key_delete`, part of glibc's libc since 2.34.
    delete_address,
    "pthread_key_delete_address",
    "pthread_key_delete"
);
optional!(
    /// `pthread_setspecific`, part of glibc's libc since 2.34.
    set_address,
    "pthread_setspecific_address",
    "pthread_setspecific"
);

type Ended = extern "C" fn(*mut c_void);
type Create = unsafe extern "C" fn(*mut c_uint, Ended) -> c_int;
type Delete = unsafe extern "C" fn(c_uint) -> c_int;
type Set = unsafe extern "C" fn(c_uint, *const c_void) -> c_int;

/// glibc allocates for the values of higher keys.
const KEYS_WITHOUT_MEMORY: c_uint = 32;
/// The key, plus 1; 0 before the first thread, and [`NO_KEY`] where there is none.
static KEY: AtomicU32 = AtomicU32::new(0);
const NO_KEY: u32 = u32::MAX;
/// Number of threads between reading [`KEY`] and using the key.
static USERS: AtomicU32 = AtomicU32::new(0);

/// Makes the C library call `ended` when the calling thread ends. The function is the same in every
/// call.
pub fn watch(ended: Ended) {
    USERS.fetch_add(1, Ordering::SeqCst);
    if let Some(key) = key(ended) {
        // SAFETY: the C library's function. The key is the collector's, and its values are only
        // compared with null.
        unsafe { core::mem::transmute::<usize, Set>(set_address())(key, (&raw const KEY).cast()) };
    }
    USERS.fetch_sub(1, Ordering::SeqCst);
}

/// Deletes the key, for a program that needs all keys. Returns whether a key has become free. A
/// thread that is about to use the key keeps the key from being another's.
pub fn give_up() -> bool {
    let Some(key) = KEY.swap(NO_KEY, Ordering::SeqCst).checked_sub(1).filter(|&key| key < KEYS_WITHOUT_MEMORY) else {
        return false;
    };
    // SAFETY: the C library's function, with the collector's key.
    USERS.load(Ordering::SeqCst) == 0 && unsafe { delete(key) }
}

/// # Safety
/// The key is the collector's, and nothing uses the key afterwards.
unsafe fn delete(key: c_uint) -> bool {
    // SAFETY: the C library's function; the key exists because the library has key functions.
    unsafe { core::mem::transmute::<usize, Delete>(delete_address())(key) == 0 }
}

fn key(ended: Ended) -> Option<c_uint> {
    let known = |word: u32| word.checked_sub(1).filter(|&key| key < KEYS_WITHOUT_MEMORY);
    let word = KEY.load(Ordering::SeqCst);
    if word != 0 || [delete_address(), set_address()].contains(&0) {
        return known(word);
    }
    let create = match create_address() {
        0 => real::next(c"pthread_key_create").addr(),
        address => address,
    };
    if create == 0 {
        return None;
    }
    let mut key = 0;
    // SAFETY: the C library's function writes the key, and the destructor takes any value.
    let is_made = unsafe { core::mem::transmute::<usize, Create>(create)(&raw mut key, ended) } == 0;
    let word = if is_made && key < KEYS_WITHOUT_MEMORY { key + 1 } else { NO_KEY };
    let before = KEY.compare_exchange(0, word, Ordering::SeqCst, Ordering::SeqCst);
    if is_made && (before.is_err() || word == NO_KEY) {
        // SAFETY: the key was made just now, and no thread uses the key.
        unsafe { delete(key) };
    }
    known(before.map_or_else(|other| other, |_| word))
}

impl Thread {
    /// Tells the reader of the ring the name of the calling thread, if the name has changed.
    pub fn tell_name(&mut self) {
        let name = sys::thread_name();
        if name != self.name {
            self.name = name;
            self.publish_plain(|stamp| event::thread(stamp, name));
        }
    }

    /// Makes the next call of [`Thread::tell_name`] tell the name.
    pub(super) fn forget_name(&mut self) {
        // No thread has this name: a name ends with a zero byte.
        self.name = [1; 16];
    }
}

//! The name of a thread at its end.
//!
//! A thread sends its name with its first event. Many threads are named later, and the aggregator
//! looks at names only now and then. So a thread that ends sends a changed name: the C library
//! calls the destructor of a thread-specific value of the collector.

use super::Thread;
use crate::platform::sys;
use core::ffi::{c_int, c_uint, c_void};
use core::sync::atomic::{AtomicU32, Ordering};
use heapline_shared_format::event;

unsafe extern "C" {
    fn pthread_key_create(key: *mut c_uint, destructor: extern "C" fn(*mut c_void)) -> c_int;
    fn pthread_key_delete(key: c_uint) -> c_int;
    fn pthread_setspecific(key: c_uint, value: *const c_void) -> c_int;
}

/// glibc allocates for the values of higher keys.
const KEYS_WITHOUT_MEMORY: c_uint = 32;
/// The key, plus 1; 0 before the first thread, and [`NO_KEY`] where there is none.
static KEY: AtomicU32 = AtomicU32::new(0);
const NO_KEY: u32 = u32::MAX;

/// Makes the C library call `ended` when the calling thread ends. The function is the same in every
/// call.
pub fn watch(ended: extern "C" fn(*mut c_void)) {
    let Some(key) = key(ended) else { return };
    // SAFETY: the key is the collector's, and its values are only compared with null.
    let _ = unsafe { pthread_setspecific(key, (&raw const KEY).cast()) };
}

fn key(ended: extern "C" fn(*mut c_void)) -> Option<c_uint> {
    match KEY.load(Ordering::Relaxed) {
        0 => {}
        NO_KEY => return None,
        key => return Some(key - 1),
    }
    let mut key = 0;
    // SAFETY: the function writes the key, and the destructor takes any value.
    let is_made = unsafe { pthread_key_create(&raw mut key, ended) } == 0;
    let word = if is_made && key < KEYS_WITHOUT_MEMORY { key + 1 } else { NO_KEY };
    let before = KEY.compare_exchange(0, word, Ordering::Relaxed, Ordering::Relaxed);
    if is_made && (before.is_err() || word == NO_KEY) {
        // SAFETY: the key was made just now, and no thread uses the key.
        unsafe { pthread_key_delete(key) };
    }
    before.map_or_else(|other| other, |_| word).checked_sub(1).filter(|&key| key < KEYS_WITHOUT_MEMORY)
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

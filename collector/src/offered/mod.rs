//! The functions offered to the program: marks, pools of its own, pauses (`api/heapline.h`).
//!
//! An object with calls of the functions has a word, null at first, and a note that names the word.
//! The collector stores the address of `FUNCTIONS` in the words of all objects: of the objects
//! loaded at the start or at the attach, and of later objects when the program calls the loader
//! next ([`crate::attach::late`]). A detach makes the words null again.
//!
//! ```text
//! program: heapline_mark(text) ──> word null: nothing
//!                              ──> word: FUNCTIONS.mark(text, bytes) ──> records in the ring
//! ```

mod pools;

use crate::platform::objects::{self, LoadedObject};
use crate::platform::tls;
use crate::process;
use crate::thread::record::record;
use crate::thread::{Published, Thread, stack_pointer};
use crate::unwind::Entry;
use core::sync::atomic::{AtomicPtr, Ordering};
use heapline_shared_format::event::{self, Tracked};
use heapline_shared_format::query::{self, LONGEST_TEXT};

/// Version of [`Functions`]. A later version adds functions at the end.
const VERSION: u64 = 1;

/// Table of the functions, as `api/heapline.h` knows the table. Texts are bytes with a length.
#[repr(C)]
pub struct Functions {
    version: u64,
    mark: extern "C" fn(text: *const u8, bytes: usize),
    track: unsafe extern "C" fn(pool: *const u8, bytes: usize, address: usize, size: usize),
    untrack: extern "C" fn(pool: *const u8, bytes: usize, address: usize),
    pause: extern "C" fn(),
    resume: extern "C" fn(),
}

static FUNCTIONS: Functions = Functions { version: VERSION, mark, track, untrack, pause, resume };

/// Offers the functions to an object. The loader's lock is held.
pub fn offer(object: &LoadedObject) {
    set(object, (&raw const FUNCTIONS).cast_mut());
}

/// Offers the functions to all loaded objects.
pub fn offer_to_all() {
    objects::each(offer);
}

/// Takes the offer to an object back. The loader's lock is held.
pub fn withdraw(object: &LoadedObject) {
    set(object, core::ptr::null_mut());
}

fn set(object: &LoadedObject, functions: *mut Functions) {
    if object.calls != 0 {
        // SAFETY: the note of the object names an aligned word of the object, which the loader has
        // mapped writable. The program only loads the word.
        let word = unsafe { &*(object.calls as *const AtomicPtr<Functions>) };
        if word.load(Ordering::Relaxed) != functions {
            word.store(functions, Ordering::Release);
        }
    }
}

extern "C" fn mark(text: *const u8, bytes: usize) {
    if process::is_quiet() {
        return;
    }
    record(stack_pointer(), |thread| match tell(thread, text, bytes) {
        Published::Yes => publish(thread, query::MARK, 0),
        other => other,
    });
}

/// Records a block of a pool. The stack is that of the caller.
#[unsafe(naked)]
unsafe extern "C" fn track(pool: *const u8, bytes: usize, address: usize, size: usize) {
    enter_with_place!([pool bytes address size], tracked)
}

extern "C" fn tracked(pool: *const u8, bytes: usize, address: usize, size: usize, slot: usize, bp: usize) {
    let Some(number) = pool_number(pool, bytes) else { return };
    let entry = Entry { slot, bp };
    record(slot, |thread| match pools::tell(thread, number) {
        Published::Yes => thread.publish_with_stack(entry, |stamp, stack| {
            event::track(stamp, Tracked::Pool(number), address as u64, size as u64, stack)
        }),
        other => other,
    });
}

extern "C" fn untrack(pool: *const u8, bytes: usize, address: usize) {
    let Some(number) = pool_number(pool, bytes) else { return };
    record(stack_pointer(), |thread| match pools::tell(thread, number) {
        Published::Yes => thread.publish_plain(|stamp| event::untrack(stamp, Tracked::Pool(number), address as u64)),
        other => other,
    });
}

/// Returns the number of a pool. None where nothing is traced.
fn pool_number(pool: *const u8, bytes: usize) -> Option<u32> {
    if process::is_quiet() || pool.is_null() {
        return None;
    }
    // SAFETY: the program passes a text of this length.
    Some(pools::number(unsafe { core::slice::from_raw_parts(pool, bytes.min(pools::LONGEST_NAME)) }))
}

extern "C" fn pause() {
    let pauses = tls::pauses();
    tls::set_pauses(pauses.saturating_add(1));
    if pauses == 0 && !process::is_quiet() {
        record(stack_pointer(), |thread| publish(thread, query::PAUSE, 0));
    }
}

extern "C" fn resume() {
    let pauses = tls::pauses();
    tls::set_pauses(pauses.saturating_sub(1));
    if pauses == 1 && !process::is_quiet() {
        record(stack_pointer(), |thread| publish(thread, query::RESUME, 0));
    }
}

/// Tells the reader of a new ring that the thread is paused.
pub fn tell_pause(thread: &mut Thread) {
    if tls::pauses() != 0 {
        publish(thread, query::PAUSE, 0);
    }
}

/// Makes a text the text of the ring. A long text is cut.
fn tell(thread: &mut Thread, text: *const u8, bytes: usize) -> Published {
    if text.is_null() {
        return Published::Yes;
    }
    // SAFETY: the program passes a text of this length.
    let text = unsafe { core::slice::from_raw_parts(text, bytes.min(LONGEST_TEXT)) };
    for piece in text.chunks(2 * size_of::<u64>()) {
        let mut words = [0u64; 2];
        for (i, &byte) in piece.iter().enumerate() {
            words[i / 8] |= u64::from(byte) << (i % 8 * 8);
        }
        let published = thread.publish_plain(|stamp| event::query(stamp, 0, query::TEXT, words));
        if published != Published::Yes {
            return published;
        }
    }
    Published::Yes
}

fn publish(thread: &mut Thread, what: u32, argument: u64) -> Published {
    thread.publish_plain(|stamp| event::query(stamp, 0, what, [argument, 0]))
}

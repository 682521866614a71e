//! Recording samples instead of everything: what happens around each call then.
//!
//! ```text
//! an allocation ──> count it, walk on by its size ──> not there yet: that is all
//!                                                 ──> [`sampler`] the block is a sample: note it in [`blocks`], record it
//! a free        ──> count it ──> not in [`blocks`]: that is all
//!                            ──> take it out, record it
//! ```
//!
//! Samples are points in the stream of bytes that a thread allocates, at exponentially distributed distances: each byte is
//! as likely as any other, so a block of S bytes is recorded with probability 1 - exp(-S/R), where R is the interval in
//! bytes. Whoever adds up divides by that. Which blocks are samples is noted in the process's own memory, which a forked
//! child has too, so a free needs no word with anybody, and none of a recorded block is missed.
//!
//! All calls and bytes are counted besides, exactly, in the thread's slot.

pub mod blocks;
pub mod sampler;

use crate::hooks;
use crate::process;
use crate::thread::{Published, Thread};
use crate::tls;
use crate::unwind::Entry;
use core::cell::Cell;
use heapline_shared_format::arena::Loss;
use heapline_shared_format::event::{self, domain};

/// The block's name in [`blocks`]: both layers may have one at the same address.
fn key(block: *mut u8, domain: u8) -> u64 {
    block.addr() as u64 | u64::from(domain)
}

/// The calling thread's state, where it is of the present session and nothing is to be done first.
#[inline(always)]
fn ready() -> Option<&'static mut Thread> {
    // SAFETY: the word points to this thread's state; what is asked tells whether a hook is using it.
    unsafe { tls::thread().as_mut() }.filter(|thread| thread.is_at_rest() && thread.is_current())
}

/// A block was allocated; `publish` records it.
#[inline(always)]
pub fn allocated(block: *mut u8, size: usize, domain: u8, slot: usize, publish: impl Fn(&mut Thread) -> Published) {
    let is_counted = match ready() {
        Some(thread) => {
            if !thread.counts(block, size, domain) {
                return;
            }
            true
        }
        None => false,
    };
    sampled(block, size, domain, is_counted, slot, publish);
}

/// Apart, so that the way of most blocks saves no registers for it.
#[cold]
#[inline(never)]
fn sampled(
    block: *mut u8,
    size: usize,
    domain: u8,
    is_counted: bool,
    slot: usize,
    publish: impl Fn(&mut Thread) -> Published,
) {
    let is_counted = Cell::new(is_counted);
    hooks::record(slot, |thread| {
        if is_over(thread, &is_counted) {
            return Published::Over;
        }
        if !is_counted.replace(true) && !thread.counts(block, size, domain) {
            return Published::Yes;
        }
        let published = thread.publish_sample(key(block, domain), domain, &publish);
        if published == Published::Over {
            is_counted.set(false);
        }
        published
    });
}

/// Whether the thread's session is over: the one that begins counts the call anew.
fn is_over(thread: &mut Thread, is_counted: &Cell<bool>) -> bool {
    let is_over = !thread.is_current() && thread.renew() == Published::Over;
    if is_over {
        is_counted.set(false);
    }
    is_over
}

/// A block is about to be freed; `publish` records that.
#[inline(always)]
pub fn freeing(block: *mut u8, domain: u8, slot: usize, publish: impl Fn(&mut Thread) -> Published) {
    let is_counted = match ready() {
        Some(thread) => {
            thread.count_free(domain);
            true
        }
        None => false,
    };
    if !is_counted || blocks::may_have(key(block, domain)) {
        freeing_slowly(block, domain, is_counted, slot, publish);
    }
}

#[cold]
#[inline(never)]
fn freeing_slowly(
    block: *mut u8,
    domain: u8,
    is_counted: bool,
    slot: usize,
    publish: impl Fn(&mut Thread) -> Published,
) {
    let is_counted = Cell::new(is_counted);
    hooks::record(slot, |thread| {
        if is_over(thread, &is_counted) {
            return Published::Over;
        }
        if !is_counted.replace(true) {
            thread.count_free(domain);
        }
        if blocks::take(key(block, domain)) { publish(thread) } else { Published::Yes }
    });
}

/// Whether a block that a record is about is a sample.
pub fn has(block: *mut u8, domain: u8) -> bool {
    blocks::may_have(key(block, domain)) && blocks::has(key(block, domain))
}

/// A block that is about to be reallocated: whether it was a sample, and is none any more.
pub fn leaves(block: *mut u8, domain: u8) -> bool {
    blocks::may_have(key(block, domain)) && blocks::take(key(block, domain))
}

/// It was not reallocated after all.
pub fn stays(block: *mut u8, domain: u8) {
    blocks::insert(key(block, domain));
}

/// A native block was allocated.
#[inline(always)]
pub fn native_allocated(block: *mut u8, size: usize, entry: Entry) {
    allocated(block, size, domain::NATIVE, entry.slot, |thread| {
        thread.publish_with_stack(entry, |stamp, stack| event::alloc(stamp, block.addr() as u64, size as u64, stack))
    });
}

/// A native block is about to be freed.
#[inline(always)]
pub fn native_freeing(block: *mut u8, slot: usize) {
    freeing(block, domain::NATIVE, slot, |thread| {
        thread.publish_plain(|stamp| event::free(stamp, block.addr() as u64))
    });
}

/// Around a call of realloc with a block: `call` makes it.
///
/// The old block leaves before the call, since another thread may be given its address, and the new one is an allocation like any
/// other.
pub fn reallocating(
    (old, size, domain, slot): (*mut u8, usize, u8, usize),
    call: impl FnOnce() -> *mut u8,
    allocated: impl FnOnce(*mut u8),
) -> *mut u8 {
    let was_sample = leaves(old, domain);
    let ends = |freed| {
        let address = old.addr() as u64;
        hooks::record(slot, |thread| {
            thread.publish_plain(|stamp| event::in_domain(event::realloc_end(stamp, address, freed), domain))
        });
    };
    if was_sample {
        let address = old.addr() as u64;
        hooks::record(slot, |thread| {
            thread.publish_plain(|stamp| event::in_domain(event::realloc(stamp, address), domain))
        });
    }
    let block = call();
    // With size 0 nothing came back because the block was freed; a failure leaves it alone.
    let is_freed = !block.is_null() || size == 0;
    if was_sample {
        if !is_freed {
            stays(old, domain);
        }
        ends(is_freed);
    }
    if is_freed && let Some(thread) = ready() {
        thread.count_free(domain);
    }
    if !block.is_null() {
        allocated(block);
    }
    block
}

impl Thread {
    /// Records a block that is a sample, and decides where the next one is.
    fn publish_sample(&mut self, key: u64, domain: u8, publish: impl Fn(&mut Thread) -> Published) -> Published {
        let interval = self.sampler(domain).interval();
        let told = self.tell_interval(interval);
        if told != Published::Yes {
            return told;
        }
        let is_noted = blocks::insert(key);
        let published = if is_noted { publish(self) } else { Published::Yes };
        if published != Published::Yes {
            blocks::take(key);
            return published;
        }
        let Some(process) = process::get() else { return published };
        if !is_noted {
            process.count_loss(Loss::Memory);
        }
        let interval = process.header().session.sample.load(core::sync::atomic::Ordering::Relaxed);
        self.sampler(domain).draw(interval);
        published
    }
}

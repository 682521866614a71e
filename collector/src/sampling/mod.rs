//! Recording samples instead of everything: what happens around each call then.
//!
//! ```text
//! an allocation ──> count it, walk on by its size ──> [`sampler`] not there yet: that is all
//!                                                 ──> the block is a sample: note it in [`blocks`], record it
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

use crate::process;
use crate::thread::record::record;
use crate::thread::thread_state;
use crate::thread::{Published, Thread};
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
    unsafe { thread_state().as_mut() }.filter(|thread| thread.is_at_rest() && thread.is_current())
}

/// What a call is at first sight.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// It is counted, and that is all.
    Plain,
    /// It is counted. The block allocated is a sample; the block freed may be one.
    OfSample,
    /// It is not counted yet: the thread is not ready.
    Uncounted,
}

/// A block is allocated: first sight. What is not plain goes to [`sampled`].
#[inline(always)]
pub fn allocated(size: usize, domain: u8) -> Call {
    let Some(thread) = ready() else { return Call::Uncounted };
    if thread.counts(size, domain) { Call::OfSample } else { Call::Plain }
}

/// A block is about to be freed: first sight. What is not plain goes to [`sample_freeing`].
#[inline(always)]
pub fn freeing(block: *mut u8, domain: u8) -> Call {
    let Some(thread) = ready() else { return Call::Uncounted };
    thread.count_free(domain);
    if blocks::may_have(key(block, domain)) { Call::OfSample } else { Call::Plain }
}

/// Second sight of a block that was allocated by a hook entered at `slot`; `publish` records it. Apart, and best called by a cold
/// function of values only, so that the way of most blocks saves nothing for it.
pub fn sampled(
    (block, size, domain): (*mut u8, usize, u8),
    call: Call,
    slot: usize,
    publish: impl Fn(&mut Thread) -> Published,
) {
    let is_counted = Cell::new(call != Call::Uncounted);
    record(slot, |thread| {
        if is_over(thread, &is_counted) {
            return Published::Over;
        }
        if !is_counted.replace(true) && !thread.counts(size, domain) {
            return Published::Yes;
        }
        let published = thread.publish_sample(key(block, domain), domain, &publish);
        if published == Published::Over {
            is_counted.set(false);
        }
        published
    });
}

/// Likewise of a free.
pub fn sample_freeing(
    (block, domain): (*mut u8, u8),
    call: Call,
    slot: usize,
    publish: impl Fn(&mut Thread) -> Published,
) {
    let is_counted = Cell::new(call != Call::Uncounted);
    record(slot, |thread| {
        if is_over(thread, &is_counted) {
            return Published::Over;
        }
        if !is_counted.replace(true) {
            thread.count_free(domain);
        }
        if blocks::take(key(block, domain)) { publish(thread) } else { Published::Yes }
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

/// Around a call that allocates a native block: `make` makes it.
///
/// It is counted before, so that nothing has to be done after it, which would cost as much as all the rest. So a call that finds
/// no memory is counted too, unless it asked for so much that it would have been a sample.
#[inline(always)]
pub fn native_allocating(size: usize, entry: Entry, make: impl FnOnce() -> *mut u8) -> *mut u8 {
    match allocated(size, domain::NATIVE) {
        Call::Plain => make(),
        call => native_allocating_slowly(size, entry, call, make),
    }
}

#[cold]
#[inline(never)]
fn native_allocating_slowly(size: usize, entry: Entry, call: Call, make: impl FnOnce() -> *mut u8) -> *mut u8 {
    let block = make();
    if !block.is_null() {
        native_sampled(block, size, entry, call);
    } else if call != Call::Uncounted
        && let Some(thread) = ready()
    {
        thread.uncounts(size, domain::NATIVE);
    }
    block
}

/// A native block was allocated.
#[inline(always)]
pub fn native_allocated(block: *mut u8, size: usize, entry: Entry) {
    let call = allocated(size, domain::NATIVE);
    if call != Call::Plain {
        native_sampled(block, size, entry, call);
    }
}

#[cold]
#[inline(never)]
fn native_sampled(block: *mut u8, size: usize, entry: Entry, call: Call) {
    sampled((block, size, domain::NATIVE), call, entry.slot, |thread| {
        thread.publish_with_stack(entry, |stamp, stack| event::alloc(stamp, block.addr() as u64, size as u64, stack))
    });
}

/// A native block is about to be freed: second sight.
#[cold]
#[inline(never)]
pub fn native_sample_freeing(block: *mut u8, slot: usize, call: Call) {
    sample_freeing((block, domain::NATIVE), call, slot, |thread| {
        thread.publish_plain(|stamp| event::free(stamp, block.addr() as u64))
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

/// Around a call of realloc with a block: `call` makes it.
///
/// The old block leaves before the call, since another thread may be given its address, and the new one is an allocation like any
/// other.
pub fn reallocating(
    (old, size, domain, slot): (*mut u8, usize, u8, usize),
    call: impl FnOnce() -> *mut u8,
    allocated: impl FnOnce(*mut u8),
) -> *mut u8 {
    let was_sample = reallocation_begins(old, domain, slot);
    let block = call();
    // With size 0 nothing came back because the block was freed; a failure leaves it alone.
    let is_gone = !block.is_null() || size == 0;
    reallocation_ends((old, domain), was_sample, is_gone, slot);
    if !block.is_null() {
        allocated(block);
    }
    block
}

/// Records that a block leaves to be reallocated by a hook entered at `slot`. Returns whether the block was a sample.
pub fn reallocation_begins(old: *mut u8, domain: u8, slot: usize) -> bool {
    let was_sample = leaves(old, domain);
    if was_sample {
        let address = old.addr() as u64;
        record(slot, |thread| thread.publish_plain(|stamp| event::in_domain(event::realloc(stamp, address), domain)));
    }
    was_sample
}

/// Records what has become of the block: gone, or as it was.
pub fn reallocation_ends((old, domain): (*mut u8, u8), was_sample: bool, is_gone: bool, slot: usize) {
    if was_sample {
        if !is_gone {
            stays(old, domain);
        }
        let address = old.addr() as u64;
        record(slot, |thread| {
            thread.publish_plain(|stamp| event::in_domain(event::realloc_end(stamp, address, is_gone), domain))
        });
    }
    if is_gone && let Some(thread) = ready() {
        thread.count_free(domain);
    }
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

//! Recording samples instead of all events: the steps around each call.
//!
//! ```text
//! an allocation ──> count it, advance [`sampler`] by its size
//!                     ──> sample point not reached: done
//!                     ──> reached: note the block in [`blocks`], record it
//! a free        ──> count it
//!                     ──> not in [`blocks`]: done
//!                     ──> in [`blocks`]: take it out, record it
//! ```
//!
//! Sample points lie in the stream of bytes allocated by a thread, at exponentially distributed
//! distances. Each byte is as likely as any other, so a block of S bytes is recorded with
//! probability 1 - exp(-S/R), where R is the interval in bytes. Sums are corrected by dividing by
//! this probability.
//!
//! The sampled blocks are noted in memory of the process, inherited by a forked child. So a free
//! needs no communication, and no free of a recorded block is missed.
//!
//! In addition, all calls and bytes are counted exactly, in the thread's slot.

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

/// Key of a block in [`blocks`]. Contains the domain, since both domains may have a block at the
/// same address.
fn key(block: *mut u8, domain: u8) -> u64 {
    block.addr() as u64 | u64::from(domain)
}

/// Returns the calling thread's state. None if the thread needs preparation first or belongs to
/// another session.
#[inline(always)]
fn ready() -> Option<&'static mut Thread> {
    // SAFETY: the word points to this thread's state; `is_at_rest` tells whether a hook is using
    // the state.
    unsafe { thread_state().as_mut() }.filter(|thread| thread.is_at_rest() && thread.is_current())
}

/// Result of the first step of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// The call is counted, and needs no record.
    Plain,
    /// The call is counted. An allocated block is a sample; a freed block may be a sample.
    OfSample,
    /// The call is not counted yet, because the thread is not ready.
    Uncounted,
}

/// A block with the size that was asked for.
#[derive(Clone, Copy)]
pub struct Allocation {
    /// The block; in a reallocation the old one.
    pub block: *mut u8,
    /// Bytes that were asked for.
    pub size: usize,
    /// Domain of the block.
    pub domain: u8,
}

/// A block with its domain.
#[derive(Clone, Copy)]
pub struct Held {
    /// The block.
    pub block: *mut u8,
    /// Domain of the block.
    pub domain: u8,
}

/// First step of an allocation: counts the call. Any result but `Plain` requires a call of
/// [`sampled`].
#[inline(always)]
pub fn allocated(size: usize, domain: u8) -> Call {
    let Some(thread) = ready() else { return Call::Uncounted };
    if thread.counts(size, domain) { Call::OfSample } else { Call::Plain }
}

/// First step of a free: counts the call. Any result but `Plain` requires a call of
/// [`sample_freeing`].
#[inline(always)]
pub fn freeing(block: *mut u8, domain: u8) -> Call {
    let Some(thread) = ready() else { return Call::Uncounted };
    thread.count_free(domain);
    if blocks::may_have(key(block, domain)) { Call::OfSample } else { Call::Plain }
}

/// Second step of an allocation: records the block with `publish` if the block is a sample. `slot`
/// is the stack address where the hook was entered.
///
/// A separate function, best called by a cold function with values only, so that the path of most
/// blocks saves no registers.
pub fn sampled(
    Allocation { block, size, domain }: Allocation,
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

/// Second step of a free: records the free with `publish` if the block is a sample. `slot` is the
/// stack address where the hook was entered.
pub fn sample_freeing(
    Held { block, domain }: Held,
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

/// Whether the thread's session is over. The next session counts the call anew.
fn is_over(thread: &mut Thread, is_counted: &Cell<bool>) -> bool {
    let is_over = !thread.is_current() && thread.renew() == Published::Over;
    if is_over {
        is_counted.set(false);
    }
    is_over
}

/// Runs a call that allocates a native block. `make` makes the call.
///
/// The call is counted before, so that most calls have nothing to do afterwards; work afterwards
/// would cost as much as all the rest. So a failed call is counted too, unless the requested block
/// would have been a sample.
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

/// Counts an allocated native block, and records a sample.
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
    sampled(Allocation { block, size, domain: domain::NATIVE }, call, entry.slot, |thread| {
        thread.publish_with_stack(entry, |stamp, stack| event::alloc(stamp, block.addr() as u64, size as u64, stack))
    });
}

/// Second step of the free of a native block.
#[cold]
#[inline(never)]
pub fn native_sample_freeing(block: *mut u8, slot: usize, call: Call) {
    sample_freeing(Held { block, domain: domain::NATIVE }, call, slot, |thread| {
        thread.publish_plain(|stamp| event::free(stamp, block.addr() as u64))
    });
}

/// Whether a block is a sample.
pub fn has(block: *mut u8, domain: u8) -> bool {
    blocks::may_have(key(block, domain)) && blocks::has(key(block, domain))
}

/// Takes a block about to be reallocated out of the samples. Returns whether the block was a
/// sample.
pub fn leaves(block: *mut u8, domain: u8) -> bool {
    blocks::may_have(key(block, domain)) && blocks::take(key(block, domain))
}

/// Makes a block a sample again after a failed reallocation.
pub fn stays(block: *mut u8, domain: u8) {
    blocks::insert(key(block, domain));
}

/// Runs a call of realloc with an old block. `call` makes the call.
///
/// The old block leaves the samples before the call, since another thread may be given the address.
/// The new block is an allocation like any other.
pub fn reallocating(
    Allocation { block: old, size, domain }: Allocation,
    slot: usize,
    call: impl FnOnce() -> *mut u8,
    allocated: impl FnOnce(*mut u8),
) -> *mut u8 {
    let was_sample = reallocation_begins(old, domain, slot);
    let block = call();
    // With size 0 a null result means a freed block; otherwise null means failure, and the block
    // stays.
    let is_gone = !block.is_null() || size == 0;
    reallocation_ends(Held { block: old, domain }, was_sample, is_gone, slot);
    if !block.is_null() {
        allocated(block);
    }
    block
}

/// Records the begin of a reallocation by a hook entered at stack address `slot`. Returns whether
/// the block was a sample.
pub fn reallocation_begins(old: *mut u8, domain: u8, slot: usize) -> bool {
    let was_sample = leaves(old, domain);
    if was_sample {
        let address = old.addr() as u64;
        record(slot, |thread| thread.publish_plain(|stamp| event::in_domain(event::realloc(stamp, address), domain)));
    }
    was_sample
}

/// Records the end of a reallocation: the block is gone, or stays as it was.
pub fn reallocation_ends(Held { block: old, domain }: Held, was_sample: bool, is_gone: bool, slot: usize) {
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
    /// Records a sampled block, and draws the next sample point.
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

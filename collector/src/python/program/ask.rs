//! Questions to the aggregator ([`heapline_shared_format::query`]), and waiting for the answer.
//!
//! A question goes through the thread's ring like any event, so the answer holds for the question's
//! place in the order of events. The interpreter's lock stays taken meanwhile, as in CPython's own
//! tracemalloc. Waiting ends in one of three ways:
//!
//! 1. The aggregator answers.
//! 2. The aggregator or its session ends.
//! 3. Ten seconds pass without an answer. Tracing ends then too.

use crate::platform::{sys, tls};
use crate::process;
use crate::process::Process;
use crate::thread::record::record;
use crate::thread::{Published, stack_pointer};
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use heapline_shared_format::arena::{ASKS_LONG, Header, MAIL_BYTES, SLEEPS, end_cause};
use heapline_shared_format::{event, query};

/// Number of looks before the thread sleeps: about the time taken by an aggregator already awake.
const SPINS: u32 = 4000;
const NAP_NANOSECONDS: u64 = 20_000_000;
const PATIENCE_NANOSECONDS: u64 = 10_000_000_000;
const SHORT_NAP_NANOSECONDS: u64 = 50_000;
const MOST_SHORT_NAPS: u64 = PATIENCE_NANOSECONDS / SHORT_NAP_NANOSECONDS;

static NUMBER: AtomicU32 = AtomicU32::new(0);
/// Whether a thread is asking. There is a single place for answers, so threads ask in turn.
static IS_ASKING: AtomicBool = AtomicBool::new(false);

/// The place for answers, owned by the asking thread.
pub struct Answers(&'static Process);

impl Answers {
    /// Waits for the place. None if no aggregator answers.
    pub fn await_place() -> Option<Answers> {
        let process = process::get().filter(|process| process.is_answered())?;
        let mut naps = 0;
        while IS_ASKING.swap(true, Ordering::Acquire) {
            naps += 1;
            if !process.is_answered() || naps > MOST_SHORT_NAPS {
                return None;
            }
            // Interpreters with locks of their own may ask at the same time. Nobody sets this word:
            // the wait is a short sleep.
            sys::futex_wait(&AtomicU32::new(0), 0, SHORT_NAP_NANOSECONDS);
        }
        Some(Answers(process))
    }

    fn header(&self) -> &'static Header {
        self.0.header()
    }

    /// Asks, and waits for the answer. None if no answer comes.
    pub fn ask(&mut self, asked: u32, arguments: [u64; 2]) -> Option<()> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let header = self.header();
        let asking = &header.mail.asking;
        let weight = if matches!(asked, query::TRACES | query::MORE) { ASKS_LONG } else { 1 };
        let session = header.session.number.load(Ordering::Acquire);
        publish(number, asked, arguments).then_some(()).and_then(|()| {
            // The aggregator's drain does not sleep while a thread waits.
            asking.fetch_add(weight, Ordering::AcqRel);
            self.0.wake_aggregator();
            let answered = self.wait(number, session);
            asking.fetch_sub(weight, Ordering::AcqRel);
            answered
        })
    }

    fn wait(&self, number: u32, session: u32) -> Option<()> {
        let answered = &self.header().mail.answered;
        for _ in 0..SPINS {
            // Acquire pairs with the aggregator's Release: the answer is complete when its number
            // is visible.
            if answered.load(Ordering::Acquire) == number {
                return Some(());
            }
            core::hint::spin_loop();
        }
        let asking = &self.header().mail.asking;
        asking.fetch_add(SLEEPS, Ordering::SeqCst);
        let is_answered = self.sleep(answered, number, session);
        asking.fetch_sub(SLEEPS, Ordering::SeqCst);
        is_answered
    }

    fn sleep(&self, answered: &AtomicU32, number: u32, session: u32) -> Option<()> {
        let begun = sys::monotonic();
        loop {
            let seen = answered.load(Ordering::SeqCst);
            if seen == number {
                return Some(());
            }
            // Another aggregator does not know the question.
            if !self.0.is_answered() || self.header().session.number.load(Ordering::Acquire) != session {
                return None;
            }
            if sys::monotonic() - begun > PATIENCE_NANOSECONDS {
                process::end(end_cause::STALLED);
                return None;
            }
            sys::futex_wait(answered, seen, NAP_NANOSECONDS);
        }
    }

    /// The numbers of the last answer.
    pub fn numbers(&self) -> [u64; 2] {
        self.header().mail.numbers.each_ref().map(|number| number.load(Ordering::Relaxed))
    }

    /// The text of the last answer. Asks for the remaining pieces.
    pub fn text(&mut self) -> Option<Text> {
        let bytes = usize::try_from(self.header().mail.bytes.load(Ordering::Relaxed)).ok()?;
        let text = Text { memory: process::map_own(bytes.next_multiple_of(MAIL_BYTES))?.cast(), bytes };
        let mut done = 0;
        loop {
            let pieces = self.0.arena().mail().iter();
            for (i, word) in pieces.take((bytes - done).div_ceil(8)).enumerate() {
                // SAFETY: the memory has room for all pieces.
                unsafe { text.memory.add(done / 8 + i).write(word.load(Ordering::Relaxed)) };
            }
            done += MAIL_BYTES;
            if done >= bytes {
                return Some(text);
            }
            self.ask(query::MORE, [done as u64, 0])?;
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        IS_ASKING.store(false, Ordering::Release);
    }
}

/// Runs `make` so that the objects made are not counted to the program, as in CPython's own module.
/// An object in a block from a free list leaves the block to the line that had the block.
pub fn hidden<R>(make: impl FnOnce() -> R) -> R {
    publish(0, query::HIDE, [0; 2]);
    tls::set_hides(1);
    let made = make();
    tls::set_hides(0);
    publish(0, query::SHOW, [0; 2]);
    made
}

/// Tells the aggregator of unseen blocks of the interpreter.
pub fn tell_unseen() {
    publish(0, query::UNSEEN, [0; 2]);
}

/// Writes a query record. Returns whether the record is in the ring.
fn publish(number: u32, asked: u32, arguments: [u64; 2]) -> bool {
    let is_published = Cell::new(false);
    record(stack_pointer(), |thread| {
        let published = thread.publish_plain(|stamp| event::query(stamp, number, asked, arguments));
        is_published.set(published == Published::Yes);
        published
    });
    is_published.get()
}

/// A copy of an answer's text.
pub struct Text {
    memory: *mut u64,
    bytes: usize,
}

impl Text {
    /// The words of the text.
    pub fn words(&self) -> &[u32] {
        // SAFETY: mapped for `bytes` bytes, and written by `Answers::text`.
        unsafe { core::slice::from_raw_parts(self.memory.cast(), self.bytes / 4) }
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        // SAFETY: mapped by `Answers::text`; nobody borrows the text any more.
        unsafe { process::unmap_own(self.memory.cast(), self.bytes.next_multiple_of(MAIL_BYTES)) };
    }
}

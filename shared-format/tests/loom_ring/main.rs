//! Model test of the ring and of the free list. loom runs every order of loads and stores (up to a
//! number of preemptions), with the weak memory allowed by the orderings.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p heapline-shared-format --no-default-features \
//!     --test loom_ring --release
//! ```
//!
//! A model test that cannot fail proves nothing. So the same models also run on mutants, and must
//! fail.
#![cfg(loom)]

mod parts;

use heapline_shared_format::arena::{Arena, SEGMENT_WORDS};
use heapline_shared_format::event::{self, Event, decode};
use heapline_shared_format::ring::{Consumer, Ledger, Producer};
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use parts::Parts;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Number of words of each record of a run. With segments of 8 words, the records need three
/// segments: the first is filled exactly, the second ends in a pad.
const RECORDS: [usize; 7] = [3, 3, 2, 3, 2, 2, 3];

fn record(number: usize) -> Vec<u64> {
    let i = number as u64;
    if RECORDS[number] == 3 { event::alloc(i, i + 100, i + 200, 7).to_vec() } else { event::free(i, i + 100).to_vec() }
}

/// Writes records into a ring: the real producer, or a mutant.
trait Write {
    /// Writes `record` to the present segment. The segment must have room.
    fn write(&mut self, record: &[u64]);
    fn room(&self) -> usize;
    fn extend(&mut self, segment: u32);
}

/// The real producer.
struct Real {
    arena: Arena,
    producer: Producer,
}

impl Write for Real {
    fn write(&mut self, record: &[u64]) {
        // SAFETY: the caller checked that the segment has room for the record.
        unsafe {
            match *record {
                [a, b] => self.producer.write([a, b]),
                [a, b, c] => self.producer.write([a, b, c]),
                ref other => self.producer.write_parts(&other[..1], other[1..].iter().copied()),
            }
        }
    }
    fn room(&self) -> usize {
        self.producer.room()
    }
    fn extend(&mut self, segment: u32) {
        // SAFETY: the ring is open on this arena, and the segment was just taken from the pool.
        assert!(unsafe { self.producer.extend(&self.arena, segment) });
    }
}

/// The fault of a mutant.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// No fault: shows that the fault, not the copied code, makes the model fail.
    None,
    /// The head is stored before the words.
    PublishFirst,
    /// The head is stored with Relaxed.
    PublishRelaxed,
    /// The link to the next segment is stored after the publication of the first record in the
    /// segment.
    LinkLate,
}

/// A copy of the producer in the simplest form, with a fault.
struct Mutant {
    arena: Arena,
    segment: u32,
    used: usize,
    head: u64,
    late_link: Option<(u32, u32)>,
    fault: Fault,
}

impl Mutant {
    fn publish(&mut self, words: usize) {
        self.head += words as u64 * 8;
        let order = if self.fault == Fault::PublishRelaxed { Ordering::Relaxed } else { Ordering::Release };
        self.arena.slot(0).expect("slot 0").head.store(self.head, order);
    }

    fn link(&self, from: u32, to: u32) {
        self.arena.segment_link(from).expect("of the pool").store(to, Ordering::Relaxed);
    }
}

impl Write for Mutant {
    fn write(&mut self, record: &[u64]) {
        if self.fault == Fault::PublishFirst {
            self.publish(record.len());
        }
        let words = self.arena.segment(self.segment).expect("of the pool");
        for (at, &word) in words[self.used..].iter().zip(record) {
            at.store(word, Ordering::Relaxed);
        }
        self.used += record.len();
        if self.fault != Fault::PublishFirst {
            self.publish(record.len());
        }
        if let Some((from, to)) = self.late_link.take() {
            self.link(from, to);
        }
    }

    fn room(&self) -> usize {
        SEGMENT_WORDS - self.used
    }

    fn extend(&mut self, segment: u32) {
        if self.room() > 0 {
            let words = self.arena.segment(self.segment).expect("of the pool");
            words[self.used].store(event::pad(self.room()), Ordering::Relaxed);
        }
        if self.fault == Fault::LinkLate {
            self.late_link = Some((self.segment, segment));
        } else {
            self.link(self.segment, segment);
        }
        self.head += self.room() as u64 * 8;
        (self.segment, self.used) = (segment, 0);
    }
}

/// A ledger that gives segments back to the pool. Panics when the ring takes a segment twice.
struct Pool {
    arena: Arena,
    held: Vec<u32>,
}

impl Ledger for Pool {
    fn enter(&mut self, segment: u32) -> bool {
        assert!(!self.held.contains(&segment), "segment {segment} is entered twice");
        self.held.push(segment);
        true
    }
    fn leave(&mut self, segment: u32) {
        let at = self.held.iter().position(|&s| s == segment).expect("only what was entered is left");
        self.held.remove(at);
        self.arena.free_segments().push(segment);
    }
}

/// Runs a producer and a consumer on a pool of `segments` segments. Every record must arrive whole,
/// in order, once.
fn ring_model(segments: u32, open: impl Fn(Arena, u32) -> Box<dyn Write> + Send + Sync + Copy + 'static) {
    let parts = Arc::new(Parts::new(1, segments));
    let arena = parts.arena();
    let first = arena.free_segments().pop().expect("a full pool");
    arena.slot(0).expect("slot 0").first_segment.store(first, Ordering::Relaxed);

    let producer = thread::spawn(move || {
        let mut producer = open(arena, first);
        for record in (0..RECORDS.len()).map(record) {
            if producer.room() < record.len() {
                let segment = loop {
                    match arena.free_segments().pop() {
                        Some(segment) => break segment,
                        None => thread::yield_now(),
                    }
                };
                producer.extend(segment);
            }
            producer.write(&record);
        }
    });

    let slot = arena.slot(0).expect("slot 0");
    let mut pool = Pool { arena, held: Vec::new() };
    let mut consumer = Consumer::open(slot, &mut pool).expect("a segment of the pool");
    let mut next = 0;
    while next < RECORDS.len() {
        let mut words = Vec::new();
        let copy = |part: &[AtomicU64]| words.extend(part.iter().map(|w| w.load(Ordering::Relaxed)));
        if consumer.drain(&arena, slot, &mut pool, copy).expect("an honest producer") == 0 {
            thread::yield_now();
        }
        next = check(&words, next);
    }
    producer.join().expect("the producer ends");
    assert_eq!(next, RECORDS.len());
    consumer.close(&mut pool);
    let list = arena.free_segments();
    assert_eq!(std::iter::from_fn(|| list.pop()).count(), segments as usize, "every segment comes back");
    drop(parts);
}

/// Checks that `words` are the records from number `next` on. Returns the number of the first
/// missing record.
fn check(words: &[u64], mut next: usize) -> usize {
    let mut rest = words;
    while !rest.is_empty() {
        let (event, n) = decode(rest).expect("whole records");
        if event != Event::Pad {
            assert_eq!(rest[..n], record(next), "record {next}");
            next += 1;
        }
        rest = &rest[n..];
    }
    next
}

fn open_real(arena: Arena, first: u32) -> Box<dyn Write> {
    // SAFETY: the model keeps the parts until its end, and only this thread uses the slot and the
    // segment.
    let producer = unsafe { Producer::open(&arena, 0, first) }.expect("indices from the arena");
    Box::new(Real { arena, producer })
}

fn open_mutant(arena: Arena, segment: u32, fault: Fault) -> Box<dyn Write> {
    Box::new(Mutant { arena, segment, used: 0, head: 0, late_link: None, fault })
}

/// Explores `model` with up to `preemptions` switches at points where the running thread could
/// continue.
fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(model);
}

/// Whether loom finds an order of events in which the model fails.
fn is_caught(preemptions: usize, model: impl Fn() + Sync + Send + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| explore(preemptions, model))).is_err()
}

#[test]
fn records_arrive_whole_in_order_once() {
    explore(2, || ring_model(3, open_real));
}

#[test]
fn a_pool_of_two_segments_is_enough() {
    explore(2, || ring_model(2, open_real));
}

#[test]
fn the_plain_copy_without_a_fault_passes() {
    explore(2, || ring_model(2, |arena, first| open_mutant(arena, first, Fault::None)));
}

#[test]
fn publishing_before_writing_is_caught() {
    assert!(is_caught(2, || ring_model(3, |arena, first| open_mutant(arena, first, Fault::PublishFirst))));
}

#[test]
fn publishing_without_release_is_caught() {
    assert!(is_caught(2, || ring_model(3, |arena, first| open_mutant(arena, first, Fault::PublishRelaxed))));
}

#[test]
fn linking_after_publishing_is_caught() {
    assert!(is_caught(2, || ring_model(3, |arena, first| open_mutant(arena, first, Fault::LinkLate))));
}

/// Operations of a free list: the real list, or a mutant without a tag.
trait List: Send + Sync {
    fn pop(&self) -> Option<u32>;
    fn push(&self, index: u32);
}

struct Tagged(Arena, #[expect(dead_code, reason = "keeps the arena's memory")] Arc<Parts>);

impl List for Tagged {
    fn pop(&self) -> Option<u32> {
        self.0.free_segments().pop()
    }
    fn push(&self, index: u32) {
        self.0.free_segments().push(index);
    }
}

/// The stack without the tag. A pop that sleeps through pop, pop, push mistakes an old link for the
/// present link.
struct Untagged {
    top: loom::sync::atomic::AtomicU32,
    links: Vec<loom::sync::atomic::AtomicU32>,
}

impl List for Untagged {
    fn pop(&self) -> Option<u32> {
        let mut top = self.top.load(Ordering::Acquire);
        loop {
            let index = top.checked_sub(1)?;
            let next = self.links[index as usize].load(Ordering::Relaxed);
            match self.top.compare_exchange(top, next, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(index),
                Err(now) => top = now,
            }
        }
    }
    fn push(&self, index: u32) {
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            self.links[index as usize].store(top, Ordering::Relaxed);
            match self.top.compare_exchange(top, index + 1, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }
}

fn tagged() -> Arc<dyn List> {
    let parts = Arc::new(Parts::new(1, 3));
    Arc::new(Tagged(parts.arena(), parts))
}

fn untagged() -> Arc<dyn List> {
    let list = Untagged {
        top: loom::sync::atomic::AtomicU32::new(0),
        links: (0..3).map(|_| loom::sync::atomic::AtomicU32::new(0)).collect(),
    };
    (0..3).rev().for_each(|i| list.push(i));
    Arc::new(list)
}

/// A thread takes an index. Another thread takes two indices and gives the first back (A, B, A). No
/// index may be held twice, and no index may get lost.
fn aba_model(list: Arc<dyn List>) {
    let popper = {
        let list = list.clone();
        thread::spawn(move || list.pop())
    };
    let a = list.pop();
    let b = list.pop();
    a.into_iter().for_each(|a| list.push(a));
    let taken = popper.join().expect("the popper ends");
    let mut all: Vec<u32> = b.into_iter().chain(taken).chain(std::iter::from_fn(|| list.pop())).collect();
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2], "each index is in one place");
}

/// Two threads take while a third gives back, like the target's threads and the aggregator.
fn contended_model(list: Arc<dyn List>) {
    let returned = list.pop().expect("three are free");
    let poppers = [(); 2].map(|()| {
        let list = list.clone();
        thread::spawn(move || list.pop().expect("two are free at any time"))
    });
    list.push(returned);
    let mut all: Vec<u32> = poppers.into_iter().map(|p| p.join().expect("the popper ends")).collect();
    all.extend(std::iter::from_fn(|| list.pop()));
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2], "each index is in one place");
}

#[test]
fn an_index_that_comes_back_is_no_old_one() {
    explore(3, || aba_model(tagged()));
}

#[test]
fn a_list_without_tags_is_caught() {
    assert!(is_caught(3, || aba_model(untagged())));
}

#[test]
fn two_take_while_one_gives_back() {
    explore(3, || contended_model(tagged()));
}

/// Checks that the taker of an index sees the giver's earlier writes, so the words of a segment can
/// be used again.
#[test]
fn a_giver_is_seen_by_the_taker() {
    explore(3, || {
        let parts = Arc::new(Parts::new(1, 2));
        let arena = parts.arena();
        let (a, _b) = (arena.free_segments().pop().expect("two"), arena.free_segments().pop().expect("one"));
        let giver = thread::spawn(move || {
            arena.segment(a).expect("of the pool")[0].store(42, Ordering::Relaxed);
            arena.free_segments().push(a);
        });
        if let Some(taken) = arena.free_segments().pop() {
            assert_eq!(taken, a);
            assert_eq!(arena.segment(a).expect("of the pool")[0].load(Ordering::Relaxed), 42);
        }
        giver.join().expect("the giver ends");
        drop(parts);
    });
}

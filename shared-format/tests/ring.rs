//! The ring against a naive queue, then with real threads. `loom_ring` tests orders of events that
//! are rare with real threads.
#![cfg(not(loom))]

mod common;

use common::{CheckedLedger, fresh_arena};
use heapline_shared_format::arena::{Arena, Geometry, MIN_SEGMENTS, SEGMENT_WORDS};
use heapline_shared_format::event::{self, Event, MAX_STACK_FRAMES, decode};
use heapline_shared_format::ring::{Consumer, Corrupt, Ledger, Producer};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

/// A ring with both ends in the same thread, and the reference queue for its behaviour.
struct Model {
    arena: Arena,
    producer: Producer,
    consumer: Consumer,
    owners: Vec<Option<u32>>,
    queue: VecDeque<Vec<u64>>,
    written: u64,
}

impl Model {
    fn new(arena: Arena) -> Model {
        let mut owners = vec![None; arena.geometry().segments as usize];
        let segment = arena.free_segments().pop().expect("a fresh pool");
        // SAFETY: the arena outlives the model, and no other producer uses the slot or the segment.
        let producer = unsafe { Producer::open(&arena, 0, segment) }.expect("indices from the arena");
        let mut ledger = CheckedLedger { arena, owners: &mut owners, ring: 0 };
        let consumer = Consumer::open(arena.slot(0).expect("slot 0"), &mut ledger).expect("a segment of the pool");
        Model { arena, producer, consumer, owners, queue: VecDeque::new(), written: 0 }
    }

    /// Writes a record of exactly `words` words (2, or 3 and more). Drains when the pool is empty.
    fn write(&mut self, words: usize) {
        if self.producer.room() < words {
            let segment = self.arena.free_segments().pop().or_else(|| {
                self.drain();
                self.arena.free_segments().pop()
            });
            let segment = segment.expect("a drained ring holds one segment only");
            // SAFETY: the ring is open on this arena, and the segment was just taken from the pool.
            assert!(unsafe { self.producer.extend(&self.arena, segment) });
        }
        let id = self.written;
        self.written += 1;
        let record = match words {
            2 => event::free(id, id << 4).to_vec(),
            3 => event::alloc(id, id << 4, id, 7).to_vec(),
            n => {
                let head = event::stack_head(n - 3, 0, 1, 2, false, false);
                head.into_iter().chain((0..n as u64 - 3).map(|i| id ^ i << 32)).collect()
            }
        };
        // SAFETY: the branch above made room for the record; a new segment holds any record.
        unsafe { self.producer.write_parts(&record[..2], record[2..].iter().copied()) };
        self.queue.push_back(record);
    }

    /// Writes records of 2 and 3 words until exactly `leave` words are left in the segment.
    fn fill(&mut self, leave: usize) {
        loop {
            match self.producer.room().checked_sub(leave) {
                None | Some(0 | 1) => return,
                Some(3) => self.write(3),
                Some(_) => self.write(2),
            }
        }
    }

    fn drain(&mut self) {
        self.drain_some(u64::MAX);
        assert_eq!(self.queue.len(), 0, "all that was published arrives");
    }

    fn drain_some(&mut self, most: u64) {
        let slot = self.arena.slot(0).expect("slot 0");
        let mut ledger = CheckedLedger { arena: self.arena, owners: &mut self.owners, ring: 0 };
        let mut words = Vec::new();
        let copy = |part: &[AtomicU64]| words.extend(part.iter().map(|w| w.load(Ordering::Relaxed)));
        let drained = self.consumer.drain_some(&self.arena, slot, &mut ledger, most, copy).expect("an honest producer");
        assert_eq!(drained.bytes, words.len() as u64 * 8);
        assert!(drained.bytes < most.saturating_add(SEGMENT_WORDS as u64 * 8), "at most one segment more");
        assert!(drained.bytes >= most || !drained.is_cut, "cut before the limit");
        let mut rest = &words[..];
        while !rest.is_empty() {
            let (event, n) = decode(rest).expect("a record that was written");
            if event != Event::Pad {
                assert_eq!(Some(rest[..n].to_vec()), self.queue.pop_front());
            }
            rest = &rest[n..];
        }
        assert_eq!(self.queue.is_empty(), !drained.is_cut);
    }

    /// Closes the ring, and checks that every segment comes back to the pool once.
    fn finish(mut self) {
        self.drain();
        self.consumer.close(&mut CheckedLedger { arena: self.arena, owners: &mut self.owners, ring: 0 });
        assert!(self.owners.iter().all(Option::is_none));
        let list = self.arena.free_segments();
        let mut back: Vec<u32> = std::iter::from_fn(|| list.pop()).collect();
        back.sort_unstable();
        assert!(back.into_iter().eq(0..self.arena.geometry().segments), "each segment comes back once");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Fill(usize),
    Drain,
    DrainSome(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (2_usize..4).prop_map(Step::Write),
        3 => (3..=3 + MAX_STACK_FRAMES).prop_map(Step::Write),
        2 => (0_usize..5).prop_map(Step::Fill),
        1 => Just(Step::Drain),
        1 => (1..3 * SEGMENT_WORDS as u64 * 8).prop_map(Step::DrainSome),
    ]
}

/// Configuration of proptest. Under miri: a few cases, and no file for failures.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    if cfg!(miri) { ProptestConfig { cases: 2, failure_persistence: None, ..config } } else { config }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn behaves_like_a_queue(steps in vec(step(), 0..if cfg!(miri) { 10 } else { 200 })) {
        let (_memory, arena) = fresh_arena(Geometry { slots: 1, segments: MIN_SEGMENTS });
        let mut model = Model::new(arena);
        for step in steps {
            match step {
                Step::Write(words) => model.write(words),
                Step::Fill(leave) => model.fill(leave),
                Step::Drain => model.drain(),
                Step::DrainSome(most) => model.drain_some(most),
            }
        }
        model.finish();
    }
}

#[test]
fn a_segment_filled_to_its_last_word_needs_no_pad() {
    let (_memory, arena) = fresh_arena(Geometry { slots: 1, segments: MIN_SEGMENTS });
    let mut model = Model::new(arena);
    model.fill(0);
    assert_eq!(model.producer.room(), 0);
    model.drain();
    assert_eq!(model.consumer.position(), SEGMENT_WORDS as u64 * 8);
    model.write(3);
    model.drain();
    assert_eq!(model.consumer.position(), SEGMENT_WORDS as u64 * 8 + 24);
    model.finish();
}

#[test]
fn the_whole_pool_can_be_in_one_ring() {
    let (_memory, arena) = fresh_arena(Geometry { slots: 1, segments: MIN_SEGMENTS });
    let mut model = Model::new(arena);
    for _ in 0..MIN_SEGMENTS {
        model.write(2);
        model.fill(0);
    }
    assert!(arena.free_segments().is_empty(), "one segment each");
    assert_eq!(model.queue.iter().map(Vec::len).sum::<usize>(), MIN_SEGMENTS as usize * SEGMENT_WORDS);
    model.finish();
}

#[test]
fn zeroed_memory_is_a_closed_ring() {
    let closed = Producer::closed();
    assert!(closed.is_closed());
    assert_eq!(closed.room(), 0);
    // SAFETY: null pointers and zeros are valid values of every field.
    let wiped: Producer = unsafe { std::mem::zeroed() };
    assert!(wiped.is_closed());
    assert_eq!(wiped.room(), 0);
}

#[test]
fn flight_is_visible_in_the_slot() {
    let (_memory, arena) = fresh_arena(Geometry { slots: 1, segments: MIN_SEGMENTS });
    let model = Model::new(arena);
    let in_flight = || arena.slot(0).expect("slot 0").in_flight.load(Ordering::Relaxed);
    assert_eq!(in_flight(), 0);
    // SAFETY: the ring of the model is open.
    unsafe { model.producer.take_off() };
    assert_eq!(in_flight(), 1);
    // SAFETY: the ring of the model is open.
    unsafe { model.producer.settle() };
    assert_eq!(in_flight(), 0);
}

/// A ledger that refuses every segment.
struct Refuse;

impl Ledger for Refuse {
    fn enter(&mut self, _: u32) -> bool {
        false
    }
    fn leave(&mut self, segment: u32) {
        panic!("segment {segment} was never entered");
    }
}

#[test]
fn what_no_producer_writes_is_corrupt() {
    let (_memory, arena) = fresh_arena(Geometry { slots: 1, segments: MIN_SEGMENTS });
    let slot = arena.slot(0).expect("slot 0");
    assert_eq!(Consumer::open(slot, &mut Refuse).err(), Some(Corrupt));

    let spoilt_head = |head: u64| {
        let mut model = Model::new(arena);
        model.write(3);
        model.drain();
        slot.head.store(head, Ordering::Relaxed);
        model.consumer.drain(&arena, slot, &mut Refuse, |_| panic!("nothing is read"))
    };
    let pool_bytes = u64::from(MIN_SEGMENTS) * SEGMENT_WORDS as u64 * 8;
    assert_eq!(spoilt_head(24), Ok(0));
    assert_eq!(spoilt_head(16), Err(Corrupt), "a head that went back");
    assert_eq!(spoilt_head(25), Err(Corrupt), "half a word");
    assert_eq!(spoilt_head(24 + pool_bytes + 8), Err(Corrupt), "more than there is");
    assert_eq!(spoilt_head(u64::MAX - 7), Err(Corrupt));
}

#[test]
fn a_link_out_of_the_pool_is_corrupt() {
    let (_memory, arena) = fresh_arena(Geometry { slots: 1, segments: MIN_SEGMENTS });
    let mut model = Model::new(arena);
    let first = arena.slot(0).expect("slot 0").first_segment.load(Ordering::Relaxed);
    model.fill(0);
    model.drain();
    model.write(2);
    arena.segment_link(first).expect("of the pool").store(MIN_SEGMENTS, Ordering::Relaxed);
    let slot = arena.slot(0).expect("slot 0");
    assert_eq!(model.consumer.drain(&arena, slot, &mut Refuse, |_| panic!("nothing is read")), Err(Corrupt));
}

/// Returns word `i` of record `record` of thread `thread`. Each word contains all three numbers.
fn word(thread: u64, record: u64, i: u64) -> u64 {
    (record << 20 | thread << 12 | i) << 4 | event::kind::ALLOC
}

/// Writes `records` records of 3 words. Takes segments from the pool shared by all threads.
fn produce(arena: Arena, thread: u32, records: u64) {
    let take = || {
        loop {
            match arena.free_segments().pop() {
                Some(segment) => return segment,
                None => std::thread::yield_now(),
            }
        }
    };
    let slot = arena.slot(thread).expect("a slot for each thread");
    // SAFETY: the arena outlives the scope of threads, and only this thread uses the slot and the
    // segment.
    let mut producer = unsafe { Producer::open(&arena, thread, take()) }.expect("indices from the arena");
    slot.state.0.store(1, Ordering::Release);
    for record in 0..records {
        if producer.room() < 3 {
            // SAFETY: the ring is open on this arena, and the segment was just taken.
            assert!(unsafe { producer.extend(&arena, take()) });
        }
        // SAFETY: the segment has room for 3 words, made above.
        unsafe { producer.write::<3>(std::array::from_fn(|i| word(thread.into(), record, i as u64))) };
    }
}

#[test]
fn threads_share_a_small_pool_and_lose_nothing() {
    let (threads, records) = if cfg!(miri) { (2, 700) } else { (3, 1_000_000) };
    let geometry = Geometry { slots: threads, segments: MIN_SEGMENTS };
    let (_memory, arena) = fresh_arena(geometry);
    let mut owners = vec![None; MIN_SEGMENTS as usize];
    std::thread::scope(|scope| {
        (0..threads).for_each(|thread| drop(scope.spawn(move || produce(arena, thread, records))));
        let mut consumers: Vec<Option<Consumer>> = (0..threads).map(|_| None).collect();
        let mut received = vec![0; threads as usize];
        while received.iter().any(|&n| n < records) {
            for thread in 0..threads {
                let slot = arena.slot(thread).expect("a slot for each thread");
                if slot.state.0.load(Ordering::Acquire) == 0 {
                    continue;
                }
                let mut ledger = CheckedLedger { arena, owners: &mut owners, ring: thread };
                let consumer = consumers[thread as usize]
                    .get_or_insert_with(|| Consumer::open(slot, &mut ledger).expect("an honest producer"));
                let next = &mut received[thread as usize];
                consumer
                    .drain(&arena, slot, &mut ledger, |words| check_part(words, thread.into(), next))
                    .expect("an honest producer");
            }
            std::thread::yield_now();
        }
        assert_eq!(received, vec![records; threads as usize], "each record once");
    });
}

/// Checks a part of a segment: whole records in order, then perhaps a pad.
fn check_part(words: &[AtomicU64], thread: u64, next: &mut u64) {
    for record in words.chunks(3) {
        let first = record[0].load(Ordering::Relaxed);
        if first & 15 == event::kind::PAD {
            return;
        }
        for (i, at) in record.iter().enumerate() {
            assert_eq!(at.load(Ordering::Relaxed), word(thread, *next, i as u64), "record {next}, word {i}");
        }
        assert_eq!(record.len(), 3, "a record is published whole");
        *next += 1;
    }
}

//! Empties the rings: copies published records, gives the room back, and notices ended threads and
//! programs.
//!
//! The drain decodes nothing and never waits for the order of records, so that the target's threads
//! find room. The contents of the arena are untrusted: each word is read once, and indices are
//! checked against the drain's own tables.

mod barrier;
mod controls;
mod exec;
mod ledger;
mod outlet;
mod pace;
mod questions;
mod tick;

pub use barrier::Barrier;
pub use controls::{Controls, Stop};
pub use outlet::Outlet;

use crate::base::clock;
use crate::base::sys;
use crate::process::image::Image;
use crate::process::tasks::Tasks;
use crate::questions::backlog::{Backlog, Source};
use crate::session::Session;
use crate::session::arena_map::ArenaMap;
use crate::session::counted::Counted;
use crate::table::messages::Message;
use crate::table::order::Mark;
use heapline_shared_format::arena::{SEGMENT_BYTES, Slot, slot_state, target_flag};
use heapline_shared_format::ring::{Consumer, Drained};
use ledger::Pool;
use outlet::announce_progress;
use pace::Pace;
use questions::Questions;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};
use tick::{Candidate, Tick};

/// Time for the target's threads to publish unfinished records after tracing was stopped.
const LAST_RECORDS: Duration = Duration::from_millis(100);
/// Thread names read for each listing of the threads: few, so that many threads cost little.
const NAMES_PER_LISTING: usize = 32;

/// Most bytes taken by a poll from all rings together: a few milliseconds of work for the table. So
/// a backlog stays in the rings, where a too fast target waits, and the taken records stay in the
/// caches.
const POLL_BYTES: u64 = 1 << 20;
/// Pause between two looks at threads that are behind.
const BEHIND_WAIT: Duration = Duration::from_millis(1);

/// Result of a poll.
#[derive(Clone, Copy, Debug, Default)]
struct Poll {
    bytes: u64,
    /// Number of threads in the middle of an event.
    in_flight: usize,
    /// Whether more was published than was taken.
    is_behind: bool,
}

/// Result of the whole drain.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// `arena::end_cause`; 0 if the target did not stop tracing by itself.
    pub end_cause: u32,
    /// Number of traced programs.
    pub images: u32,
    /// `arena::target_flag`.
    pub flags: u32,
    /// The untraced program after the last traced program, if exec began such a program.
    pub untraced: Option<Image>,
}

/// Reader of the arena's rings.
pub struct Drain {
    map: Arc<ArenaMap>,
    session: Session,
    controls: Arc<Controls>,
    outlet: Outlet,
    backlog: Arc<Backlog>,
    barrier: Barrier,
    candidate: Candidate,
    /// Rings with records in the present poll.
    active: Vec<u32>,
    pool: Pool,
    rings: Vec<Option<OpenRing>>,
    /// Slot of each ring, by thread id and whether the ring is for signal handlers.
    by_tid: HashMap<(u32, bool), u32>,
    /// The present program.
    image: Image,
    /// Data of the first program, from before the program's own report.
    launched: Image,
    execs: ExecCounts,
    untraced: Option<Image>,
    pace: Pace,
    questions: Questions,
    next_name: usize,
}

struct OpenRing {
    /// None after the ring was given up.
    consumer: Option<Consumer>,
    tid: u32,
    side: bool,
    name: String,
}

/// Counters of the target at the begin of the session.
struct ExecCounts {
    begun: u32,
    failed: u32,
    images: u32,
}

/// Whether any thread is in the middle of an event, or of taking a slot.
fn is_anyone_in_flight(map: &ArenaMap) -> bool {
    let arena = map.arena();
    let high = arena.header().target.slots_high.load(Ordering::Acquire).min(arena.geometry().slots);
    (0..high).filter_map(|index| arena.slot(index)).any(|slot| slot.in_flight.load(Ordering::Acquire) != 0)
}

impl Drain {
    /// Returns a drain for a session just begun on the calling thread. `launched` describes the
    /// program in the target.
    pub fn new(
        source: Source,
        session: Session,
        controls: Arc<Controls>,
        outlet: Outlet,
        barrier: Barrier,
        launched: Image,
    ) -> Drain {
        let Source { map, backlog } = source;
        let arena = map.arena();
        let target = &arena.header().target;
        let images = target.images.load(Ordering::Acquire);
        let execs = ExecCounts {
            begun: target.exec_begun.load(Ordering::Relaxed),
            failed: target.exec_failed.load(Ordering::Relaxed),
            images: images.max(1),
        };
        let pool = Pool::new(arena, session.segments());
        let rings = (0..arena.geometry().slots).map(|_| None).collect();
        let pace = Pace::new(session.segments());
        Drain {
            map,
            session,
            controls,
            outlet,
            backlog,
            barrier,
            candidate: Candidate::default(),
            active: Vec::new(),
            pool,
            rings,
            by_tid: HashMap::new(),
            image: Image::default(),
            launched,
            execs,
            untraced: None,
            pace,
            questions: Questions::default(),
            next_name: 0,
        }
    }

    /// Drains until a stop is requested.
    pub fn run(mut self) -> Outcome {
        let stop = loop {
            if let Some(stop) = self.controls.stopped() {
                break stop;
            }
            let poll = self.poll();
            self.outlet.help();
            self.reap();
            if poll.is_behind {
                self.outlet.set_helping(false);
            } else {
                self.pause(poll.bytes);
            }
        };
        self.outlet.set_helping(false);
        match stop {
            Stop::Ended => drop(self.poll_rest()),
            Stop::Detach => self.detach(),
        }
        self.outlet.send(Message::End);
        self.outcome(stop)
    }

    fn detach(&mut self) {
        self.session.stop();
        let begun = Instant::now();
        while self.poll_rest().in_flight > 0 && begun.elapsed() < LAST_RECORDS {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes all published records, but at most as many bytes as the pool holds: a misbehaving
    /// target may write on.
    fn poll_rest(&mut self) -> Poll {
        let mut left = u64::from(self.map.arena().geometry().segments) * SEGMENT_BYTES as u64;
        loop {
            let poll = self.poll();
            if !poll.is_behind || poll.bytes >= left {
                return poll;
            }
            left -= poll.bytes;
        }
    }

    fn outcome(self, stop: Stop) -> Outcome {
        let header = self.map.arena().header();
        let target = &header.target;
        let images = target.images.load(Ordering::Acquire);
        let untraced = match &self.untraced {
            None => self.is_exec_open().then(Image::default),
            seen => seen.clone(),
        };
        let outcome = Outcome {
            end_cause: target.end_cause.load(Ordering::Relaxed),
            images,
            flags: target.flags.load(Ordering::Relaxed),
            untraced,
        };
        // A child forked by the ended process may not have begun yet. The child finds its way in
        // this arena, so the session stays open for the child.
        if stop == Stop::Detach || header.tree.follows.load(Ordering::Relaxed) == 0 {
            self.session.stop();
        }
        self.session.give_up();
        outcome
    }

    /// Looks at every ring once.
    fn poll(&mut self) -> Poll {
        let map = Arc::clone(&self.map);
        let header = map.arena().header();
        let flags = header.target.flags.load(Ordering::Relaxed);
        let is_registered = flags & target_flag::MEMBARRIER != 0;
        let tick = Tick(&header.session);
        let time = self.barrier.pass(is_registered, &tick);
        self.follow_exec();
        let mut mark = Mark { time, ..Mark::default() };
        let poll = self.visit_all(&mut mark);
        let now = Instant::now();
        if let Some(slot) = self.candidate.polled(&self.active, tick.is_out(), now)
            && self.barrier.lend(is_registered, &tick, slot, || is_anyone_in_flight(&map))
        {
            self.candidate.lent(now);
        }
        mark.wall = clock::now();
        self.outlet.send(Message::Mark(mark));
        // Consumed records are progress too, even without a returned segment: a waiting thread may
        // wait on.
        let waits_for_others = poll.is_behind && poll.bytes == 0;
        if self.pool.take_given_back() > 0 || poll.bytes > 0 || waits_for_others {
            announce_progress(&self.map);
        }
        if waits_for_others {
            thread::sleep(BEHIND_WAIT);
        }
        poll
    }

    /// Takes a share of the records in every ring. While the table holds many words back, only
    /// rings with records missing in the table give their share. Adds rings to the mark if the
    /// mark's time does not hold for them.
    fn visit_all(&mut self, mark: &mut Mark) -> Poll {
        let arena = *self.map.arena();
        let high = arena.header().target.slots_high.load(Ordering::Acquire).min(arena.geometry().slots);
        let mut poll = Poll::default();
        let most = (POLL_BYTES / self.active.len().max(1) as u64).max(SEGMENT_BYTES as u64);
        let takes_from_all = !self.backlog.is_large();
        self.active.clear();
        for index in 0..high {
            let Some(slot) = arena.slot(index) else { break };
            if self.rings[index as usize].is_none() {
                self.open(index, slot, self.image.number);
            }
            if self.rings[index as usize].is_none() {
                continue;
            }
            // Acquire pairs with `Producer::settle`: after the flag is down, the head covered by
            // the flag is visible.
            let is_in_flight = slot.in_flight.load(Ordering::Acquire) != 0;
            let drained = match takes_from_all || !self.backlog.waits(index) {
                true => self.drain(index, slot, most),
                false => Drained { bytes: 0, is_cut: true },
            };
            if drained.is_cut {
                mark.unread.push(index);
            } else if is_in_flight {
                mark.in_flight.push(index);
            }
            if drained.bytes > 0 {
                self.active.push(index);
            }
            poll.bytes += drained.bytes;
            poll.in_flight += usize::from(is_in_flight);
            poll.is_behind |= drained.is_cut;
        }
        poll
    }

    /// Opens the ring of a slot, if a thread of program `image` has taken the slot in this session.
    fn open(&mut self, index: u32, slot: &Slot, image: u32) {
        let active = |generation| u64::from(generation) << 32 | u64::from(slot_state::ACTIVE);
        // Acquire pairs with the producer's Release: the slot's other fields are visible.
        let state = slot.state.0.load(Ordering::Acquire);
        let is_ours = self.session.generation(index).is_some_and(|generation| state == active(generation))
            && slot.session.load(Ordering::Relaxed) == self.session.number()
            && slot.image.load(Ordering::Relaxed) == image;
        if !is_ours {
            return;
        }
        let tid = slot.tid.load(Ordering::Relaxed);
        let side = slot.side.load(Ordering::Relaxed) != 0;
        self.retire_older(tid, side);
        self.by_tid.insert((tid, side), index);
        let before = self.session.counted_before(index);
        self.outlet.send(Message::Open { slot: index, tid, side, before });
        let consumer = Consumer::open(slot, &mut self.pool.of(self.map.arena(), index)).ok();
        if consumer.is_none() {
            self.outlet.send(Message::Corrupt { slot: index });
        }
        self.rings[index as usize] = Some(OpenRing { consumer, tid, side, name: String::new() });
    }

    /// Retires older rings of a thread id. A thread writes to a main ring, and to a side ring for
    /// signal handlers. A newer ring with the same thread id has one of two reasons:
    ///
    /// 1. The kernel gave the id to a new thread.
    /// 2. The thread has left its rings after a jump out of a hook.
    fn retire_older(&mut self, tid: u32, side: bool) {
        let kinds: &[bool] = if side { &[true] } else { &[false, true] };
        for &kind in kinds {
            if let Some(&older) = self.by_tid.get(&(tid, kind)) {
                self.retire(older);
            }
        }
    }

    /// Takes the records of a ring. No further segment is begun after `most` bytes.
    fn drain(&mut self, index: u32, slot: &Slot, most: u64) -> Drained {
        let none = Drained::default();
        let Some(ring) = &mut self.rings[index as usize] else { return none };
        let Some(consumer) = &mut ring.consumer else { return none };
        let arena = self.map.arena();
        let outlet = &mut self.outlet;
        let mut ledger = self.pool.of(arena, index);
        let drained = consumer.drain_some(arena, slot, &mut ledger, most, |words| outlet.copy(index, words));
        outlet.flush(index);
        drained.unwrap_or_else(|error| {
            tracing::warn!(slot = index, %error, "ring given up");
            ring.consumer = None;
            outlet.send(Message::Corrupt { slot: index });
            none
        })
    }

    /// Retires a slot after the end of the slot's thread: takes the remaining records and frees the
    /// slot.
    fn retire(&mut self, index: u32) {
        let arena = *self.map.arena();
        let Some(slot) = arena.slot(index) else { return };
        self.drain(index, slot, u64::MAX);
        let Some(ring) = self.rings[index as usize].take() else { return };
        if self.by_tid.get(&(ring.tid, ring.side)) == Some(&index) {
            self.by_tid.remove(&(ring.tid, ring.side));
        }
        match ring.consumer {
            Some(consumer) => consumer.close(&mut self.pool.of(&arena, index)),
            None => self.pool.give_back_all(&arena, index),
        }
        let counted = Counted::read(slot);
        self.session.free_slot(index);
        self.outlet.send(Message::Close { slot: index, counted });
        announce_progress(&self.map);
    }

    /// Frees the slots of ended threads, if a listing of the threads is due.
    fn reap(&mut self) {
        let Some(tasks) = self.controls.tasks() else { return };
        let arena = self.map.arena();
        let is_urgent = arena.free_slots().is_empty() || arena.header().progress.waiters.load(Ordering::Relaxed) > 0;
        let Some(listing) = self.pace.listing(is_urgent) else { return };
        let Ok(living) = tasks.living() else { return };
        self.pace.listed(listing);
        let open = |ring: &Option<OpenRing>| ring.as_ref().map(|ring| ring.tid);
        let tids = (0..).zip(&self.rings).filter_map(|(index, ring)| Some((index, open(ring)?)));
        let dead: Vec<u32> =
            tids.filter(|(_, tid)| !living.contains(tid) && tasks.is_gone(*tid)).map(|(index, _)| index).collect();
        dead.into_iter().for_each(|index| self.retire(index));
        self.read_names(tasks);
        self.note_untraced(tasks);
    }

    fn read_names(&mut self, tasks: Tasks) {
        let slots = self.rings.len();
        let order = (0..slots).map(|i| (self.next_name + i) % slots);
        let open: Vec<usize> = order.filter(|&i| self.rings[i].is_some()).take(NAMES_PER_LISTING).collect();
        for index in open {
            self.next_name = index + 1;
            let Some(ring) = &mut self.rings[index] else { continue };
            if let Some(name) = tasks.name(ring.tid).filter(|name| *name != ring.name) {
                ring.name.clone_from(&name);
                self.outlet.send(Message::Name { tid: ring.tid, name });
            }
        }
    }

    fn pause(&mut self, bytes: u64) {
        let is_starting = self.image.number == 0 || self.is_exec_open();
        let interval = self.pace.interval(bytes, is_starting);
        if interval.is_zero() {
            return;
        }
        let header = self.map.arena().header();
        let (progress, mail) = (&header.progress, &header.mail);
        if self.questions.is_expected(mail) {
            self.outlet.set_helping(true);
            return;
        }
        self.outlet.set_helping(false);
        let interval = self.questions.interval(interval);
        let seen = progress.wake.load(Ordering::Acquire);
        // The target reads `sleeping` before it wakes the drain. A thread that missed the flag is
        // found by the check of `waiters`.
        progress.sleeping.store(1, Ordering::SeqCst);
        let is_awaited = progress.waiters.load(Ordering::SeqCst) > 0 || self.questions.is_awaited(mail);
        if self.controls.stopped().is_none() && !is_awaited {
            sys::futex_wait(&progress.wake, seen, interval);
        }
        progress.sleeping.store(0, Ordering::Relaxed);
    }
}

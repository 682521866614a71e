//! Empties the rings: copies what was published, gives the room back, notices threads and programs that end.
//!
//! It decodes nothing and never waits for the order of records, so that the target's threads find room. Everything in
//! the arena is untrusted: each word is read once, indices are checked against tables of our own.

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

use crate::base::sys;
use crate::process::image::Image;
use crate::process::tasks::Tasks;
use crate::questions::backlog::Backlog;
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

/// How long the target's threads get to publish what they were writing when tracing was stopped.
const LAST_RECORDS: Duration = Duration::from_millis(100);
/// Names read anew per listing of the threads: a few, so that many threads cost little.
const NAMES_PER_LISTING: usize = 32;

/// What a poll takes from all rings together, at a few milliseconds' work for the table: so that a backlog stays in the rings,
/// where a target that is too fast waits, and what is taken out stays in the caches.
const POLL_BYTES: u64 = 1 << 20;
/// Between two looks at threads that are behind.
const BEHIND_WAIT: Duration = Duration::from_millis(1);

/// What a poll has found.
#[derive(Clone, Copy, Debug, Default)]
struct Poll {
    bytes: u64,
    /// Threads in the middle of an event.
    in_flight: usize,
    /// More was published than was taken.
    is_behind: bool,
}

/// How draining ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// `arena::end_cause`, 0 when the target did not stop by itself.
    pub end_cause: u32,
    /// Programs that were traced.
    pub images: u32,
    /// `arena::target_flag`.
    pub flags: u32,
    /// The program that exec put in the place of the last traced one, when it was not traced itself.
    pub untraced: Option<Image>,
}

/// See the module.
pub struct Drain {
    map: Arc<ArenaMap>,
    session: Session,
    controls: Arc<Controls>,
    outlet: Outlet,
    backlog: Arc<Backlog>,
    barrier: Barrier,
    candidate: Candidate,
    /// Rings that had records in the present poll.
    active: Vec<u32>,
    pool: Pool,
    rings: Vec<Option<OpenRing>>,
    /// By thread id, and whether it is the ring for signal handlers.
    by_tid: HashMap<(u32, bool), u32>,
    /// The program that runs now.
    image: Image,
    /// What is known of the first program before the target says so.
    launched: Image,
    execs: ExecCounts,
    untraced: Option<Image>,
    pace: Pace,
    questions: Questions,
    begun: Instant,
    next_name: usize,
}

struct OpenRing {
    /// None when the ring was given up.
    consumer: Option<Consumer>,
    tid: u32,
    side: bool,
    name: String,
}

/// The target's counters when the session began.
struct ExecCounts {
    begun: u32,
    failed: u32,
    images: u32,
}

/// Whether a thread is in the middle of an event, or of taking a slot.
fn is_anyone_in_flight(map: &ArenaMap) -> bool {
    let arena = map.arena();
    let high = arena.header().target.slots_high.load(Ordering::Acquire).min(arena.geometry().slots);
    (0..high).filter_map(|index| arena.slot(index)).any(|slot| slot.in_flight.load(Ordering::Acquire) != 0)
}

impl Drain {
    /// A drain for a session that was just begun on the calling thread. `launched` is what runs in the target.
    pub fn new(
        map: Arc<ArenaMap>,
        session: Session,
        (controls, backlog): (Arc<Controls>, Arc<Backlog>),
        outlet: Outlet,
        barrier: Barrier,
        launched: Image,
    ) -> Drain {
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
            begun: Instant::now(),
            next_name: 0,
        }
    }

    /// Drains until it is told to stop.
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

    /// Takes all that is there now, and not more than the pool holds: a target that misbehaves may write on.
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
        // A child of a process that has ended finds its way in this arena, if it has not begun yet.
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
        mark.wall = self.begun.elapsed();
        self.outlet.send(Message::Mark(mark));
        // What was consumed is progress too, even when no segment came back: a waiting thread may wait on.
        let waits_for_others = poll.is_behind && poll.bytes == 0;
        if self.pool.take_given_back() > 0 || poll.bytes > 0 || waits_for_others {
            announce_progress(&self.map);
        }
        if waits_for_others {
            thread::sleep(BEHIND_WAIT);
        }
        poll
    }

    /// Takes a share of what every ring holds; while the table holds much back, of those that it waits for. The mark gets the
    /// rings that its time does not hold for.
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
            // Acquire pairs with `Producer::settle`: when the flag is down, the head that it covered is visible.
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

    /// Opens the ring of a slot that a thread of program `image` has taken in this session.
    fn open(&mut self, index: u32, slot: &Slot, image: u32) {
        let active = |generation| u64::from(generation) << 32 | u64::from(slot_state::ACTIVE);
        // Acquire pairs with the producer's Release: what it wrote of itself is visible.
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

    /// A thread writes to one ring, and one more for signal handlers. A newer one of its id means that the kernel gave the
    /// id to a new thread, or that the thread has left its rings after a jump out of a hook.
    fn retire_older(&mut self, tid: u32, side: bool) {
        let kinds: &[bool] = if side { &[true] } else { &[false, true] };
        for &kind in kinds {
            if let Some(&older) = self.by_tid.get(&(tid, kind)) {
                self.retire(older);
            }
        }
    }

    /// Takes what a ring holds, and no further segment after `most` bytes.
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

    /// The slot's thread is gone: takes what it left and frees the slot.
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

    /// Frees the slots of threads that have ended, when it is time to look.
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
        // The target looks at `sleeping` before it wakes us; one who missed it is met by the check of `waiters`.
        progress.sleeping.store(1, Ordering::SeqCst);
        let is_awaited = progress.waiters.load(Ordering::SeqCst) > 0 || self.questions.is_awaited(mail);
        if self.controls.stopped().is_none() && !is_awaited {
            sys::futex_wait(&progress.wake, seen, interval);
        }
        progress.sleeping.store(0, Ordering::Relaxed);
    }
}

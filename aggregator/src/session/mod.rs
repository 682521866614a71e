//! Sessions: taking an arena over, and giving it back. A session is new, or was begun by a child
//! process.
//!
//! The word `session.owner` names the thread that drains the arena. The word is a robust futex of
//! this thread. When the thread dies, even by SIGKILL:
//!
//! 1. The kernel marks the word.
//! 2. The target stops tracing.
//! 3. The next aggregator may take the arena over.
//!
//! So [`Session::begin`] must run on the draining thread.

pub mod arena_map;
pub mod clock;
pub mod counted;
pub mod rate;

use crate::base::sys;
use crate::session::arena_map::ArenaMap;
use crate::session::clock::Clock;
use crate::session::counted::Counted;
use heapline_shared_format::arena::{Arena, SEGMENT_BYTES, Slot, UNCLAIMED, slot_state, state};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::{io, process};

/// Default limit for the memory of the rings, in bytes.
pub const DEFAULT_TARGET_MEMORY: u64 = 64 << 20;
const OWNER_DIED: u32 = 0x4000_0000;
/// Time for threads to end the present event. A running thread needs less than a microsecond.
const SETTLE: Duration = Duration::from_secs(1);

/// Parameters of a session.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Frames kept of each traceback.
    pub nframe: u32,
    /// Limit for the memory of the rings, in bytes.
    pub max_target_memory: u64,
    /// Clock of the stamps.
    pub clock: Clock,
    /// Sampling. None: all blocks are recorded.
    pub sampling: Option<Sampling>,
    /// Whether functions and lines of frames are looked up.
    pub names: bool,
    /// Bound of the history in memory, in bytes. None: no history is recorded.
    pub history: Option<usize>,
    /// Whether the tracing begins with a pause.
    pub paused: bool,
}

/// Parameters of sampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// Mean distance of samples, in bytes; not 0.
    pub interval: u64,
    /// Wanted samples a second. If set, the distance is adapted.
    pub per_second: Option<u32>,
}

/// Environment variable with the seed of sampling, for the same samples in every run.
const ENV_SEED: &str = "HEAPLINE_SAMPLE_SEED";

fn seed() -> u64 {
    let given = std::env::var(ENV_SEED).ok().and_then(|text| text.parse().ok());
    given.or_else(|| sys::random().ok()).unwrap_or(1)
}

/// Reason why a session did not begin.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Another aggregator drains the arena.
    #[error("it is being traced by aggregator {owner} already: stop that one first, or use aggregator ctl")]
    Taken {
        /// Process id of the other aggregator.
        owner: u32,
    },
    /// A thread may still write to memory that the session would give to other threads.
    #[error("its thread {tid} is stopped in the middle of a recorded call: let it run, then try again")]
    InFlight {
        /// Thread id.
        tid: u32,
    },
    /// The kernel refused the robust futex.
    #[error("cannot register as the arena's owner: {0}")]
    Owner(io::Error),
}

/// An open session.
pub struct Session {
    map: Arc<ArenaMap>,
    number: u32,
    /// Generation of each slot, as given out by this session. The arena's word is not trusted.
    generations: Vec<u32>,
    /// Calls counted in each slot before the present or next thread.
    counted: Vec<Counted>,
    segments: u32,
}

impl Session {
    /// Takes the arena over and makes the target trace. `living` are the thread ids of the target.
    pub fn begin(map: Arc<ArenaMap>, settings: Settings, living: &BTreeSet<u32>) -> Result<Session, SessionError> {
        let arena = map.arena();
        let header = arena.header();
        claim(&header.session.owner, &header.session.owner_pid)?;
        // A dead owner may have left the session open.
        header.session.state.store(state::IDLE, Ordering::Release);
        header.session.epoch.fetch_add(1, Ordering::AcqRel);
        sys::membarrier();
        if let Err(tid) = settled(arena, living) {
            header.session.owner.store(0, Ordering::Release);
            return Err(SessionError::InFlight { tid });
        }
        let generations = reset_slots(arena, living);
        let counted = (0..arena.geometry().slots).map(|index| arena.slot(index).map(Counted::read).unwrap_or_default());
        let counted = counted.collect();
        let segments = fill_pool(arena, settings.max_target_memory);
        let number = header.session.number.load(Ordering::Relaxed).wrapping_add(1);
        header.session.number.store(number, Ordering::Relaxed);
        header.session.clock.store(settings.clock.code(), Ordering::Relaxed);
        header.session.tick.store(0, Ordering::Relaxed);
        header.session.nframe.store(settings.nframe, Ordering::Relaxed);
        header.target.end_cause.store(0, Ordering::Relaxed);
        // An earlier aggregator may have followed the target's children.
        header.tree.follows.store(0, Ordering::Relaxed);
        // A thread that sees the new epoch (Acquire) sees all stores above, and the state.
        let state = match settings.sampling {
            Some(sampling) => {
                header.session.sample.store(sampling.interval, Ordering::Relaxed);
                header.session.seed.store(seed(), Ordering::Relaxed);
                state::SAMPLING
            }
            None => {
                header.session.sample.store(0, Ordering::Relaxed);
                state::TRACING
            }
        };
        header.session.state.store(state, Ordering::Release);
        header.session.epoch.fetch_add(1, Ordering::AcqRel);
        tracing::info!(number, segments, "session begun");
        Ok(Session { map, number, generations, counted, segments })
    }

    /// Takes over the session begun by a child process. Nothing in the session is changed: the
    /// child records already.
    pub fn adopt(map: Arc<ArenaMap>) -> Result<Session, SessionError> {
        let header = map.arena().header();
        let (owner, owner_pid) = (&header.session.owner, &header.session.owner_pid);
        sys::own_robustly(owner).map_err(SessionError::Owner)?;
        let claimed = owner.compare_exchange(UNCLAIMED, sys::gettid(), Ordering::AcqRel, Ordering::Relaxed);
        claimed.map_err(|_| SessionError::Taken { owner: owner_pid.load(Ordering::Relaxed) })?;
        owner_pid.store(process::id(), Ordering::Relaxed);
        let number = header.session.number.load(Ordering::Relaxed);
        let geometry = map.arena().geometry();
        tracing::info!(number, segments = geometry.segments, "session adopted");
        let slots = geometry.slots as usize;
        let (generations, counted) = (vec![0; slots], vec![Counted::default(); slots]);
        Ok(Session { map, number, generations, counted, segments: geometry.segments })
    }

    /// Number of the session in the arena.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The arena.
    pub fn arena(&self) -> &Arena {
        self.map.arena()
    }

    /// Number of segments in the pool. The pool consists of the first segments of the arena.
    pub fn segments(&self) -> u32 {
        self.segments
    }

    /// Generation of a slot.
    pub fn generation(&self, slot: u32) -> Option<u32> {
        self.generations.get(slot as usize).copied()
    }

    /// Calls counted in a slot before the present thread.
    pub fn counted_before(&self, slot: u32) -> Counted {
        self.counted.get(slot as usize).copied().unwrap_or_default()
    }

    /// Makes a slot free for another thread.
    pub fn free_slot(&mut self, index: u32) {
        let Some(generation) = self.generations.get_mut(index as usize) else { return };
        *generation = generation.wrapping_add(1);
        let Some(slot) = self.map.arena().slot(index) else { return };
        if let Some(counted) = self.counted.get_mut(index as usize) {
            *counted = Counted::read(slot);
        }
        // The next thread on the slot must not use a tick lent to this thread.
        let session = &self.map.arena().header().session;
        if session.tick_owner.load(Ordering::Relaxed) == index {
            session.tick.store(0, Ordering::SeqCst);
        }
        slot.in_flight.store(0, Ordering::Relaxed);
        slot.state.0.store(word(*generation, slot_state::FREE), Ordering::Release);
        self.map.arena().free_slots().push(index);
    }

    /// Makes the target stop tracing. A thread in the middle of an event may still publish the
    /// event.
    pub fn stop(&self) {
        let session = &self.arena().header().session;
        session.state.store(state::IDLE, Ordering::Release);
        session.epoch.fetch_add(1, Ordering::AcqRel);
        sys::membarrier();
    }

    /// Gives the arena up: another aggregator may take it over.
    pub fn give_up(self) {
        self.arena().header().session.owner.store(0, Ordering::Release);
    }
}

/// Returns the process id of the aggregator that drains the arena. None if the arena has no living
/// owner.
pub fn owner(arena: &Arena) -> Option<u32> {
    let session = &arena.header().session;
    let owner = session.owner.load(Ordering::Acquire);
    is_owned(owner).then(|| session.owner_pid.load(Ordering::Relaxed))
}

fn is_owned(owner: u32) -> bool {
    owner != 0 && owner & OWNER_DIED == 0
}

fn claim(owner: &AtomicU32, owner_pid: &AtomicU32) -> Result<(), SessionError> {
    let found = owner.load(Ordering::Acquire);
    let taken = |owner_pid: &AtomicU32| SessionError::Taken { owner: owner_pid.load(Ordering::Relaxed) };
    if is_owned(found) {
        return Err(taken(owner_pid));
    }
    sys::own_robustly(owner).map_err(SessionError::Owner)?;
    owner.compare_exchange(found, sys::gettid(), Ordering::AcqRel, Ordering::Relaxed).map_err(|_| taken(owner_pid))?;
    owner_pid.store(process::id(), Ordering::Relaxed);
    Ok(())
}

/// Waits until no living thread is in the middle of an event, or of taking a slot. Err holds the
/// thread id of a thread that stays there.
fn settled(arena: &Arena, living: &BTreeSet<u32>) -> Result<(), u32> {
    let begun = Instant::now();
    let in_flight = || {
        let slots = (0..arena.geometry().slots).filter_map(|index| arena.slot(index));
        let mut flagged = slots.filter(|slot| slot.in_flight.load(Ordering::Acquire) != 0);
        // A slot that is being taken has no thread id yet.
        let is_alive = |tid| living.contains(&tid);
        let slot = flagged.find(|slot| {
            !is_active(slot.state.0.load(Ordering::Acquire)) || is_alive(slot.tid.load(Ordering::Relaxed))
        });
        slot.map(|slot| slot.tid.load(Ordering::Relaxed))
    };
    while let Some(tid) = in_flight() {
        if begun.elapsed() > SETTLE {
            return Err(tid);
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Frees all slots. Returns their generations.
///
/// A thread that has slept since an earlier session still uses the last taken slot, and all data of
/// the slot, when it wakes, before it sees the new epoch. So this slot stays with the thread.
fn reset_slots(arena: &Arena, living: &BTreeSet<u32>) -> Vec<u32> {
    let free = arena.free_slots();
    free.clear();
    let mut generations = vec![0; arena.geometry().slots as usize];
    let mut fresh = Vec::new();
    let held = held_slots(arena, living);
    for (index, generation) in (0..).zip(&mut generations) {
        let Some(slot) = arena.slot(index) else { continue };
        let before = slot.state.0.load(Ordering::Acquire);
        *generation = generation_of(before);
        if Slot::kind(before) == slot_state::CLAIMED {
            continue;
        }
        *generation = generation.wrapping_add(1);
        let kind = if held.contains(&index) { slot_state::HELD } else { slot_state::FREE };
        // A thread about to claim the slot sees another generation, or makes this exchange fail.
        let changed =
            slot.state.0.compare_exchange(before, word(*generation, kind), Ordering::AcqRel, Ordering::Relaxed);
        if kind == slot_state::FREE && changed.is_ok() {
            slot.in_flight.store(0, Ordering::Relaxed);
            fresh.push(index);
        }
    }
    fresh.into_iter().rev().for_each(|index| free.push(index));
    generations
}

/// Returns the slots that living threads may still use: for each thread, the slots of the thread's
/// last session.
fn held_slots(arena: &Arena, living: &BTreeSet<u32>) -> BTreeSet<u32> {
    let mut last: BTreeMap<u32, (u32, Vec<u32>)> = BTreeMap::new();
    for index in 0..arena.geometry().slots {
        let Some(slot) = arena.slot(index) else { continue };
        let kind = Slot::kind(slot.state.0.load(Ordering::Acquire));
        let tid = slot.tid.load(Ordering::Relaxed);
        if !matches!(kind, slot_state::ACTIVE | slot_state::HELD) || !living.contains(&tid) {
            continue;
        }
        let session = slot.session.load(Ordering::Relaxed);
        let (newest, slots) = last.entry(tid).or_insert((session, Vec::new()));
        if session > *newest {
            (*newest, *slots) = (session, Vec::new());
        }
        if session == *newest {
            slots.push(index);
        }
    }
    last.into_values().flat_map(|(_, slots)| slots).collect()
}

/// Fills the pool up to `max_bytes` bytes, with low segments on top. Returns the number of
/// segments.
fn fill_pool(arena: &Arena, max_bytes: u64) -> u32 {
    let wanted = u32::try_from(max_bytes / SEGMENT_BYTES as u64).unwrap_or(u32::MAX);
    let least = heapline_shared_format::arena::MIN_SEGMENTS;
    let segments = wanted.max(least).min(arena.geometry().segments);
    let free = arena.free_segments();
    free.clear();
    (0..segments).rev().for_each(|index| free.push(index));
    segments
}

fn is_active(word: u64) -> bool {
    Slot::kind(word) == slot_state::ACTIVE
}

fn generation_of(word: u64) -> u32 {
    u32::try_from(word >> 32).unwrap_or_default()
}

fn word(generation: u32, kind: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(kind)
}

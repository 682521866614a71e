//! The time up to which unflagged rings are complete.
//!
//! With membarrier(2), every running thread of the target passes a barrier after the time was
//! taken:
//!
//! - A flag stored before the barrier is seen by the drain.
//! - A flag stored after the barrier belongs to a later stamp.
//!
//! Without membarrier, the drain uses the time of a poll at least a millisecond ago. This is a
//! heuristic: no store stays in a store buffer for nearly as long, but no rule forbids it.

use super::tick::Tick;
use crate::base::sys;
use crate::session::clock::Clock;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Least age of the time used without membarrier.
const AGE: Duration = Duration::from_millis(1);
/// Environment variable that switches membarrier off, so that tests can force the heuristic.
const ENV_NO_MEMBARRIER: &str = "HEAPLINE_NO_MEMBARRIER";

/// Source of the times of polls.
pub struct Barrier {
    clock: Clock,
    is_supported: bool,
    /// Times of recent polls, for the heuristic.
    past: VecDeque<(Instant, u64)>,
    /// Time of the youngest poll with the least age.
    old: u64,
}

impl Barrier {
    /// Returns a barrier for stamps of `clock`.
    pub fn new(clock: Clock) -> Barrier {
        let is_off = std::env::var_os(ENV_NO_MEMBARRIER).is_some_and(|value| value == "1");
        Barrier { clock, is_supported: !is_off && sys::has_membarrier(), past: VecDeque::new(), old: 0 }
    }

    /// Returns the time for this poll. Flags and heads must be read after this call.
    ///
    /// - `is_registered`: the target takes part in membarrier.
    /// - `tick`: set to the time before the barrier. So later events get no earlier stamp.
    pub fn pass(&mut self, is_registered: bool, tick: &Tick<'_>) -> u64 {
        let time = self.clock.now();
        tick.renew(time);
        if self.is_exact(is_registered) && sys::membarrier() {
            return time;
        }
        let now = Instant::now();
        self.past.push_back((now, time));
        while let Some(&(taken, time)) = self.past.front()
            && now.duration_since(taken) >= AGE
        {
            self.old = time;
            self.past.pop_front();
        }
        self.old
    }

    /// Whether times are exact: only with membarrier.
    fn is_exact(&self, is_registered: bool) -> bool {
        self.is_supported && is_registered
    }

    /// Lends the tick to the thread on a slot, unless `in_flight` reports a thread in the middle of
    /// an event. Never lends without membarrier, because a heuristic time would be wrong.
    pub fn lend(&self, is_registered: bool, tick: &Tick<'_>, slot: u32, in_flight: impl FnOnce() -> bool) -> bool {
        if !self.is_exact(is_registered) || !tick.offer(slot) {
            return false;
        }
        if !sys::membarrier() || in_flight() {
            tick.take_back();
            return false;
        }
        // All stamps of other threads are older than this time.
        tick.lend(self.clock.now())
    }
}

//! The time up to which unflagged rings are complete.
//!
//! With membarrier(2): every thread of the target that runs passes a barrier after the time was taken. A flag that it
//! stored before is seen then; one that it stores later goes with a later stamp.
//!
//! Where membarrier is refused, the time of a poll at least a millisecond ago serves. That is a heuristic: no store
//! stays in a store buffer for nearly as long, but nothing forbids it.

use super::tick::Tick;
use crate::base::sys;
use crate::session::clock::Clock;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Age of the time that serves without membarrier.
const AGE: Duration = Duration::from_millis(1);
/// Switches membarrier off, so that tests can force the other path.
const ENV_NO_MEMBARRIER: &str = "HEAPLINE_NO_MEMBARRIER";

/// See the module.
pub struct Barrier {
    clock: Clock,
    is_supported: bool,
    /// Times of polls, for the heuristic.
    past: VecDeque<(Instant, u64)>,
    /// The youngest of them that is old enough.
    old: u64,
}

impl Barrier {
    /// A barrier for stamps of `clock`.
    pub fn new(clock: Clock) -> Barrier {
        let is_off = std::env::var_os(ENV_NO_MEMBARRIER).is_some_and(|value| value == "1");
        Barrier { clock, is_supported: !is_off && sys::has_membarrier(), past: VecDeque::new(), old: 0 }
    }

    /// The time for this poll. Flags and heads must be read after this call. `is_registered`: the target takes part in
    /// membarrier. `tick` is set to the time before the barrier, so that what comes after it is not stamped earlier.
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

    /// Whether times are exact: not where membarrier is refused.
    fn is_exact(&self, is_registered: bool) -> bool {
        self.is_supported && is_registered
    }

    /// Lends the tick to the thread on a slot, if no thread is in the middle of an event; `in_flight` says so. A heuristic
    /// time would not do here.
    pub fn lend(&self, is_registered: bool, tick: &Tick<'_>, slot: u32, in_flight: impl FnOnce() -> bool) -> bool {
        if !self.is_exact(is_registered) || !tick.offer(slot) {
            return false;
        }
        if !sys::membarrier() || in_flight() {
            tick.take_back();
            return false;
        }
        // All that other threads have stamped is older than this.
        tick.lend(self.clock.now())
    }
}

//! The tick: a stamp lent to a thread while no other thread has events.
//!
//! ```text
//!            offer          lend             renew, each poll
//!      0 ------------> 1 ------------> T --------------------> T'
//!      ^               |               |                       |
//!      +---------------+---------------+-----------------------+
//!        taken back by any other thread, before its event
//! ```
//!
//! Between offer and loan lies a barrier. After the barrier no thread was in the middle of an
//! event: a thread with a later event sees the offer and takes the offer back. So all stamps of
//! other threads are older than the loan.
//!
//! The polls show which thread may be alone. A wrong guess costs the other threads a single store,
//! and makes further guesses rarer.

use heapline_shared_format::arena::{Session, TICK_PENDING};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The words of the tick in the arena.
pub struct Tick<'a>(pub &'a Session);

impl Tick<'_> {
    /// Whether the tick is lent or offered now.
    pub fn is_out(&self) -> bool {
        self.0.tick.load(Ordering::Relaxed) != 0
    }

    /// Sets a lent tick to `time`.
    pub fn renew(&self, time: u64) {
        let last = self.0.tick.load(Ordering::Relaxed);
        if last > TICK_PENDING {
            // Fails if a thread took the tick back just now.
            let _ = self.0.tick.compare_exchange(last, time.max(last), Ordering::SeqCst, Ordering::Relaxed);
        }
    }

    /// Offers the tick to a slot. Returns false if the tick is offered or lent already.
    pub fn offer(&self, slot: u32) -> bool {
        if self.is_out() {
            return false;
        }
        self.0.tick_owner.store(slot, Ordering::Release);
        self.0.tick.store(TICK_PENDING, Ordering::SeqCst);
        true
    }

    /// Lends an offered tick. Returns false if a thread took the offer back.
    pub fn lend(&self, time: u64) -> bool {
        self.0.tick.compare_exchange(TICK_PENDING, time, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Ends an offer.
    pub fn take_back(&self) {
        self.0.tick.store(0, Ordering::SeqCst);
    }
}

/// Least time for which a ring must have been alone: at first, and after many wrong guesses.
const SHORTEST: Duration = Duration::from_millis(4);
const LONGEST: Duration = Duration::from_secs(1);

/// The ring next in line for the tick.
pub struct Candidate {
    /// The only ring with records, and the instant of the first of these polls.
    alone: Option<(u32, Instant)>,
    /// Least time for which a ring must have been alone.
    patience: Duration,
    lent: Option<Instant>,
}

impl Default for Candidate {
    fn default() -> Candidate {
        Candidate { alone: None, patience: SHORTEST, lent: None }
    }
}

impl Candidate {
    /// Notes the rings with records in a poll. Returns the ring for a loan.
    pub fn polled(&mut self, active: &[u32], is_out: bool, now: Instant) -> Option<u32> {
        if let Some(lent) = self.lent.filter(|_| !is_out) {
            // A short loan was a wrong guess.
            let lasted = now.duration_since(lent);
            self.patience = if lasted < self.patience * 2 { (self.patience * 2).min(LONGEST) } else { SHORTEST };
            (self.lent, self.alone) = (None, None);
        }
        match (active, self.alone) {
            ([], _) => return None,
            (&[one], Some((same, _))) if one == same => {}
            (&[one], _) => self.alone = Some((one, now)),
            _ => self.alone = None,
        }
        let (ring, since) = self.alone?;
        (!is_out && now.duration_since(since) >= self.patience).then_some(ring)
    }

    /// Notes a loan of the tick.
    pub fn lent(&mut self, now: Instant) {
        self.lent = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_that_stays_alone_gets_the_tick_and_bad_guesses_get_rarer() {
        let mut candidate = Candidate::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(candidate.polled(&[3], false, at(0)), None);
        assert_eq!(candidate.polled(&[], false, at(2)), None, "a quiet poll changes nothing");
        assert_eq!(candidate.polled(&[3], false, at(3)), None);
        assert_eq!(candidate.polled(&[3], false, at(4)), Some(3));
        candidate.lent(at(4));
        assert_eq!(candidate.polled(&[3], true, at(9)), None, "it has it");
        // Taken back at once: the patience is doubled.
        assert_eq!(candidate.polled(&[3, 5], false, at(10)), None);
        assert_eq!(candidate.polled(&[5], false, at(20)), None);
        assert_eq!(candidate.polled(&[5], false, at(27)), None);
        assert_eq!(candidate.polled(&[5], false, at(28)), Some(5));
        candidate.lent(at(28));
        // A long loan resets the patience.
        assert_eq!(candidate.polled(&[5, 3], false, at(500)), None);
        assert_eq!(candidate.polled(&[3], false, at(501)), None);
        assert_eq!(candidate.polled(&[3], false, at(505)), Some(3));
    }
}

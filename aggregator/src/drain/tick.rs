//! The time that a thread is lent as the stamp of its events, while it is the only one that has any.
//!
//! ```text
//!            offer          lend             renew, each poll
//!      0 ------------> 1 ------------> T --------------------> T'
//!      ^               |               |                       |
//!      +---------------+---------------+-----------------------+  by any other thread, before its event
//! ```
//!
//! Between offer and loan lies a barrier, after which nobody was in the middle of an event: whoever has one later sees
//! the offer and takes it back, so all that others stamped before is older than the loan. Who is alone is guessed from
//! what the polls bring; a wrong guess costs the others one store, and is made less often from then on.

use heapline_shared_format::arena::{Session, TICK_PENDING};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The words in the arena.
pub struct Tick<'a>(pub &'a Session);

impl Tick<'_> {
    /// Whether it is lent or offered now.
    pub fn is_out(&self) -> bool {
        self.0.tick.load(Ordering::Relaxed) != 0
    }

    /// Sets a lent tick to the present time.
    pub fn renew(&self, time: u64) {
        let last = self.0.tick.load(Ordering::Relaxed);
        if last > TICK_PENDING {
            // Fails when it was taken back just now.
            let _ = self.0.tick.compare_exchange(last, time.max(last), Ordering::SeqCst, Ordering::Relaxed);
        }
    }

    /// False when it is out already.
    pub fn offer(&self, slot: u32) -> bool {
        if self.is_out() {
            return false;
        }
        self.0.tick_owner.store(slot, Ordering::Release);
        self.0.tick.store(TICK_PENDING, Ordering::SeqCst);
        true
    }

    /// False when somebody has taken the offer back.
    pub fn lend(&self, time: u64) -> bool {
        self.0.tick.compare_exchange(TICK_PENDING, time, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Ends an offer.
    pub fn take_back(&self) {
        self.0.tick.store(0, Ordering::SeqCst);
    }
}

/// How long a ring must have been alone at first, and at last.
const SHORTEST: Duration = Duration::from_millis(4);
const LONGEST: Duration = Duration::from_secs(1);

/// Who may be lent the tick.
pub struct Candidate {
    /// The only ring that had records since the instant.
    alone: Option<(u32, Instant)>,
    /// How long it must be alone.
    patience: Duration,
    lent: Option<Instant>,
}

impl Default for Candidate {
    fn default() -> Candidate {
        Candidate { alone: None, patience: SHORTEST, lent: None }
    }
}

impl Candidate {
    /// A poll has ended in which these rings had records. Returns the one to lend the tick to.
    pub fn polled(&mut self, active: &[u32], is_out: bool, now: Instant) -> Option<u32> {
        if let Some(lent) = self.lent.filter(|_| !is_out) {
            // A loan that did not last was a bad guess.
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

    /// The tick was lent.
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
        // Taken back at once: twice the patience.
        assert_eq!(candidate.polled(&[3, 5], false, at(10)), None);
        assert_eq!(candidate.polled(&[5], false, at(20)), None);
        assert_eq!(candidate.polled(&[5], false, at(27)), None);
        assert_eq!(candidate.polled(&[5], false, at(28)), Some(5));
        candidate.lent(at(28));
        // Long enough: forgiven.
        assert_eq!(candidate.polled(&[5, 3], false, at(500)), None);
        assert_eq!(candidate.polled(&[3], false, at(501)), None);
        assert_eq!(candidate.polled(&[3], false, at(505)), Some(3));
    }
}

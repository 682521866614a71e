//! Questions of the target (`import tracemalloc`), as seen by the drain.
//!
//! The asking thread holds the interpreter's lock while waiting for the answer. So frequent
//! questions must wait neither for the wake-up of a thread nor for a backlog.

use heapline_shared_format::arena::{ASKS_LONG, Mail};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Time after an answer during which the drain stays awake for the next question.
const AWAKE: Duration = Duration::from_millis(1);
/// `ATTENTIVE`: time after an answer during which the backlog is kept small. `SHORT`: longest sleep
/// of the drain during this time.
const ATTENTIVE: Duration = Duration::from_millis(100);
const SHORT: Duration = Duration::from_micros(100);
/// Longest credible wait for an answer. A thread with a longer wait is dead, or waits for something
/// else than this drain's poll.
const CREDIBLE: Duration = Duration::from_millis(50);
/// Number of reads of the question between two reads of the clock.
const LOOKS: u32 = 64;

/// The drain's knowledge of the target's questions.
#[derive(Debug, Default)]
pub struct Questions {
    answered: u32,
    last: Option<Instant>,
    /// Start of the wait for the answer to the present question.
    asked: Option<Instant>,
}

impl Questions {
    /// Waits for the next short question, if the question may come soon. Returns whether a short
    /// question is there.
    pub fn is_expected(&mut self, mail: &Mail) -> bool {
        let answered = mail.answered.load(Ordering::Acquire);
        if answered != self.answered {
            (self.answered, self.last, self.asked) = (answered, Some(Instant::now()), None);
        }
        let mut looks = 0u32;
        loop {
            let asking = mail.asking.load(Ordering::Acquire);
            let may_wait = || self.last.is_some_and(|last| last.elapsed() < AWAKE);
            if asking > 0 || looks.is_multiple_of(LOOKS) && !may_wait() {
                return self.is_credible(asking) && asking & (ASKS_LONG - 1) > 0;
            }
            looks = looks.wrapping_add(1);
            std::hint::spin_loop();
        }
    }

    /// Whether a thread waits for an answer. The drain should then poll again at once, or nearly
    /// so.
    pub fn is_awaited(&mut self, mail: &Mail) -> bool {
        let asking = mail.asking.load(Ordering::SeqCst);
        self.is_credible(asking)
    }

    fn is_credible(&mut self, asking: u32) -> bool {
        if asking == 0 {
            self.asked = None;
            return false;
        }
        self.asked.get_or_insert_with(Instant::now).elapsed() < CREDIBLE
    }

    /// Returns the time for the drain to sleep. `otherwise` is the time without regard to
    /// questions.
    pub fn interval(&self, otherwise: Duration) -> Duration {
        let is_recent = self.last.is_some_and(|last| last.elapsed() < ATTENTIVE);
        if is_recent { otherwise.min(SHORT) } else { otherwise }
    }
}

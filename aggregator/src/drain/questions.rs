//! When the target asks (`import tracemalloc`) it waits for the answer, with its interpreter's lock: whoever asks often must
//! not wait for a thread to be woken, nor for a backlog.

use heapline_shared_format::arena::{ASKS_LONG, Mail};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long after an answer the drain is awake for the next question.
const AWAKE: Duration = Duration::from_millis(1);
/// How long after an answer no backlog is let grow, and how long it may grow meanwhile.
const ATTENTIVE: Duration = Duration::from_millis(100);
const SHORT: Duration = Duration::from_micros(100);
/// Who has waited for so long without an answer is dead, or waits for something that staying awake does not hasten.
const CREDIBLE: Duration = Duration::from_millis(50);
/// Looks between two looks at the clock.
const LOOKS: u32 = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Questions {
    answered: u32,
    last: Option<Instant>,
    /// Since when somebody has been waiting for the present question's answer.
    asked: Option<Instant>,
}

impl Questions {
    /// Waits for the next short question, if it may come soon. Whether one is there.
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

    /// Whether the drain should look again at once, or nearly so.
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

    /// How long the drain may sleep that would sleep so long otherwise.
    pub fn interval(&self, otherwise: Duration) -> Duration {
        let is_recent = self.last.is_some_and(|last| last.elapsed() < ATTENTIVE);
        if is_recent { otherwise.min(SHORT) } else { otherwise }
    }
}

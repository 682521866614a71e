//! When the target asks (`import tracemalloc`) it waits for the answer, with its interpreter's lock: whoever asks often must
//! not wait for a thread to be woken, nor for a backlog.

use heapline_shared_format::arena::Mail;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long after an answer the drain is awake for the next question.
const AWAKE: Duration = Duration::from_millis(1);
/// How long after an answer no backlog is let grow, and how long it may grow meanwhile.
const ATTENTIVE: Duration = Duration::from_millis(100);
const SHORT: Duration = Duration::from_micros(100);
/// Looks between two looks at the clock.
const LOOKS: u32 = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Questions {
    answered: u32,
    last: Option<Instant>,
}

impl Questions {
    /// Waits for the next question, if it may come soon. Whether one is there.
    pub fn is_expected(&mut self, mail: &Mail) -> bool {
        let answered = mail.answered.load(Ordering::Acquire);
        if answered != self.answered {
            (self.answered, self.last) = (answered, Some(Instant::now()));
        }
        while self.last.is_some_and(|last| last.elapsed() < AWAKE) {
            for _ in 0..LOOKS {
                if mail.asking.load(Ordering::Acquire) > 0 {
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        mail.asking.load(Ordering::Acquire) > 0
    }

    /// How long the drain may sleep that would sleep so long otherwise.
    pub fn interval(&self, otherwise: Duration) -> Duration {
        let is_recent = self.last.is_some_and(|last| last.elapsed() < ATTENTIVE);
        if is_recent { otherwise.min(SHORT) } else { otherwise }
    }
}

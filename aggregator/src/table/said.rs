//! What the program says of itself through its collector (`heapline.h`): names of pools, marks,
//! pauses.

use super::{Ring, Table};
use heapline_shared_format::query::{self, LONGEST_TEXT};
use heapline_shared_format::snapshot::Unseen;
use heapline_shared_format::snapshot::pools::{self, Pool};
use heapline_shared_format::text::counted;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Most marks that end a step of the history between two looks. Marks beyond have the time of the
/// next look.
const MOST_EXACT: usize = 16;
/// Most marks kept until the next look. Marks beyond are dropped.
const MOST_MARKS: usize = 1024;

/// Receiver of the program's marks.
pub trait OnMark: Send + Sync {
    /// Receives a mark with its text, at the time of the last watermark and at the mark's place in
    /// the order of events: the table is as at the mark.
    fn mark(&self, now: Duration, text: &str, table: &mut Table);
}

/// What a program has said.
#[derive(Default)]
pub struct Said {
    /// The program's pools, by the number that the collector has given them.
    pools: HashMap<u32, Pool>,
    /// Number of marks since the last look that went to the receiver.
    exact: usize,
    /// Further marks since the last look, the oldest first.
    marks: Vec<String>,
    receiver: Option<Arc<dyn OnMark>>,
    /// Time of the last look.
    now: Duration,
    /// Whether the operator has paused the whole process.
    is_paused: bool,
    /// Number of allocations that were left out during pauses.
    left_out: u64,
}

/// What the rest of a ring's records needs of earlier records.
#[derive(Debug, Default)]
pub struct Voice {
    text: Vec<u8>,
    /// Whether the program has paused the thread of the ring.
    is_paused: bool,
}

impl Said {
    /// Whether allocations in a ring do not count now.
    #[inline(always)]
    pub fn is_paused(&self, voice: &Voice) -> bool {
        self.is_paused | voice.is_paused
    }

    /// Counts an allocation that does not count.
    #[cold]
    pub fn leave_out(&mut self) {
        self.left_out += 1;
    }

    /// Pauses the whole process, or ends the pause. Returns whether this changes anything.
    pub fn pause(&mut self, pauses: bool) -> bool {
        std::mem::replace(&mut self.is_paused, pauses) != pauses
    }

    /// Whether the operator has paused the whole process.
    pub fn is_paused_by_operator(&self) -> bool {
        self.is_paused
    }

    /// Returns the pool with a number. None before the pool was named.
    pub fn pool(&self, number: u32) -> Option<Pool> {
        self.pools.get(&number).copied()
    }

    /// Sets the receiver of marks, at the time of a look.
    pub fn look(&mut self, now: Duration, receiver: Option<Arc<dyn OnMark>>) {
        (self.now, self.receiver, self.exact) = (now, receiver, 0);
    }

    /// Removes and returns the marks since the last look that the receiver did not get.
    pub fn take_marks(&mut self) -> Vec<String> {
        std::mem::take(&mut self.marks)
    }

    /// Returns the text of a mark and its receiver, if the mark is to end a step.
    pub fn take_mark(&mut self, voice: &mut Voice) -> Option<(Arc<dyn OnMark>, Duration, String)> {
        let text = voice.take();
        let text = text.trim();
        if text.is_empty() {
            return None;
        }
        if let Some(receiver) = self.receiver.clone().filter(|_| self.exact < MOST_EXACT) {
            self.exact += 1;
            return Some((receiver, self.now, text.to_owned()));
        }
        if self.marks.len() < MOST_MARKS {
            self.marks.push(text.to_owned());
        }
        None
    }

    /// Number of allocations that were left out during pauses.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Applies a record of a ring. Returns false for a record about something else.
    pub fn hear(&mut self, ring: &mut Ring, asked: u32, arguments: [u64; 2]) -> bool {
        let voice = &mut ring.voice;
        match asked {
            query::TEXT => {
                let bytes = arguments.into_iter().flat_map(u64::to_le_bytes).take_while(|&byte| byte != 0);
                voice.text.extend(bytes.take(LONGEST_TEXT.saturating_sub(voice.text.len())));
            }
            query::POOL => {
                let name = voice.take();
                if let Ok(number) = u32::try_from(arguments[0]) {
                    self.pools.insert(number, pools::named(&name));
                }
            }
            query::PAUSE => voice.is_paused = true,
            query::RESUME => voice.is_paused = false,
            _ => return false,
        }
        true
    }
}

impl Voice {
    fn take(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.text)).into_owned()
    }
}

/// Returns the statement about allocations left out during pauses; `None` without any.
pub fn unseen(left_out: u64) -> Option<Unseen> {
    (left_out > 0).then(|| Unseen {
        kind: "paused".to_owned(),
        object: String::new(),
        name: "pauses".to_owned(),
        text: format!(
            "{} did not count, since the tracing or their thread was paused; their frees count as frees of unknown blocks",
            counted(left_out, "allocation")
        ),
    })
}

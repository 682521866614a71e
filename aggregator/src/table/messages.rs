//! Messages from the drain to the thread of the table.

use super::order::Mark;
use crate::process::image::Image;
use crate::session::counted::Counted;

/// What the drain tells the table.
#[derive(Debug)]
pub enum Message {
    /// A program has started.
    Begin(Image),
    /// All records of the present program have been sent: exec has ended it.
    Replaced,
    /// A thread has taken a slot.
    Open {
        /// The slot.
        slot: u32,
        /// Its thread.
        tid: u32,
        /// Whether it is a side ring.
        side: bool,
        /// What was counted in its slot before.
        before: Counted,
    },
    /// Whole records of a slot's ring.
    Words {
        /// The slot.
        slot: u32,
        /// The records.
        words: Vec<u64>,
    },
    /// A thread's name was read anew.
    Name {
        /// The thread.
        tid: u32,
        /// Its name.
        name: String,
    },
    /// The slot's ring is not to be believed.
    Corrupt {
        /// The slot.
        slot: u32,
    },
    /// The slot's thread is gone.
    Close {
        /// The slot.
        slot: u32,
        /// What is counted in it now.
        counted: Counted,
    },
    /// A poll has ended.
    Mark(Mark),
    /// Nothing comes any more.
    End,
}

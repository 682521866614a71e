//! Messages from the drain to the thread of the table.

use super::order::Mark;
use crate::process::image::Image;
use crate::session::counted::Counted;

/// A message from the drain to the table.
#[derive(Debug)]
pub enum Message {
    /// A program has started.
    Begin(Image),
    /// exec has ended the present program, and all records of the program have been sent.
    Replaced,
    /// A thread has taken a slot.
    Open {
        /// The slot.
        slot: u32,
        /// Thread id.
        tid: u32,
        /// Whether the ring is a side ring.
        side: bool,
        /// Calls counted in the slot before this thread.
        before: Counted,
    },
    /// Whole records from the ring of a slot.
    Words {
        /// The slot.
        slot: u32,
        /// The records.
        words: Vec<u64>,
    },
    /// A thread has a new name.
    Name {
        /// Thread id.
        tid: u32,
        /// The new name.
        name: String,
    },
    /// The ring of a slot has invalid content.
    Corrupt {
        /// The slot.
        slot: u32,
    },
    /// The thread of a slot is gone.
    Close {
        /// The slot.
        slot: u32,
        /// Calls counted in the slot until now.
        counted: Counted,
    },
    /// A poll has ended.
    Mark(Mark),
    /// The last message.
    End,
}

//! What the target asks the aggregator: `import tracemalloc` in a traced CPython, answered from the table.
//!
//! A question is a QUERY record in the asking thread's ring, so it is answered for its own place in the order of events.
//! The answer lies in the arena ([`crate::arena::Mail`]): up to four words, or the first bytes of a text, whose rest is
//! asked for piece by piece ([`MORE`]). What a process says of its forks comes the same way, for the sake of that place.
//!
//! The text is little-endian words of 32 bits:
//!
//! ```text
//! | files | tracebacks | groups | traces in all, 64 |
//! each file:      | characters | one word each ...                                   |
//! each traceback: | frames in truth | n | n times: file, line; the most recent first |
//! each group:     | domain | size, 64 | traceback | count, 64                         |
//! ```

/// The program's tracemalloc begins; first argument: frames of a traceback.
pub const START: u32 = 1;
/// It ends, and forgets all.
pub const STOP: u32 = 2;
/// It forgets all and goes on.
pub const CLEAR: u32 = 3;
/// Its peak becomes what is live now.
pub const RESET_PEAK: u32 = 4;
/// Answer: bytes now, bytes at the peak.
pub const TRACED_MEMORY: u32 = 5;
/// Answer: a text of all traces.
pub const TRACES: u32 = 6;
/// First argument an address, second tracemalloc's domain; answer: a text of no or one traceback.
pub const TRACEBACK: u32 = 7;
/// The rest of the last text, from the byte that is the first argument on.
pub const MORE: u32 = 8;
/// Answer: bytes that Heapline takes in the target.
pub const OWN_MEMORY: u32 = 9;

/// What the asking thread allocates from here on is none of the program's: it is made for an answer. No answer.
pub const HIDE: u32 = 10;
/// The end of that. No answer.
pub const SHOW: u32 = 11;

/// The process is about to fork; first argument: the number of that fork. The child begins with what is live at this place
/// in the order of events. No answer.
pub const FORK: u32 = 12;
/// It has forked, or failed to. No answer.
pub const FORKED: u32 = 13;
/// Second argument: the child's process id, 0 when there is none. No answer.
pub const CHILD: u32 = 14;

/// The blocks that the ring records from here on are samples; first argument: their mean distance in bytes. No answer.
pub const INTERVAL: u32 = 15;

/// Blocks of the interpreter's have come unseen, at addresses that may have been freed before: an interpreter has begun in
/// the place of one that ended, with allocators of its own until here. No answer.
pub const UNSEEN: u32 = 16;

/// Words of a text's head.
pub const HEAD_WORDS: usize = 5;
/// Words of a group.
pub const GROUP_WORDS: usize = 6;
/// Most frames of a traceback.
pub const MAX_NFRAME: u32 = 65535;

//! Questions of the target to the aggregator. They serve `import tracemalloc` in a traced CPython,
//! which is answered from the live table.
//!
//! 1. A question is a QUERY record in the ring of the asking thread. So the answer is exact for the
//!    question's place in the order of events.
//! 2. The answer lies in the arena ([`crate::arena::Mail`]): up to two numbers, or the first bytes
//!    of a text. [`MORE`] asks for the next piece of the text.
//!
//! Some records need no answer: a process reports forks in this way, because the place in the order
//! of events matters.
//!
//! A text is a sequence of little-endian words of 32 bits:
//!
//! ```text
//! | files | tracebacks | groups | traces in all, 64 |
//! each file:      | characters | one word each ...                                   |
//! each traceback: | frames in truth | n | n times: file, line; the most recent first |
//! each group:     | domain | size, 64 | traceback | count, 64                         |
//! ```

/// The program's tracemalloc starts. First argument: number of frames of a traceback.
pub const START: u32 = 1;
/// The program's tracemalloc stops, and forgets all traces.
pub const STOP: u32 = 2;
/// The program's tracemalloc forgets all traces and continues.
pub const CLEAR: u32 = 3;
/// The peak of the program's tracemalloc becomes the present size of live memory.
pub const RESET_PEAK: u32 = 4;
/// Asks for the traced memory. Answer: present bytes, and bytes at the peak.
pub const TRACED_MEMORY: u32 = 5;
/// Asks for all traces. Answer: a text.
pub const TRACES: u32 = 6;
/// Asks for the traceback of a block. First argument: address; second argument: tracemalloc's
/// domain. Answer: a text of no or a single traceback.
pub const TRACEBACK: u32 = 7;
/// Asks for the rest of the last text. First argument: offset in bytes.
pub const MORE: u32 = 8;
/// Asks for the memory of Heapline in the target. Answer: bytes.
pub const OWN_MEMORY: u32 = 9;

/// Later allocations of the asking thread are made for an answer, and do not count as the
/// program's. No answer.
pub const HIDE: u32 = 10;
/// Ends [`HIDE`]. No answer.
pub const SHOW: u32 = 11;

/// The process is about to fork. First argument: number of the session in the high half, number of
/// the fork in the low half. The child begins with the blocks live at this place in the order of
/// events. No answer.
pub const FORK: u32 = 12;
/// The process has forked, or has failed to fork. First argument: as of [`FORK`]. No answer.
pub const FORKED: u32 = 13;
/// Reports the child's process id. First argument: as of [`FORK`]. Second argument: the process id,
/// 0 without a child. No answer.
pub const CHILD: u32 = 14;

/// Later blocks of the ring are samples. First argument: mean distance of samples in bytes. No
/// answer.
pub const INTERVAL: u32 = 15;

/// Some blocks of the interpreter were not seen, at addresses possibly freed before. Cause: an
/// interpreter replaced an ended interpreter, and used private allocators until now. No answer.
pub const UNSEEN: u32 = 16;

/// Adds up to 16 bytes, the arguments, to the text of the ring. A zero byte ends the text. No
/// answer.
pub const TEXT: u32 = 17;
/// The text of the ring is a mark of the program in the history. The ring has no text afterwards.
/// No answer.
pub const MARK: u32 = 18;
/// The text of the ring is the name of a pool. First argument: number of the pool in this session.
/// The ring has no text afterwards. No answer.
pub const POOL: u32 = 19;
/// Allocations of the ring's thread do not count, up to [`RESUME`]. Frees do. No answer.
pub const PAUSE: u32 = 20;
/// Ends [`PAUSE`]. No answer.
pub const RESUME: u32 = 21;
/// Greatest length of a text of a ring, in bytes.
pub const LONGEST_TEXT: usize = 256;
/// Number of pools with numbers of their own.
pub const MOST_POOLS: usize = 256;

/// Number of words of the head of a text.
pub const HEAD_WORDS: usize = 5;
/// Number of words of a group.
pub const GROUP_WORDS: usize = 6;
/// Largest number of frames of a traceback.
pub const MAX_NFRAME: u32 = 65535;

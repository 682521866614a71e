//! Lost memory: live blocks that nothing in the process points to, found from outside.
//!
//! ```text
//! module      task
//! [`memory`]  reads words of the process, by process_vm_readv
//! [`pages`]   knows the pages that the process has; no other page is read
//! [`blocks`]  finds the live block around an address
//! [`heap`]    copies the native blocks of the table, and says what the table does not know
//! [`roots`]   chooses the memory that is scanned for pointers
//! [`mark`]    marks the blocks that pointers lead to, and the blocks that these lead to
//! [`verdict`] divides what is left: lost directly, or held by lost blocks
//! [`stop`]    holds all threads meanwhile, on wish
//! [`scan`]    does one pass with all threads stopped, or several passes while they run
//! ```
//!
//! - A block that is lost for the scan is lost for the program, unless the program hides pointers.
//! - The scan writes nothing into the process, and touches no page that the process has not.
//! - No content of the process leaves this module: the result has stacks and sums.

pub mod blocks;
pub mod heap;
pub mod mark;
pub mod memory;
pub mod pages;
pub mod roots;
pub mod scan;
mod stop;
pub mod verdict;

use crate::job::tracer::TraceError;
use crate::process::rights;
use std::io;

/// Reasons why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum LeakError {
    /// The table does not answer.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The memory of the process cannot be read.
    #[error("cannot read its memory: {0}{hint}", hint = rights::hint(.0))]
    Memory(io::Error),
    /// The threads of the process cannot be stopped.
    #[error("cannot stop its threads by ptrace: {0}{hint}", hint = rights::hint(.0))]
    Ptrace(io::Error),
    /// A thread did not stop.
    #[error("a thread of it does not stop: it waits in the kernel, for a disk perhaps; try again, or without --stop")]
    NotStopped,
    /// A record is written for too long.
    #[error("a thread of it was in the middle of a call of malloc each time: try again, or without --stop")]
    Unsettled,
    /// The child that held the threads was gone too early.
    #[error("the scan was suspended, and the threads of the process went on: try again")]
    Suspended,
    /// The child that holds the threads was not started.
    #[error("cannot start a process that holds its threads: {0}")]
    Process(io::Error),
    /// Another client asks for a scan.
    #[error("another scan of it is under way")]
    Busy,
    /// The process has ended, or runs another program.
    #[error("it ended meanwhile, or began another program")]
    Ended,
    /// Tracing has ended, and the table is out of date.
    #[error("tracing has ended early: nothing is known of its present blocks")]
    Stalled,
    /// The asking client has left.
    #[error("nobody waits for the result any more")]
    Left,
}

impl From<io::Error> for LeakError {
    fn from(error: io::Error) -> LeakError {
        match error.raw_os_error() {
            Some(libc::ESRCH | libc::ENOENT) => LeakError::Ended,
            _ => LeakError::Memory(error),
        }
    }
}

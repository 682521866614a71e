//! Memory over time: at the end of each step, the sums that the table keeps anyway.
//!
//! | Module | Task |
//! | --- | --- |
//! | [`recorder`] | ends steps at watermarks, and takes from the table what has changed |
//! | [`rungs`] | keeps the steps within a bound, fine where recent and coarse where old |
//! | [`gauges`] | reads the figures of the process and of the aggregator |
//! | [`marks`] | keeps events at instants |
//!
//! - Nothing is recorded on the target's paths. An event costs the table the same with a history
//!   and without.
//! - The end of a step looks at the stacks changed in the step. The next step is so long that the
//!   ends of steps take at most a hundredth of the time.
//! - For each step the sum over all stacks is the domain's current memory, to the byte.
//!
//! The steps have the form of the snapshot's section
//! ([`heapline_shared_format::snapshot::history`]), so a cut shares them with the recorder.

pub mod gauges;
pub mod marks;
pub mod recorder;
pub mod rungs;

pub use recorder::Recorder;

/// Default bound of a history in memory, in bytes.
pub const DEFAULT_MEMORY: u64 = 16 << 20;

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own making")]
mod age_tests;
#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own making")]
mod tests;

//! The memory of a process at an instant of the history, as a snapshot of its own.
//!
//! The history has bytes and blocks of each stack at the end of each step. A snapshot has such rows
//! for the peak, so a snapshot of the past has the instant in the place of the peak. All that looks
//! at the peak of a domain then looks at the instant: groups, filters, estimates, diffs, trees.
//!
//! Sizes and threads of blocks are not in the history, so a snapshot of the past has no live
//! blocks.

use super::moment::{At, Instant};
use super::time::Time;
use super::tree::Subject;
use heapline_shared_format::code::LineFormat;
use heapline_shared_format::event::python_frame;
use heapline_shared_format::snapshot::{
    Code, Domain, DomainTotals, Draws, End, Frame, History, Node, Sampled, Snapshot, Stack, StackTotals, weight,
};
use std::collections::BTreeMap;

/// Name of the row of stacks without rows of their own.
pub const SMALLER_ONES: &str = "(smaller ones)";

/// Reason why the past of a subject is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPast {
    /// There is no history.
    #[error(
        "the snapshot of process {pid} has no history (--no-history, or an older Heapline): --at live, peak and total are \
         known"
    )]
    NoHistory {
        /// The process.
        pid: u32,
    },
    /// The time is not in the history.
    #[error("{0}")]
    Time(String),
    /// The end of a range is not behind the begin.
    #[error("--until {until} is not behind --since {since}: both are in one step of the history")]
    Nothing {
        /// The begin.
        since: String,
        /// The end.
        until: String,
    },
}

/// A subject at an instant.
#[derive(Debug)]
pub struct Past {
    /// The instant.
    pub instant: Instant,
    /// The subject at the instant.
    pub subject: Subject,
}

impl Past {
    /// Returns a subject as it was at a time. Times are of the history of the first process.
    ///
    /// # Errors
    ///
    /// Fails with [`NoPast`].
    pub fn of(subject: &Subject, time: &Time) -> Result<Past, NoPast> {
        let history = history_of(subject.first())?;
        let time = history.begun.saturating_add(time.within(history).map_err(NoPast::Time)?);
        Past::at(subject, time)
    }

    /// Returns a subject as it was at the last instant of the history.
    ///
    /// # Errors
    ///
    /// Fails with [`NoPast`].
    pub fn last(subject: &Subject) -> Result<Past, NoPast> {
        let history = history_of(subject.first())?;
        Past::at(subject, history.begun.saturating_add(history.end()))
    }

    /// The subject as it was `time` milliseconds after 1970.
    fn at(subject: &Subject, time: u64) -> Result<Past, NoPast> {
        let instant = instant_at(history_of(subject.first())?, time);
        let past = match subject.is_tree() {
            false => Subject::process(snapshot_at(subject.first(), instant.end)?),
            true => {
                // Every process at the instant of the first.
                let parts = subject.parts().iter().map(|part| snapshot_at(part, instant.end));
                Subject::tree(parts.collect::<Result<_, _>>()?)
            }
        };
        Ok(Past { instant, subject: past })
    }

    /// The moment of a view of the past.
    pub fn moment(&self) -> At {
        At::Instant(self.instant)
    }

    /// Checks that this past is older than another.
    ///
    /// # Errors
    ///
    /// Fails with [`NoPast::Nothing`].
    pub fn must_be_before(&self, later: &Past) -> Result<(), NoPast> {
        let (since, until) = (self.instant, later.instant);
        if since.end < until.end {
            return Ok(());
        }
        Err(NoPast::Nothing { since: since.time(), until: until.time() })
    }
}

/// Returns the history of a process.
///
/// # Errors
///
/// Fails with [`NoPast::NoHistory`].
pub fn history_of(snapshot: &Snapshot) -> Result<&History, NoPast> {
    let history = snapshot.history.as_ref().filter(|history| !history.steps.is_empty());
    history.ok_or(NoPast::NoHistory { pid: snapshot.meta.pid })
}

/// The step of a history that contains a time, or the last step.
fn instant_at(history: &History, time: u64) -> Instant {
    let step = history.step_at(time.saturating_sub(history.begun)).unwrap_or(0);
    let end = history.steps.get(step).map_or(0, |step| step.end);
    Instant {
        begin: history.begun.saturating_add(history.begin_of(step)),
        end: history.begun.saturating_add(end),
        utc_offset: history.utc_offset,
    }
}

/// Returns the snapshot of a process as it was `time` milliseconds after 1970.
fn snapshot_at(snapshot: &Snapshot, time: u64) -> Result<Snapshot, NoPast> {
    let history = history_of(snapshot)?;
    let is_over = matches!(snapshot.meta.end, End::Exited | End::Killed);
    let end = history.begun.saturating_add(history.end());
    // A process that had not begun has nothing, and nothing is left of a process that had ended.
    let step = match time < history.begun || is_over && time > end {
        true => None,
        false => history.step_at(time - history.begun),
    };
    let mut past = snapshot.clone();
    (past.live, past.thread_totals, past.history) = (Vec::new(), Vec::new(), None);
    past.draws = past.draws.map(|draws| Draws { shared: Vec::new(), ..draws });
    past.domains = domains(history, step);
    let mut smaller = None;
    let held = step.map(|step| history.held_at(step)).unwrap_or_default();
    let mut totals = Vec::with_capacity(held.len());
    for ((domain, stack), held) in held {
        let stack = match stack {
            Some(stack) => stack,
            None if domain.is_sampled() && snapshot.meta.sample_interval != 0 => {
                // Samples of many stacks: each row has samples of a size of its own.
                let stack = smaller_ones(&mut past, history.apart);
                let size = sample_size(held.size, held.count, snapshot.meta.sample_interval);
                past.sampled.push(Sampled { stack, interval: snapshot.meta.sample_interval, size });
                stack
            }
            None => *smaller.get_or_insert_with(|| smaller_ones(&mut past, history.apart)),
        };
        totals.push(StackTotals {
            domain,
            stack,
            peak_size: held.size,
            peak_count: held.count,
            total_size: held.allocated_bytes,
            total_count: held.allocs,
        });
    }
    past.totals = totals;
    Ok(past)
}

/// Figures of the domains at the end of a step; zeros before the begin.
fn domains(history: &History, step: Option<usize>) -> Vec<DomainTotals> {
    let mut sums: BTreeMap<Domain, DomainTotals> = BTreeMap::new();
    let steps = history.steps.iter().take(step.map_or(0, |step| step + 1));
    for row in steps.flat_map(|step| &step.domains) {
        let none = DomainTotals {
            domain: row.domain,
            current: 0,
            peak: 0,
            blocks: 0,
            allocs: 0,
            frees: 0,
            allocated_bytes: 0,
        };
        let sum = sums.entry(row.domain).or_insert(none);
        *sum = DomainTotals {
            domain: row.domain,
            current: row.current,
            peak: sum.peak.max(row.greatest),
            blocks: row.blocks,
            allocs: sum.allocs.saturating_add(row.allocs),
            frees: sum.frees.saturating_add(row.frees),
            allocated_bytes: sum.allocated_bytes.saturating_add(row.allocated_bytes),
        };
    }
    let native_first = |row: &DomainTotals| (row.domain != Domain::Native, row.domain);
    let mut domains: Vec<DomainTotals> = sums.into_values().collect();
    domains.sort_by_key(native_first);
    domains
}

/// Adds a stack for all stacks without rows of their own, and returns its index.
fn smaller_ones(snapshot: &mut Snapshot, apart: u64) -> u32 {
    let index = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let code = Code {
        filename: SMALLER_ONES.to_owned(),
        name: format!("each below 1/{apart} of the whole"),
        first_line: 0,
        lines: LineFormat::Lnotab,
        line_table: Vec::new(),
    };
    let (codes, frames) = (index(snapshot.codes.len()), index(snapshot.frames.len()));
    let (nodes, stacks) = (index(snapshot.nodes.len()), index(snapshot.stacks.len()));
    snapshot.codes.push(code);
    snapshot.frames.push(Frame { address: python_frame(codes, 0), module: None });
    snapshot.nodes.push(Node { parent: None, frame: frames });
    snapshot.stacks.push(Stack { leaf: Some(nodes), total_nframe: 1, truncated: false });
    stacks
}

/// Returns the size of blocks of which `count` samples stand for `bytes` bytes: the size for which
/// a sample stands for the mean.
fn sample_size(bytes: u64, count: u64, interval: u64) -> u64 {
    let mean = bytes / count.max(1);
    let (mut low, mut high) = (0, mean);
    while low < high {
        let middle = low + (high - low) / 2;
        if weight::bytes(middle, interval) < mean { low = middle + 1 } else { high = middle }
    }
    low
}

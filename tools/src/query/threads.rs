//! Blocks of threads at the peak and in total: sums of each thread, without tracebacks. (Live
//! blocks know their threads.)

use crate::frames::{Tracebacks, unknown};
use crate::input::moment::At;
use crate::query::estimate::Estimate;
use crate::query::statistics::Trace;
use crate::query::view::{View, thread_row};
use heapline_shared_format::snapshot::{Domain, Snapshot};

/// Sums of a thread in a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ThreadTotals {
    thread: u32,
    domain: Domain,
    peak_size: u64,
    peak_count: u64,
    total_size: u64,
    total_count: u64,
}

/// Reason why a snapshot has no rows of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoThreads {
    /// The snapshot has no sums of threads.
    #[error("the snapshot of process {pid} has no sums of threads at --at {}: use --at live, or record it again", at.name())]
    NotKept {
        /// The process.
        pid: u32,
        /// Moment of the view.
        at: At,
    },
    /// The blocks of threads are samples.
    #[error("sums of threads at --at {} are not known of samples: --at live has the blocks, and all calls exactly", at.name())]
    Sampled {
        /// Moment of the view.
        at: At,
    },
}

/// Sums of threads in a snapshot; empty in snapshots without such sums.
fn totals(_snapshot: &Snapshot) -> &[ThreadTotals] {
    &[]
}

/// The blocks of each thread in a view of the peak, or of the whole time.
///
/// # Errors
///
/// Fails with [`NoThreads`].
pub(super) fn traces(view: View, snapshot: &Snapshot, names: &mut Tracebacks) -> Result<Vec<Trace>, NoThreads> {
    rows(view, snapshot, totals(snapshot), names)
}

fn rows(
    view: View,
    snapshot: &Snapshot,
    totals: &[ThreadTotals],
    names: &mut Tracebacks,
) -> Result<Vec<Trace>, NoThreads> {
    let has_blocks = snapshot.totals.iter().any(|row| row.domain == view.domain);
    let is_sampled = snapshot.meta.sample_interval != 0 || !snapshot.sampled.is_empty();
    if view.domain.is_sampled() && is_sampled {
        return Err(NoThreads::Sampled { at: view.at });
    }
    if has_blocks && totals.is_empty() {
        return Err(NoThreads::NotKept { pid: snapshot.meta.pid, at: view.at });
    }
    let traceback = unknown(names);
    let mut trace = |row: &ThreadTotals| {
        let (size, count) = match view.at {
            At::Total => (row.total_size, row.total_count),
            At::Live | At::Peak => (row.peak_size, row.peak_count),
        };
        let threads = Some(names.string(&thread_row(&snapshot.threads[row.thread as usize], snapshot.meta.pid)));
        let estimate = Estimate::of(count, None, 0);
        let (blamed, total_nframe, truncated, block) = (traceback, 0, false, None);
        Trace { traceback, blamed, size, count, estimate, total_nframe, truncated, block, threads }
    };
    let of_domain = totals.iter().filter(|row| row.domain == view.domain);
    Ok(of_domain.map(&mut trace).filter(|trace| trace.count > 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::statistics::{By, group, sorted};
    use heapline_shared_format::snapshot::{End, Meta, StackTotals, Thread};

    fn thread(tid: u32, name: &str, alive: bool) -> Thread {
        Thread { tid, name: name.to_string(), alive }
    }

    #[test]
    fn sums_of_threads_are_rows_by_name() {
        let mut snapshot = snapshot();
        let totals = [(0, 10, 1), (1, 300, 3), (2, 500, 5), (3, 0, 0)].map(|(thread, size, count)| {
            let (total_size, total_count) = (size * 2, count * 2);
            ThreadTotals { thread, domain: Domain::Native, peak_size: size, peak_count: count, total_size, total_count }
        });
        let of = |snapshot: &Snapshot, at, totals: &[ThreadTotals]| {
            let mut names = Tracebacks::default();
            let view = View { domain: Domain::Native, at };
            let traces = rows(view, snapshot, totals, &mut names)?;
            let rows = sorted(&names, group(&names, traces, By::Thread, false)).into_iter();
            let key = |key| match key {
                crate::query::statistics::Key::Text(text) => names.text(text).to_string(),
                other => panic!("{other:?}"),
            };
            Ok(rows.map(|row| (key(row.key), row.size, row.count)).collect::<Vec<_>>())
        };
        let row = |key: &str, size, count| (key.to_string(), size, count);
        let expected = [row("worker-* (ended)", 800, 8), row("main (7)", 10, 1)];
        assert_eq!(of(&snapshot, At::Peak, &totals), Ok(expected.to_vec()));
        let expected = [row("worker-* (ended)", 1600, 16), row("main (7)", 20, 2)];
        assert_eq!(of(&snapshot, At::Total, &totals), Ok(expected.to_vec()));
        assert_eq!(of(&snapshot, At::Peak, &[]), Err(NoThreads::NotKept { pid: 7, at: At::Peak }));
        snapshot.meta.sample_interval = 4096;
        assert_eq!(of(&snapshot, At::Peak, &totals), Err(NoThreads::Sampled { at: At::Peak }));
        snapshot.totals.clear();
        snapshot.meta.sample_interval = 0;
        assert_eq!(of(&snapshot, At::Peak, &[]), Ok(Vec::new()), "no blocks, no rows");
    }

    fn snapshot() -> Snapshot {
        let meta = Meta {
            pid: 7,
            command: String::new(),
            executable: String::new(),
            taken_at: String::new(),
            heapline: String::new(),
            sample_interval: 0,
            nframe: 64,
            end: End::Running,
            exit_status: None,
            lost: Default::default(),
            contradictions: Default::default(),
            untracked_frees: 0,
            in_realloc: 0,
            target_bytes: 0,
            aggregator_bytes: 0,
            notes: Vec::new(),
            unseen: Vec::new(),
        };
        let (peak_size, peak_count, total_size, total_count) = (810, 9, 1620, 18);
        let domain = Domain::Native;
        Snapshot {
            meta,
            origin: None,
            modules: Vec::new(),
            codes: Vec::new(),
            frames: Vec::new(),
            nodes: Vec::new(),
            stacks: Vec::new(),
            mixed: Vec::new(),
            sampled: Vec::new(),
            calls: Vec::new(),
            threads: vec![
                thread(7, "main", true),
                thread(8, "worker-1", false),
                thread(9, "worker-2", false),
                thread(10, "idle", true),
            ],
            domains: Vec::new(),
            live: Vec::new(),
            totals: vec![StackTotals { domain, stack: 0, peak_size, peak_count, total_size, total_count }],
            draws: None,
        }
    }
}

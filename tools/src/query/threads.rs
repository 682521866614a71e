//! Blocks of threads at the peak and in total: sums of each thread, without tracebacks. (Live
//! blocks know their threads.)

use crate::frames::{Tracebacks, unknown};
use crate::input::moment::At;
use crate::query::estimate::Estimate;
use crate::query::statistics::Trace;
use crate::query::view::{View, thread_rows};
use heapline_shared_format::snapshot::{Snapshot, ThreadTotals};

/// Fact that a snapshot has no sums of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot of process {pid} has no sums of threads at --at {}: use --at live, or record it again", at.name())]
pub struct NoThreads {
    /// The process.
    pub pid: u32,
    /// Moment of the view.
    pub at: At,
}

/// The blocks of each thread in a view of the peak, or of the whole time.
///
/// # Errors
///
/// Fails with [`NoThreads`].
pub(super) fn traces(view: View, snapshot: &Snapshot, names: &mut Tracebacks) -> Result<Vec<Trace>, NoThreads> {
    let totals = &snapshot.thread_totals;
    let has_blocks = snapshot.totals.iter().any(|row| row.domain == view.domain);
    if has_blocks && totals.is_empty() {
        return Err(NoThreads { pid: snapshot.meta.pid, at: view.at });
    }
    let interval = if view.domain.is_sampled() { widest_interval(snapshot) } else { 0 };
    let traceback = unknown(names);
    let threads = thread_rows(&snapshot.threads);
    let mut trace = |row: &ThreadTotals| {
        let (size, count) = match view.at {
            At::Total => (row.total_size, row.total_count),
            At::Live | At::Peak | At::Instant(_) => (row.peak_size, row.peak_count),
        };
        let threads = Some(names.string(&threads[row.thread as usize]));
        let estimate = match interval {
            0 => Estimate::of(count, None, 0),
            interval => Estimate::of_sum(size, count, interval),
        };
        let (blamed, total_nframe, truncated, block) = (traceback, 0, false, None);
        Trace { traceback, blamed, size, count, estimate, total_nframe, truncated, block, threads, stack: None }
    };
    let of_domain = totals.iter().filter(|row| row.domain == view.domain);
    Ok(of_domain.map(&mut trace).filter(|trace| trace.count > 0).collect())
}

/// Greatest mean distance of samples, in bytes. 0 without samples.
fn widest_interval(snapshot: &Snapshot) -> u64 {
    let of_stacks = snapshot.sampled.iter().map(|row| row.interval);
    of_stacks.chain([snapshot.meta.sample_interval]).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::statistics::{By, group, sorted};
    use heapline_shared_format::snapshot::{Domain, Meta, StackTotals, Thread};

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
        let of = |snapshot: &mut Snapshot, at, totals: &[ThreadTotals]| {
            snapshot.thread_totals = totals.to_vec();
            let mut names = Tracebacks::default();
            let view = View { domain: Domain::Native, at };
            let traces = traces(view, snapshot, &mut names)?;
            let rows = sorted(&names, group(&names, traces, By::Thread, false)).into_iter();
            let key = |key| match key {
                crate::query::statistics::Key::Text(text) => names.text(text).to_string(),
                other => panic!("{other:?}"),
            };
            Ok(rows.map(|row| (key(row.key), row.size, row.count)).collect::<Vec<_>>())
        };
        let row = |key: &str, size, count| (key.to_string(), size, count);
        let expected = [row("worker-* (ended)", 800, 8), row("main (7)", 10, 1)];
        assert_eq!(of(&mut snapshot, At::Peak, &totals), Ok(expected.to_vec()));
        let expected = [row("worker-* (ended)", 1600, 16), row("main (7)", 20, 2)];
        assert_eq!(of(&mut snapshot, At::Total, &totals), Ok(expected.to_vec()));
        assert_eq!(of(&mut snapshot, At::Peak, &[]), Err(NoThreads { pid: 7, at: At::Peak }));
        snapshot.totals.clear();
        assert_eq!(of(&mut snapshot, At::Peak, &[]), Ok(Vec::new()), "no blocks, no rows");
    }

    #[test]
    fn sums_of_samples_are_estimates() {
        let mut snapshot = snapshot();
        snapshot.meta.sample_interval = 1000;
        let (size, count) = (100_000, 500);
        let domain = Domain::Native;
        let row = |total_size, total_count| ThreadTotals {
            thread: 1,
            domain,
            peak_size: size,
            peak_count: count,
            total_size,
            total_count,
        };
        let mut names = Tracebacks::default();
        let view = View { domain, at: At::Peak };
        snapshot.thread_totals = vec![row(size, count)];
        let found = traces(view, &snapshot, &mut names).unwrap();
        // A hundred draws: a tenth of the sum is the standard deviation.
        let (low, high) = found[0].estimate.size_interval(size).expect("an estimate");
        assert!((75_000..85_000).contains(&low) && (115_000..130_000).contains(&high), "{low} to {high}");
        let (low, high) = found[0].estimate.count_interval().expect("an estimate");
        assert!((375..425).contains(&low) && (575..650).contains(&high), "{low} to {high}");
        snapshot.thread_totals = vec![ThreadTotals { peak_size: 0, peak_count: 0, ..row(0, 0) }];
        assert!(traces(view, &snapshot, &mut names).unwrap().is_empty());
    }

    fn snapshot() -> Snapshot {
        let meta = Meta { pid: 7, nframe: 64, ..Meta::default() };
        let (peak_size, peak_count, total_size, total_count) = (810, 9, 1620, 18);
        let domain = Domain::Native;
        Snapshot {
            meta,
            threads: vec![
                thread(7, "main", true),
                thread(8, "worker-1", false),
                thread(9, "worker-2", false),
                thread(10, "idle", true),
            ],
            totals: vec![StackTotals { domain, stack: 0, peak_size, peak_count, total_size, total_count }],
            ..Snapshot::default()
        }
    }
}

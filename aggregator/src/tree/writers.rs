//! The writer threads for the snapshots of ended processes. The number of threads is small, however
//! many processes end at the same time.

use crate::drain::Stop;
use crate::job::{Ending, Job};
use heapline_shared_format::snapshot::End;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

const SCRIBES: usize = 2;
/// Limit of the errors shown individually. A full disk makes an error for each process.
const MAX_ERRORS: usize = 3;

/// Reasons why a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The process has ended.
    Ended,
    /// The process goes on untraced.
    LetGo,
    /// exec has replaced the program by another program.
    Replaced,
}

/// Counts of the handled processes.
#[derive(Debug, Default)]
pub struct Tally {
    /// Processes with a written snapshot.
    pub written: u64,
    /// Written processes with lost events.
    pub inexact: u64,
    /// Written processes with memory known as unseen.
    pub partial: u64,
    /// Written processes that still ran.
    pub left: u64,
    /// Processes refused for tracing.
    pub refused: u64,
    /// Error messages.
    pub errors: Vec<String>,
}

/// The writer threads of a tree.
pub struct SnapshotWriters {
    jobs: Sender<(Arc<Job>, Reason)>,
    threads: Vec<JoinHandle<()>>,
    tally: Arc<Mutex<Tally>>,
    /// Jobs handed over, but not yet written.
    backlog: Arc<AtomicUsize>,
}

impl SnapshotWriters {
    /// Starts the threads.
    pub fn start(tally: Arc<Mutex<Tally>>) -> io::Result<SnapshotWriters> {
        let (jobs, waiting) = mpsc::channel();
        let waiting = Arc::new(Mutex::new(waiting));
        let backlog = Arc::new(AtomicUsize::new(0));
        let writer = |_| {
            let (waiting, tally, backlog) = (Arc::clone(&waiting), Arc::clone(&tally), Arc::clone(&backlog));
            thread::Builder::new().name("writer".to_owned()).spawn(move || work(&waiting, &tally, &backlog))
        };
        let threads = (0..SCRIBES).map(writer).collect::<io::Result<_>>()?;
        Ok(SnapshotWriters { jobs, threads, tally, backlog })
    }

    /// Hands a job over to be ended and written later.
    pub fn end(&self, job: Arc<Job>, reason: Reason) {
        self.backlog.fetch_add(1, Ordering::Relaxed);
        // The receivers live as long as this value, so the send cannot fail.
        let _ = self.jobs.send((job, reason));
    }

    /// Returns the number of jobs not yet written.
    pub fn backlog(&self) -> usize {
        self.backlog.load(Ordering::Relaxed)
    }

    /// Counts a process as not traced.
    pub fn refuse(&self) {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).refused += 1;
    }

    /// Waits until all snapshots are written.
    pub fn finish(self) {
        drop(self.jobs);
        for thread in self.threads {
            if thread.join().is_err() {
                let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
                tally.errors.push("a thread that writes snapshots has failed (please report this)".to_owned());
            }
        }
    }
}

fn work(waiting: &Mutex<Receiver<(Arc<Job>, Reason)>>, tally: &Mutex<Tally>, backlog: &AtomicUsize) {
    loop {
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((job, reason)) = next else { return };
        let was_detached = job.is_finished();
        let ending = |end| Ending { end, exit_status: None };
        let done = match reason {
            Reason::Ended => job.finish(Stop::Ended, ending(End::Exited)),
            Reason::LetGo => job.finish(Stop::Detach, ending(End::Detached)),
            Reason::Replaced => job.replace(),
        };
        drop(job);
        backlog.fetch_sub(1, Ordering::Relaxed);
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        match done {
            Ok(_) if reason == Reason::Replaced => {}
            Ok(summary) => {
                tally.written += 1;
                tally.inexact += u64::from(!summary.is_exact);
                tally.partial += u64::from(!summary.is_complete);
                tally.left += u64::from(reason == Reason::LetGo && !was_detached);
            }
            Err(error) if tally.errors.len() < MAX_ERRORS => tally.errors.push(error.to_string()),
            Err(error) => tracing::warn!(%error, "a child's snapshot was not written"),
        }
    }
}

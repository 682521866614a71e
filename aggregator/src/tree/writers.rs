//! Threads that write the snapshots of processes that have ended: a few, however many end at one
//! time.

use crate::drain::Stop;
use crate::job::{Ending, Job};
use heapline_shared_format::snapshot::End;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

const SCRIBES: usize = 2;
/// Errors that are told one by one; a full disk makes as many as there are processes.
const MAX_ERRORS: usize = 3;

/// Why a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The process has.
    Ended,
    /// The process goes on untraced.
    LetGo,
    /// exec has put another program in the place of this one.
    Replaced,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Tally {
    /// Processes whose snapshot was written.
    pub written: u64,
    /// Those of them that lost something.
    pub inexact: u64,
    /// Those of them that have memory which is known not to be seen.
    pub partial: u64,
    /// Those of them that still ran.
    pub left: u64,
    /// Processes that were not traced.
    pub refused: u64,
    /// What went wrong.
    pub errors: Vec<String>,
}

/// See the module.
pub struct SnapshotWriters {
    jobs: Sender<(Arc<Job>, Reason)>,
    threads: Vec<JoinHandle<()>>,
    tally: Arc<Mutex<Tally>>,
    /// Jobs that were handed over and are not written yet.
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

    /// Ends a job, sooner or later.
    pub fn end(&self, job: Arc<Job>, reason: Reason) {
        self.backlog.fetch_add(1, Ordering::Relaxed);
        // They live as long as this.
        let _ = self.jobs.send((job, reason));
    }

    /// Jobs that are not written yet.
    pub fn backlog(&self) -> usize {
        self.backlog.load(Ordering::Relaxed)
    }

    /// A process is not traced.
    pub fn refuse(&self) {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).refused += 1;
    }

    /// Waits until all is written.
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

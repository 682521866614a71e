//! Stops all threads of a process, or all but one, for a moment.

use super::ptrace::{self, Stop};
use std::collections::HashSet;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// Limit for all threads to stop. A running thread stops at once, but may have to wait for a
/// processor.
const TO_STOP: Duration = Duration::from_millis(80);
/// Interval between two looks whether an unstopped thread sleeps in the kernel.
const LOOK: Duration = Duration::from_millis(5);
/// Number of attempts. The next constant is the time in between, during which the threads run.
const ATTEMPTS: usize = 5;
const PAUSE: Duration = Duration::from_millis(10);

/// Stopped threads. The threads go on when this value is dropped.
pub struct Frozen(Vec<u32>);

impl Frozen {
    /// Stops all threads except `except`; 0 for no exception. Returns none, with all threads
    /// running, when a thread does not stop in time.
    pub fn others(pid: u32, except: u32) -> io::Result<Option<Frozen>> {
        for _ in 0..ATTEMPTS {
            if let Some(frozen) = Frozen::attempt(pid, except)? {
                return Ok(Some(frozen));
            }
            thread::sleep(PAUSE);
        }
        Ok(None)
    }

    /// Returns the numbers of the stopped threads.
    pub fn threads(&self) -> &[u32] {
        &self.0
    }

    fn attempt(pid: u32, except: u32) -> io::Result<Option<Frozen>> {
        let begun = Instant::now();
        let mut frozen = Frozen(Vec::new());
        let mut seen = HashSet::from([except]);
        loop {
            // A thread that still runs may start another thread.
            let new: Vec<u32> = ptrace::threads(pid).into_iter().filter(|&tid| seen.insert(tid)).collect();
            if new.is_empty() {
                return Ok(Some(frozen));
            }
            let mut held = Vec::new();
            for tid in new {
                if hold(pid, tid)? {
                    held.push(tid);
                }
            }
            for tid in held {
                match wait(pid, tid, begun)? {
                    Wait::Stopped => frozen.0.push(tid),
                    Wait::Ended => {}
                    Wait::InKernel => return Ok(None),
                }
            }
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for &tid in &self.0 {
            // A thread killed in the meantime is gone, so the error is ignored.
            let _ = ptrace::detach(tid, 0);
        }
    }
}

/// Asks a thread to stop. Returns false when the thread has ended.
fn hold(pid: u32, tid: u32) -> io::Result<bool> {
    let seized = match ptrace::seize(tid) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && ptrace::is_ours(pid, tid) => Ok(()),
        other => other,
    };
    match seized.and_then(|()| ptrace::interrupt(tid)) {
        Ok(()) => Ok(true),
        Err(_) if matches!(ptrace::state(pid, tid), None | Some('Z' | 'X')) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        Err(error) => Err(error),
    }
}

enum Wait {
    Stopped,
    Ended,
    InKernel,
}

fn wait(pid: u32, tid: u32, begun: Instant) -> io::Result<Wait> {
    loop {
        match ptrace::wait(tid, LOOK)? {
            None if begun.elapsed() > TO_STOP || ptrace::state(pid, tid) == Some('D') => return Ok(Wait::InKernel),
            None => {}
            Some(Stop::Gone) => return Ok(Wait::Ended),
            Some(Stop::Event { .. }) => return Ok(Wait::Stopped),
            Some(Stop::Signal(signal)) => ptrace::resume(tid, signal)?,
            Some(Stop::SystemCall) => ptrace::resume(tid, 0)?,
        }
    }
}

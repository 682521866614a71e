//! Holds all threads of a process while the process is scanned.
//!
//! A child of the aggregator holds the threads, and the aggregator reads the memory:
//!
//! 1. The child stops all threads, and sends their registers.
//! 2. The aggregator scans. A thread of the aggregator sends a beat every fifth of a second.
//! 3. The aggregator sends the end. The child lets the threads go, answers, and ends.
//!
//! The threads always go on, since the kernel lets them go when the child is gone:
//! - The child lets the threads go after a second without a beat: the aggregator is suspended.
//! - The child dies with the aggregator.
//! - The aggregator kills a child that does not answer for a second: the child is suspended.

use super::LeakError;
use super::roots::Thread as Stopped;
use crate::arch::registers;
use crate::base::sys;
use crate::process::frozen::Frozen;
use crate::process::ptrace;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Interval between two beats.
const BEAT: Duration = Duration::from_millis(200);
/// Longest silence of either side.
const SILENCE: Duration = Duration::from_secs(1);
/// Longest time to stop all threads.
const TO_STOP: Duration = Duration::from_secs(3);
/// Most threads, and most words of a thread, of a message.
const MOST_THREADS: u64 = 1 << 20;
const MOST_WORDS: u64 = 64 << 10;

/// Messages of the aggregator.
const BEATS: u8 = 1;
const ENDS: u8 = 2;
/// First bytes of the child's message: the threads are stopped; or the number of an error follows.
const STOPPED: u64 = 1;
const FAILED: u64 = 2;
/// Number that stands for a thread that did not stop in time.
const NOT_STOPPED: u64 = 0;

/// A process with all threads stopped. The threads go on when this value is dropped.
pub struct Hold {
    child: Child,
    stream: UnixStream,
    threads: Vec<Stopped>,
    since: Instant,
    beats: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

/// A child process. Dropping the value ends the child.
struct Child(libc::pid_t);

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: `kill` has no memory preconditions. The child is not waited for yet, so the
        // number still belongs to the child.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        let mut status = 0;
        // SAFETY: `status` is valid for the write. A signal only interrupts the wait.
        while unsafe { libc::waitpid(self.0, &raw mut status, 0) } == -1
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
}

impl Hold {
    /// Stops all threads of a process.
    pub fn begin(pid: u32) -> Result<Hold, LeakError> {
        let (ours, theirs) = UnixStream::pair().map_err(LeakError::Process)?;
        // SAFETY: `getpid` has no preconditions.
        let parent = unsafe { libc::getpid() };
        let since = Instant::now();
        // SAFETY: the child's copy of this thread holds the threads and ends. Other threads of the
        // aggregator may hold locks, which stay locked in the child. The C library releases the
        // locks of malloc in the child, and the child uses no other locks.
        let child = unsafe { libc::fork() };
        if child == 0 {
            drop(ours);
            be_the_child(pid, parent, theirs);
        }
        let child = Child(sys::check(child).map_err(LeakError::Process)?);
        drop(theirs);
        ours.set_read_timeout(Some(TO_STOP)).map_err(LeakError::Process)?;
        let threads = read_threads(&mut &ours)?;
        let beats = start_beats(&ours).map_err(LeakError::Process)?;
        Ok(Hold { child, stream: ours, threads, since, beats: Some(beats) })
    }

    /// The stopped threads.
    pub fn threads(&self) -> &[Stopped] {
        &self.threads
    }

    /// Lets the threads go. Returns how long the threads were stopped. Fails if the threads went
    /// before.
    pub fn end(mut self) -> Result<Duration, LeakError> {
        self.stop_beats();
        let mut answer = [0];
        let was_held = self
            .stream
            .set_read_timeout(Some(SILENCE))
            .and_then(|()| self.stream.write_all(&[ENDS]))
            .and_then(|()| self.stream.read_exact(&mut answer));
        let Hold { child, since, .. } = &self;
        let held = since.elapsed();
        match was_held {
            Ok(()) => Ok(held),
            // A suspended child has held the threads all the time.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tracing::warn!(child = child.0, "the child that held the threads did not answer");
                Ok(held)
            }
            Err(_) => Err(LeakError::Suspended),
        }
    }

    fn stop_beats(&mut self) {
        if let Some((ends, beats)) = self.beats.take() {
            drop(ends);
            // The thread only sends beats.
            let _ = beats.join();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.stop_beats();
    }
}

fn start_beats(stream: &UnixStream) -> io::Result<(mpsc::Sender<()>, JoinHandle<()>)> {
    let mut stream = stream.try_clone()?;
    let (ends, end) = mpsc::channel::<()>();
    let beat = move || {
        while end.recv_timeout(BEAT) == Err(mpsc::RecvTimeoutError::Timeout) && stream.write_all(&[BEATS]).is_ok() {}
    };
    Ok((ends, thread::Builder::new().name("beats".to_owned()).spawn(beat)?))
}

fn be_the_child(pid: u32, parent: libc::pid_t, mut stream: UnixStream) -> ! {
    sys::die_with(parent);
    sys::be_urgent();
    // Whatever happens, the end of this process lets the threads go.
    let _ = panic::catch_unwind(AssertUnwindSafe(|| hold(pid, &mut stream)));
    // SAFETY: `_exit` has no preconditions. It ends the process without the exit handlers of the
    // aggregator.
    unsafe { libc::_exit(0) }
}

fn hold(pid: u32, stream: &mut UnixStream) -> io::Result<()> {
    let stopped = Frozen::others(pid, 0).and_then(|frozen| match frozen {
        None => Ok(None),
        Some(frozen) => {
            let threads = frozen.threads().iter().map(|&tid| registers_of(tid)).collect::<io::Result<Vec<_>>>()?;
            Ok(Some((frozen, threads)))
        }
    });
    let frozen = match stopped {
        Ok(Some((frozen, threads))) => {
            stream.write_all(&message(&threads))?;
            frozen
        }
        Ok(None) => return stream.write_all(&words(&[FAILED, NOT_STOPPED])),
        Err(error) => {
            let number = error.raw_os_error().unwrap_or(libc::EIO);
            return stream.write_all(&words(&[FAILED, u64::from(number.unsigned_abs())]));
        }
    };
    stream.set_read_timeout(Some(SILENCE))?;
    let mut asked = [BEATS];
    while asked == [BEATS] {
        stream.read_exact(&mut asked)?;
    }
    drop(frozen);
    stream.write_all(&asked)
}

fn registers_of(tid: u32) -> io::Result<Stopped> {
    let general = ptrace::registers(tid)?;
    let mut registers = registers::by_number(&general).to_vec();
    // A processor or a kernel without such registers has no pointers in them.
    let vectors = ptrace::extended_state(tid).unwrap_or_default();
    registers.extend(vectors.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default())));
    Ok(Stopped {
        stack_pointer: registers::stack_pointer(&general),
        thread_pointer: registers::thread_pointer(&general),
        registers,
    })
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn message(threads: &[Stopped]) -> Vec<u8> {
    let mut message = words(&[STOPPED, threads.len() as u64]);
    for thread in threads {
        message.extend(words(&[thread.stack_pointer, thread.thread_pointer, thread.registers.len() as u64]));
        message.extend(words(&thread.registers));
    }
    message
}

fn read_threads(stream: &mut impl Read) -> Result<Vec<Stopped>, LeakError> {
    let mut word = || -> io::Result<u64> {
        let mut bytes = [0; 8];
        stream.read_exact(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    };
    let told = word().map_err(|_| LeakError::Suspended)?;
    let number = word().map_err(|_| LeakError::Suspended)?;
    match (told, number) {
        (STOPPED, threads) => {
            let mut thread = || {
                let (stack_pointer, thread_pointer) = (word()?, word()?);
                let registers = (0..word()?.min(MOST_WORDS)).map(|_| word()).collect::<io::Result<Vec<_>>>()?;
                Ok(Stopped { stack_pointer, thread_pointer, registers })
            };
            let all: io::Result<Vec<_>> = (0..threads.min(MOST_THREADS)).map(|_| thread()).collect();
            all.map_err(|_| LeakError::Suspended)
        }
        (_, NOT_STOPPED) => Err(LeakError::NotStopped),
        (_, error) => Err(LeakError::Ptrace(io::Error::from_raw_os_error(i32::try_from(error).unwrap_or(libc::EIO)))),
    }
}

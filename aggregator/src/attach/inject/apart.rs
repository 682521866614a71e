//! The process that an injection runs in, and the watch over that process.
//!
//! Whatever a tracer holds goes on when the tracer dies, so a tracer that is itself suspended is best killed. A process
//! cannot do that to itself, and the aggregator must live on to say what happened. So the injection runs in a child of the
//! aggregator's:
//! - The child has a session of its own. What stops the aggregator (Ctrl-Z, a signal to it or to its process group, a
//!   debugger) does not stop the child, which finishes in milliseconds.
//! - What suspends the child ends it: the aggregator kills the child when it makes no progress for a second while it may
//!   hold a thread.
//! - The child dies with the aggregator.
//!
//! What suspends both at once, as a cgroup freezer does, cannot be helped.

use super::{InjectError, Injected};
use crate::base::sys;
use std::cell::UnsafeCell;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

/// Between two looks at the child.
const LOOK: Duration = Duration::from_millis(20);
/// After so many looks without progress, the child is killed. Looks are counted, and not time: an aggregator that was
/// stopped itself has not looked.
const LOOKS: u32 = 50;
/// How long a message may be.
const TEXT_BYTES: usize = 1024;

/// What the two processes share.
struct Shared {
    /// Counts the child's progress; 0 while the child holds nobody.
    beats: AtomicU32,
    /// Written by the child before it ends, and read by the aggregator afterwards.
    outcome: UnsafeCell<Option<Outcome>>,
}

/// What came of it, without pointers: it crosses from one process to another.
#[derive(Clone, Copy)]
#[expect(clippy::large_enum_variant, reason = "there is one, in a page of its own")]
enum Outcome {
    Injected(Injected),
    Gone,
    Failed(Text),
}

#[derive(Clone, Copy)]
struct Text {
    bytes: [u8; TEXT_BYTES],
    length: usize,
}

impl Text {
    fn of(text: &str) -> Text {
        let length = text.len().min(TEXT_BYTES);
        let mut bytes = [0; TEXT_BYTES];
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        Text { bytes, length }
    }
}

/// The child's counter; null in every other process.
static BEATS: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

fn beats() -> Option<&'static AtomicU32> {
    // SAFETY: null, or a word of the mapping that the child keeps until it ends.
    unsafe { BEATS.load(Ordering::Relaxed).as_ref() }
}

/// Notes progress of a process that may hold a thread.
pub fn beat() {
    if let Some(beats) = beats() {
        beats.store(beats.load(Ordering::Relaxed).wrapping_add(1).max(1), Ordering::Relaxed);
    }
}

/// Notes that this process holds no thread.
pub fn rest() {
    if let Some(beats) = beats() {
        beats.store(0, Ordering::Relaxed);
    }
}

/// Does the work in a child process, and waits for its end.
pub fn run(work: impl FnOnce() -> Result<Injected, InjectError>) -> Result<Injected, InjectError> {
    let shared = Mapping::new().map_err(InjectError::Process)?;
    // SAFETY: plain call.
    let parent = unsafe { libc::getpid() };
    // SAFETY: the child's copy of this thread does `work` and ends. Other threads of the aggregator, at a detach, may hold
    // locks that stay locked in the child: malloc's are not among them (the C library sees to that), and no others are used.
    let child = unsafe { libc::fork() };
    if child == 0 {
        be_the_child(&shared, parent, work);
    }
    let child = sys::check(child).map_err(InjectError::Process)?;
    let was_killed = watch(child, &shared.beats);
    // SAFETY: the child, which wrote it, has ended.
    let outcome = unsafe { *shared.outcome.get() };
    match outcome {
        Some(Outcome::Injected(injected)) => Ok(injected),
        Some(Outcome::Gone) => Err(InjectError::Gone),
        Some(Outcome::Failed(text)) => {
            Err(InjectError::Told(String::from_utf8_lossy(&text.bytes[..text.length]).into_owned()))
        }
        None if was_killed => Err(InjectError::Suspended),
        None => Err(InjectError::Ended),
    }
}

fn be_the_child(shared: &Shared, parent: libc::pid_t, work: impl FnOnce() -> Result<Injected, InjectError>) -> ! {
    // SAFETY: plain calls. A child whose parent has died before the second one gets no signal for that.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != parent {
            libc::_exit(1);
        }
    }
    sys::be_urgent();
    BEATS.store((&raw const shared.beats).cast_mut(), Ordering::Relaxed);
    if let Ok(worked) = panic::catch_unwind(AssertUnwindSafe(work)) {
        let outcome = match worked {
            Ok(injected) => Outcome::Injected(injected),
            Err(InjectError::Gone) => Outcome::Gone,
            Err(error) => Outcome::Failed(Text::of(&error.to_string())),
        };
        // SAFETY: the aggregator reads it when this process has ended.
        unsafe { *shared.outcome.get() = Some(outcome) };
    }
    // SAFETY: ends the process without running what the aggregator wants done at its own end.
    unsafe { libc::_exit(0) }
}

/// Waits for the child's end. Returns whether it had to be killed.
fn watch(child: libc::pid_t, beats: &AtomicU32) -> bool {
    let mut was_killed = false;
    let (mut last, mut looks) = (0, 0);
    let end = sys::pidfd(child.unsigned_abs());
    // Without a descriptor, as under a limit, the child is waited for without a watch.
    while let Ok(end) = &end
        && !sys::await_readable(end, LOOK)
    {
        let now = beats.load(Ordering::Relaxed);
        looks = if now == 0 || now != last { 0 } else { looks + 1 };
        last = now;
        if looks == LOOKS {
            was_killed = true;
            // SAFETY: plain call; the child is not waited for yet, so the number is its own.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
    }
    let mut status = 0;
    // SAFETY: `status` is valid for the write. A signal interrupts the wait only.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } == -1
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    was_killed
}

/// Memory that a child shares.
struct Mapping(ptr::NonNull<Shared>);

impl Mapping {
    fn new() -> io::Result<Mapping> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: new memory wherever the kernel likes.
        let at = unsafe { libc::mmap(ptr::null_mut(), size_of::<Shared>(), protection, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let shared = ptr::NonNull::new(at.cast::<Shared>()).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: fresh memory of that size at the beginning of a page.
        unsafe { shared.write(Shared { beats: AtomicU32::new(0), outcome: UnsafeCell::new(None) }) };
        Ok(Mapping(shared))
    }
}

impl std::ops::Deref for Mapping {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        // SAFETY: it was initialised by `new`, and is mapped for as long as this lives.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with that size; nobody has a reference any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<Shared>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heapline_shared_format::inject::Request;

    fn injected() -> Injected {
        Injected {
            answer: Request { patched: 7, ..Request::default() },
            calls: None,
            is_released: false,
            stopped: LOOK,
        }
    }

    #[test]
    fn results_come_back() {
        let done = run(|| Ok(injected())).expect("it was done");
        assert_eq!((done.answer.patched, done.stopped), (7, LOOK));
        assert!(matches!(run(|| Err(InjectError::Gone)), Err(InjectError::Gone)));
        let failed = run(|| Err(InjectError::ShadowStack)).expect_err("that failed");
        assert_eq!(failed.to_string(), InjectError::ShadowStack.to_string());
    }

    #[test]
    fn a_child_that_dies_is_an_error() {
        // SAFETY: the child kills itself.
        let died = run(|| unsafe { libc::abort() });
        assert!(matches!(died, Err(InjectError::Ended)));
    }

    #[test]
    fn a_child_that_holds_somebody_and_is_stopped_is_killed() {
        let stopped = run(|| {
            beat();
            // SAFETY: the child stops itself.
            unsafe { libc::raise(libc::SIGSTOP) };
            Ok(injected())
        });
        assert!(matches!(stopped, Err(InjectError::Suspended)));
    }
}

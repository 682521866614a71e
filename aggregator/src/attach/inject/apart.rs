//! The child process for an injection, and the watch over the child.
//!
//! When a tracer dies, its stopped threads go on. A suspended tracer is therefore best killed. The
//! aggregator cannot kill itself, because it must report the outcome. So the injection runs in a
//! child of the aggregator:
//! - The child has a session of its own. A stop of the aggregator (Ctrl-Z, a signal to the
//!   aggregator or its process group, a debugger) does not stop the child. The child finishes in
//!   milliseconds.
//! - A suspended child is ended. The aggregator kills the child after one second without progress,
//!   if the child may hold a thread.
//! - The child dies with the aggregator.
//!
//! Known limit: a cgroup freezer suspends both processes at once.

use super::{InjectError, Injected};
use crate::base::sys;
use crate::process::beats;
use std::cell::UnsafeCell;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Interval between two looks at the child.
const LOOK: Duration = Duration::from_millis(20);
/// Number of looks without progress before the child is killed. Looks are counted instead of time:
/// a stopped aggregator has not looked.
const LOOKS: u32 = 50;
/// Longest message, in bytes.
const TEXT_BYTES: usize = 1024;

/// Memory shared by the two processes.
struct Shared {
    /// Counts the progress of the child; 0 while the child holds no thread.
    beats: AtomicU32,
    /// Outcome, written by the child before its end, and read by the aggregator afterwards.
    outcome: UnsafeCell<Option<Outcome>>,
}

/// Outcome of an injection, without pointers, because the value crosses from one process to
/// another.
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

/// Does the work in a child process, and waits for the end of the child.
pub fn run(work: impl FnOnce() -> Result<Injected, InjectError>) -> Result<Injected, InjectError> {
    let shared = Mapping::new().map_err(InjectError::Process)?;
    // SAFETY: `getpid` has no preconditions.
    let parent = unsafe { libc::getpid() };
    // SAFETY: the child's copy of this thread does `work` and ends. Other threads of the
    // aggregator, at a detach, may hold locks. These locks stay locked in the child. The C library
    // releases the locks of malloc in the child, and the child uses no other locks.
    let child = unsafe { libc::fork() };
    if child == 0 {
        be_the_child(&shared, parent, work);
    }
    let child = sys::check(child).map_err(InjectError::Process)?;
    let was_killed = watch(child, &shared.beats);
    // SAFETY: the child has written the outcome and ended, so no other access exists.
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
    sys::die_with(parent);
    sys::be_urgent();
    // SAFETY: the child keeps the shared mapping until its end.
    unsafe { beats::count_in(&shared.beats) };
    if let Ok(worked) = panic::catch_unwind(AssertUnwindSafe(work)) {
        let outcome = match worked {
            Ok(injected) => Outcome::Injected(injected),
            Err(InjectError::Gone) => Outcome::Gone,
            Err(error) => Outcome::Failed(Text::of(&error.to_string())),
        };
        // SAFETY: the aggregator reads the outcome only after the end of this process.
        unsafe { *shared.outcome.get() = Some(outcome) };
    }
    // SAFETY: `_exit` has no preconditions. It ends the process without the exit handlers of the
    // aggregator.
    unsafe { libc::_exit(0) }
}

/// Waits for the end of the child. Returns whether the child had to be killed.
fn watch(child: libc::pid_t, beats: &AtomicU32) -> bool {
    let mut was_killed = false;
    let (mut last, mut looks) = (0, 0);
    let end = sys::pidfd(child.unsigned_abs());
    // Without a descriptor, for example at a limit of open files, the child runs without a watch.
    while let Ok(end) = &end
        && !sys::await_readable(end, LOOK)
    {
        let now = beats.load(Ordering::Relaxed);
        looks = if now == 0 || now != last { 0 } else { looks + 1 };
        last = now;
        if looks == LOOKS {
            was_killed = true;
            // SAFETY: `kill` has no memory preconditions. The child is not waited for yet, so the
            // number still belongs to the child.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
    }
    let mut status = 0;
    // SAFETY: `status` is valid for the write. A signal only interrupts the wait.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } == -1
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    was_killed
}

/// Memory shared with a child.
struct Mapping(ptr::NonNull<Shared>);

impl Mapping {
    fn new() -> io::Result<Mapping> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: the kernel chooses the place of the new memory, so no existing mapping changes.
        let at = unsafe { libc::mmap(ptr::null_mut(), size_of::<Shared>(), protection, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let shared = ptr::NonNull::new(at.cast::<Shared>()).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the memory is new, large enough, and aligned to a page.
        unsafe { shared.write(Shared { beats: AtomicU32::new(0), outcome: UnsafeCell::new(None) }) };
        Ok(Mapping(shared))
    }
}

impl std::ops::Deref for Mapping {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        // SAFETY: `new` has initialised the memory, and the mapping lasts as long as `self`.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` mapped this size, and no reference is left.
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
        // SAFETY: `abort` has no preconditions; the child kills itself.
        let died = run(|| unsafe { libc::abort() });
        assert!(matches!(died, Err(InjectError::Ended)));
    }

    #[test]
    fn a_child_that_holds_somebody_and_is_stopped_is_killed() {
        let stopped = run(|| {
            beats::beat();
            // SAFETY: `raise` has no preconditions; the child stops itself.
            unsafe { libc::raise(libc::SIGSTOP) };
            Ok(injected())
        });
        assert!(matches!(stopped, Err(InjectError::Suspended)));
    }
}

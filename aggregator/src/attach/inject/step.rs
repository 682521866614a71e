//! The steps of an injection. A test can kill or stop the injection at each step; the target
//! process must go on.

/// Variables with the name of a step, and the signal to send at this step.
const SIGNALS: [(&str, libc::c_int); 2] = [("HEAPLINE_DIE_AT", libc::SIGKILL), ("HEAPLINE_STOP_AT", libc::SIGSTOP)];
/// Variable for signals to the aggregator instead of its tracing child.
const ENV_PARENT: &str = "HEAPLINE_SIGNAL_PARENT";

/// The steps, each named after the work just done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A thread is stopped at a safe point.
    Stopped,
    /// The frame for the way back lies on the thread's stack.
    Framed,
    /// The thread has been sent to make a call.
    Sent,
    /// The thread's signals are blocked.
    Masked,
    /// The thread has memory to work in.
    Mapped,
    /// The code for calls is in the memory.
    Ready,
    /// The memory file is open.
    Opened,
    /// The file contains the library.
    Written,
    /// The thread is about to get the memory file in place of a path.
    Handed,
    /// The library is loaded.
    Loaded,
    /// The collector has done its part.
    Called,
    /// All threads are stopped, and a page of direct calls is changed.
    Frozen,
    /// The memory to work in is unmapped.
    Unmapped,
    /// The thread's signals are unblocked.
    Unmasked,
    /// The thread goes on where it was.
    Restored,
}

impl Step {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// Notes a step. Sends a signal when a test asks for the signal at this step.
pub fn pass(step: Step) {
    tracing::trace!(?step, "injection");
    let is_here = |variable: &str| std::env::var(variable).is_ok_and(|wanted| wanted == step.name());
    for (_, signal) in SIGNALS.into_iter().filter(|(variable, _)| is_here(variable)) {
        // SAFETY: `kill`, `getppid` and `getpid` have no memory preconditions. The signal goes to
        // this process or its parent.
        unsafe {
            let to = if std::env::var_os(ENV_PARENT).is_some() { libc::getppid() } else { libc::getpid() };
            libc::kill(to, signal);
        }
    }
}

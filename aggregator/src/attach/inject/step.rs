//! The steps of an injection, at each of which a test can have it killed or stopped: the process must go on.

/// Variables that name a step, and the signal that is sent there.
const SIGNALS: [(&str, libc::c_int); 2] = [("HEAPLINE_DIE_AT", libc::SIGKILL), ("HEAPLINE_STOP_AT", libc::SIGSTOP)];
/// Variable that is set when the signal goes to the aggregator, and not to its child that traces.
const ENV_PARENT: &str = "HEAPLINE_SIGNAL_PARENT";

/// What has just been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A thread is stopped at a safe point.
    Stopped,
    /// Its way back lies on its stack.
    Framed,
    /// It has been sent to make a call.
    Sent,
    /// Its signals wait.
    Masked,
    /// It has memory to work in.
    Mapped,
    /// Its code is there.
    Ready,
    /// The memory file is open.
    Opened,
    /// It holds the library.
    Written,
    /// The library is loaded.
    Loaded,
    /// The collector has done its part.
    Called,
    /// All threads are stopped, and a page of direct calls is changed.
    Frozen,
    /// The memory to work in is gone.
    Unmapped,
    /// Its signals come again.
    Unmasked,
    /// The thread goes on where it was.
    Restored,
}

impl Step {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// Notes a step. Sends a signal there when a test wants it.
pub fn pass(step: Step) {
    tracing::trace!(?step, "injection");
    let is_here = |variable: &str| std::env::var(variable).is_ok_and(|wanted| wanted == step.name());
    for (_, signal) in SIGNALS.into_iter().filter(|(variable, _)| is_here(variable)) {
        // SAFETY: signals this process or its parent.
        unsafe {
            let to = if std::env::var_os(ENV_PARENT).is_some() { libc::getppid() } else { libc::getpid() };
            libc::kill(to, signal);
        }
    }
}

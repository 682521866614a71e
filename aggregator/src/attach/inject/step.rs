//! The steps of an injection, at each of which a test can have this program killed: the process must go on.

/// Variable that names the step at which the aggregator kills itself.
const ENV_DIE: &str = "HEAPLINE_DIE_AT";

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

/// Notes a step. Dies there when a test wants it.
pub fn pass(step: Step) {
    tracing::trace!(?step, "injection");
    if std::env::var(ENV_DIE).is_ok_and(|wanted| wanted == step.name()) {
        // SAFETY: kills this process.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        std::thread::park();
    }
}

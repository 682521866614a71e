//! Requests of other threads to the drain: set the target, poll now, stop.

use crate::base::sys;
use crate::process::tasks::Tasks;
use crate::session::arena_map::ArenaMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// Reason for the end of draining.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stop {
    /// The process is gone; all published records are final.
    Ended = 1,
    /// The process continues untraced.
    Detach = 2,
}

/// Requests of other threads to the drain.
pub struct Controls {
    map: Arc<ArenaMap>,
    stop: AtomicU32,
    tasks: Arc<OnceLock<Tasks>>,
}

impl Controls {
    /// Returns the controls for the drain of an arena.
    pub fn new(map: Arc<ArenaMap>) -> Controls {
        Controls { map, stop: AtomicU32::new(0), tasks: Arc::default() }
    }

    /// Sets the target process, once the process id is known.
    pub fn set_target(&self, tasks: Tasks) {
        // A second call would name the same process.
        let _ = self.tasks.set(tasks);
    }

    /// Stops draining. Only the first call counts.
    pub fn stop(&self, how: Stop) {
        let _ = self.stop.compare_exchange(0, how as u32, Ordering::AcqRel, Ordering::Relaxed);
        self.nudge();
    }

    /// Makes the drain poll now.
    pub fn nudge(&self) {
        let wake = &self.map.arena().header().progress.wake;
        wake.fetch_add(1, Ordering::Release);
        sys::futex_wake(wake);
    }

    /// Reason to stop, if a stop was requested.
    pub fn stopped(&self) -> Option<Stop> {
        match self.stop.load(Ordering::Acquire) {
            0 => None,
            n if n == Stop::Ended as u32 => Some(Stop::Ended),
            _ => Some(Stop::Detach),
        }
    }

    /// Place of the target's threads, for a reader that may come before the target is known.
    pub fn place_of_tasks(&self) -> Arc<OnceLock<Tasks>> {
        Arc::clone(&self.tasks)
    }

    /// Threads of the target, once the target is known.
    pub fn tasks(&self) -> Option<Tasks> {
        self.tasks.get().copied()
    }
}

//! What other threads tell the drain: whose arena it is, to look now, to end.

use crate::base::sys;
use crate::process::tasks::Tasks;
use crate::session::arena_map::ArenaMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// Why draining ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stop {
    /// The process is gone; all it has published is final.
    Ended = 1,
    /// The process shall go on untraced.
    Detach = 2,
}

/// What other threads tell the drain.
pub struct Controls {
    map: Arc<ArenaMap>,
    stop: AtomicU32,
    tasks: OnceLock<Tasks>,
}

impl Controls {
    /// Controls of the drain of an arena.
    pub fn new(map: Arc<ArenaMap>) -> Controls {
        Controls { map, stop: AtomicU32::new(0), tasks: OnceLock::new() }
    }

    /// The target's process id is known.
    pub fn set_target(&self, tasks: Tasks) {
        // A second call would be for the same process.
        let _ = self.tasks.set(tasks);
    }

    /// Ends draining. The first call counts.
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

    /// Whether it shall end.
    pub fn stopped(&self) -> Option<Stop> {
        match self.stop.load(Ordering::Acquire) {
            0 => None,
            n if n == Stop::Ended as u32 => Some(Stop::Ended),
            _ => Some(Stop::Detach),
        }
    }

    /// The target's threads, once it is known.
    pub fn tasks(&self) -> Option<Tasks> {
        self.tasks.get().copied()
    }
}

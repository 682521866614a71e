//! The aggregator's clock: one origin for all traced processes, so that a forked child can go on
//! with times of its parent.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Returns the time since the first call in this process.
pub fn now() -> Duration {
    static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    ORIGIN.elapsed()
}

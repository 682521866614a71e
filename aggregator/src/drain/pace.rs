//! How often the drain looks, at the rings and at the list of threads.
//!
//! A poll should find a quarter of a megabyte: fewer bytes are not worth the wake-up, and more work at a time takes a
//! processor from the target for longer than its latency bears. But each poll interrupts all of the target's threads
//! (membarrier), so there is one a millisecond at most, unless the pool would fill meanwhile. A quiet target is looked at
//! twenty times a second. The target wakes the drain when its rings fill faster than that.

use heapline_shared_format::arena::SEGMENT_BYTES;
use std::time::{Duration, Instant};

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(50);
/// Bytes that a poll should find, if the pool is large enough for that.
const WANTED_BYTES: u64 = 256 << 10;
/// A start that takes longer is none that traces.
const STARTING: Duration = Duration::from_secs(2);
/// Time between two listings of the threads ...
const LISTING: Duration = Duration::from_millis(100);
/// ... and when slots or segments are wanted ...
const URGENT_LISTING: Duration = Duration::from_millis(2);
/// ... and this many times what a listing takes, so that thousands of threads cost one percent.
const LISTING_SHARE: u32 = 100;

/// See the module.
pub struct Pace {
    wanted: u64,
    /// A share of the pool that leaves no time to sleep.
    too_much: u64,
    interval: Duration,
    begun: Instant,
    last_listing: Option<Instant>,
    listing_took: Duration,
}

impl Pace {
    /// A pace for a pool of so many segments.
    pub fn new(segments: u32) -> Pace {
        let pool = u64::from(segments) * SEGMENT_BYTES as u64;
        let wanted = WANTED_BYTES.min(pool / 8);
        Pace {
            wanted,
            too_much: pool / 16,
            interval: SHORTEST,
            begun: Instant::now(),
            last_listing: None,
            listing_took: Duration::ZERO,
        }
    }

    /// How long to sleep after a poll that found so many bytes. A program that is about to start is looked at before
    /// it may be gone again.
    pub fn interval(&mut self, bytes: u64, is_starting: bool) -> Duration {
        if is_starting && self.begun.elapsed() < STARTING {
            return SHORTEST;
        }
        if bytes > self.too_much {
            self.interval = SHORTEST;
            return Duration::ZERO;
        }
        if bytes > self.wanted {
            self.interval /= 2;
        } else if bytes < self.wanted / 4 {
            self.interval *= 2;
        }
        self.interval = self.interval.clamp(SHORTEST, LONGEST);
        self.interval
    }

    /// Whether the threads are to be listed now; the result goes to [`Pace::listed`].
    pub fn listing(&self, is_urgent: bool) -> Option<Instant> {
        let least = if is_urgent { URGENT_LISTING } else { LISTING.max(self.listing_took * LISTING_SHARE) };
        let now = Instant::now();
        self.last_listing.is_none_or(|last| now.duration_since(last) >= least).then_some(now)
    }

    /// A listing that was begun at `begun` has been made.
    pub fn listed(&mut self, begun: Instant) {
        self.listing_took = begun.elapsed();
        self.last_listing = Some(begun);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_shortens_the_interval_and_silence_lengthens_it() {
        let mut pace = Pace::new(8192);
        let quiet: Vec<u128> = (0..8).map(|_| pace.interval(0, false).as_millis()).collect();
        assert_eq!(quiet, [2, 4, 8, 16, 32, 50, 50, 50]);
        assert_eq!(pace.interval(2 << 20, false).as_millis(), 25);
        assert_eq!(pace.interval(200_000, false).as_millis(), 25, "neither little nor much: unchanged");
        assert_eq!(pace.interval(64 << 20, false), Duration::ZERO);
        assert_eq!(pace.interval(200_000, false), SHORTEST, "the burst is over");
        pace.interval(0, false);
        assert_eq!(pace.interval(0, true), SHORTEST);
    }

    #[test]
    fn a_small_pool_is_polled_for_its_size() {
        let mut pace = Pace::new(64);
        assert_eq!(pace.interval(300 << 10, false), Duration::ZERO);
    }
}

//! Intervals between polls of the rings, and between listings of the threads.
//!
//! - A poll should find a quarter of a megabyte. Fewer bytes are not worth the wake-up. More work
//!   at a time takes a processor from the target for too long.
//! - Each poll interrupts all threads of the target (membarrier), so polls are at least a
//!   millisecond apart, unless the pool would fill meanwhile.
//! - A quiet target is polled twenty times a second. The target wakes the drain if the rings fill
//!   faster.

use heapline_shared_format::arena::SEGMENT_BYTES;
use std::time::{Duration, Instant};

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(50);
/// Wanted bytes of a poll, if the pool is large enough.
const WANTED_BYTES: u64 = 256 << 10;
/// Longest start of a traced program. A longer start is no start of a traced program.
const STARTING: Duration = Duration::from_secs(2);
/// Least time between two listings of the threads.
const LISTING: Duration = Duration::from_millis(100);
/// Least time between two listings while slots or segments are wanted.
const URGENT_LISTING: Duration = Duration::from_millis(2);
/// Least time between two listings, as a multiple of the time taken by a listing. So thousands of
/// threads cost one percent.
const LISTING_SHARE: u32 = 100;

/// Intervals adapted to the rate of records and the cost of listings.
pub struct Pace {
    wanted: u64,
    /// Bytes of a poll beyond which there is no time to sleep: a share of the pool.
    too_much: u64,
    interval: Duration,
    begun: Instant,
    last_listing: Option<Instant>,
    listing_took: Duration,
}

impl Pace {
    /// Returns the pace for a pool of `segments` segments.
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

    /// Returns the time to sleep after a poll with `bytes` bytes. A starting program is polled at
    /// the shortest interval, before it may be gone again.
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

    /// Returns the present time if a listing of the threads is due. The caller passes the time to
    /// [`Pace::listed`].
    pub fn listing(&self, is_urgent: bool) -> Option<Instant> {
        let least = if is_urgent { URGENT_LISTING } else { LISTING.max(self.listing_took * LISTING_SHARE) };
        let now = Instant::now();
        self.last_listing.is_none_or(|last| now.duration_since(last) >= least).then_some(now)
    }

    /// Notes a finished listing, begun at `begun`.
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

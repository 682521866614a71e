//! Adapts the distance of samples to the allocation rate of a process.

use crate::session::arena_map::ArenaMap;
use crate::session::counted::Counted;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Time between two adaptations.
const LOOK: Duration = Duration::from_secs(1);
/// Bounds of the distance. Closer samples cost as much as recording everything; farther samples
/// carry no information.
const CLOSEST: f64 = 1024.0;
const FARTHEST: f64 = (1_u64 << 40) as f64;
/// Largest factor of a single adaptation.
const STEP: f64 = 8.0;

/// Starts a thread that adapts the distance once a second, for as long as `per_second` has an
/// owner. A value of 0 leaves the distance unchanged.
pub fn adapt(map: Arc<ArenaMap>, per_second: Weak<AtomicU32>) -> io::Result<()> {
    let body = move || {
        let (mut then, mut before) = (Instant::now(), allocated(&map));
        loop {
            thread::sleep(LOOK);
            let Some(per_second) = per_second.upgrade() else { return };
            let (now, bytes) = (Instant::now(), allocated(&map));
            let rate = bytes.wrapping_sub(before) as f64 / (now - then).as_secs_f64();
            (then, before) = (now, bytes);
            let wanted = per_second.load(Ordering::Relaxed);
            if wanted > 0 {
                let sample = &map.arena().header().session.sample;
                sample.store(next(sample.load(Ordering::Relaxed), rate, wanted), Ordering::Relaxed);
            }
        }
    };
    thread::Builder::new().name("rate".to_owned()).spawn(body).map(drop)
}

fn allocated(map: &ArenaMap) -> u64 {
    let arena = map.arena();
    let high = arena.header().target.slots_high.load(Ordering::Relaxed).min(arena.geometry().slots);
    let slots = (0..high).filter_map(|index| arena.slot(index));
    slots.fold(0, |sum: u64, slot| sum.wrapping_add(Counted::read(slot).bytes()))
}

/// Returns the next distance. `rate`: bytes allocated a second since the last adaptation.
fn next(interval: u64, rate: f64, per_second: u32) -> u64 {
    let interval = (interval as f64).max(1.0);
    let wanted = (rate / f64::from(per_second)).clamp(CLOSEST, FARTHEST);
    // Goes half of the way on a logarithmic scale: a single second may be unlike the others.
    let factor = (wanted / interval).sqrt().clamp(1.0 / STEP, STEP);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between the two bounds")]
    let next = (interval * factor).clamp(CLOSEST, FARTHEST) as u64;
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_finds_the_rate_and_stays_within_bounds() {
        let settle = |begin, rate, per_second| (0..40).fold(begin, |interval, _| next(interval, rate, per_second));
        let found = settle(512 << 10, 100e6, 1000);
        assert!((90_000..110_000).contains(&found), "{found}");
        assert_eq!(settle(1, 0.0, 5), 1024);
        assert!((1 << 40) - settle(1, 1e18, 1) < 1 << 20);
        // A single second changes the distance by a limited factor.
        assert!(next(1 << 20, 1e15, 1) <= 8 << 20);
    }
}

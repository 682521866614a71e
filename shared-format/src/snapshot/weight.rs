//! Weight of a sample: how many blocks and bytes the sample represents.
//!
//! Distances between samples are exponentially distributed with a mean of R bytes. A block of S
//! bytes is a sample with probability p = 1 - exp(-S/R).
//!
//! | Per sample | Blocks | Bytes |
//! | --- | --- | --- |
//! | estimate (Horvitz and Thompson) | 1/p | S/p |
//! | added variance | (1-p)/p^2 | S^2 (1-p)/p^2 |

/// Number of standard deviations in half of a two-sided 95 % interval.
pub const Z: f64 = 1.959_964;

/// Returns the probability that a block of `size` bytes is a sample. An empty block counts as 1
/// byte.
fn probability(size: u64, interval: u64) -> f64 {
    if interval == 0 { 1.0 } else { -(-(size.max(1) as f64) / interval as f64).exp_m1() }
}

/// Returns the number of blocks represented by a sample.
pub fn blocks(size: u64, interval: u64) -> f64 {
    1.0 / probability(size, interval)
}

/// Returns the number of bytes represented by a sample, rounded.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; is not negative")]
pub fn bytes(size: u64, interval: u64) -> u64 {
    (size as f64 / probability(size, interval)).round() as u64
}

/// Returns the variance added by a sample, divided by the square of the sample's weight: 1 - p.
pub fn doubt(size: u64, interval: u64) -> f64 {
    1.0 - probability(size, interval)
}

/// Returns the lower and the upper end of a 95 % interval around an estimate.
///
/// The estimate is treated as a multiple of a Poisson number with the same relative variance
/// (Wilson's score interval). Reason: estimates from few samples are skewed. No interval reaches
/// below 0.
pub fn interval(estimate: f64, variance: f64) -> (f64, f64) {
    if estimate <= 0.0 || variance <= 0.0 {
        return (estimate.max(0.0), estimate.max(0.0));
    }
    let samples = estimate * estimate / variance;
    let middle = 1.0 + Z * Z / (2.0 * samples);
    let half = Z * (1.0 / samples + Z * Z / (4.0 * samples * samples)).sqrt();
    (estimate * (middle - half), estimate * (middle + half))
}

/// Returns an upper limit of unsampled bytes, with a certainty of 95 %. A stream of this many bytes
/// has no sample in 1 of 20 tries, independent of the sizes of blocks.
pub fn unmet(interval: u64) -> f64 {
    -(0.05_f64.ln()) * interval as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_those_of_the_sampling() {
        assert_eq!((blocks(7, 0), bytes(7, 0), doubt(7, 0)), (1.0, 7, 0.0));
        // Small blocks represent a whole interval, large blocks only themselves.
        assert!(bytes(16, 1 << 20).abs_diff(1 << 20) < 16);
        assert_eq!(bytes(1 << 30, 1 << 20), 1 << 30);
        assert_eq!(bytes(0, 1 << 20), 0);
        assert!((blocks(0, 1000) - 1000.5).abs() < 0.1);
        assert_eq!(bytes(u64::MAX, 1), u64::MAX);
    }

    #[test]
    fn intervals_hold_the_estimate_and_close_with_samples() {
        let mut last = f64::INFINITY;
        for samples in [1.0, 10.0, 100.0, 10_000.0] {
            let (low, high) = interval(1e6, 1e12 / samples);
            assert!(0.0 < low && low < 1e6 && high > 1e6 && high - low < last, "{samples}: {low} to {high}");
            last = high - low;
        }
        assert_eq!(interval(5.0, 0.0), (5.0, 5.0));
    }
}

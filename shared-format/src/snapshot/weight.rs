//! What a sample stands for.
//!
//! With samples at exponentially distributed distances of mean R bytes, a block of S bytes is one with probability
//! p = 1 - exp(-S/R). So a sample stands for 1/p blocks and S/p bytes (Horvitz and Thompson), and adds (1-p)/p^2 to the variance
//! of a number of blocks, S^2 times that to the variance of a number of bytes.

/// Standard deviations of half a two-sided interval of 95 %.
pub const Z: f64 = 1.959_964;

/// The probability that a block of `size` bytes is a sample. An empty block counts as one byte.
fn probability(size: u64, interval: u64) -> f64 {
    if interval == 0 { 1.0 } else { -(-(size.max(1) as f64) / interval as f64).exp_m1() }
}

/// How many blocks a sample stands for.
pub fn blocks(size: u64, interval: u64) -> f64 {
    1.0 / probability(size, interval)
}

/// How many bytes it stands for, in whole ones.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; is not negative")]
pub fn bytes(size: u64, interval: u64) -> u64 {
    (size as f64 / probability(size, interval)).round() as u64
}

/// The part of its weight's square that is variance.
pub fn doubt(size: u64, interval: u64) -> f64 {
    1.0 - probability(size, interval)
}

/// Half of a 95 % interval below and above an estimate with this variance.
///
/// The estimate is taken for a multiple of a Poisson number whose relative variance is the same (Wilson's score interval), since
/// few samples are skewed: no figure gets an interval that reaches below 0.
pub fn interval(estimate: f64, variance: f64) -> (f64, f64) {
    if estimate <= 0.0 || variance <= 0.0 {
        return (estimate.max(0.0), estimate.max(0.0));
    }
    let samples = estimate * estimate / variance;
    let middle = 1.0 + Z * Z / (2.0 * samples);
    let half = Z * (1.0 / samples + Z * Z / (4.0 * samples * samples)).sqrt();
    (estimate * (middle - half), estimate * (middle + half))
}

/// Bytes that may be there where no sample was met, with a certainty of 95 %: a stream of so many
/// bytes has no sample in one of twenty tries, whatever its blocks are.
pub fn unmet(interval: u64) -> f64 {
    -(0.05_f64.ln()) * interval as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_those_of_the_sampling() {
        assert_eq!((blocks(7, 0), bytes(7, 0), doubt(7, 0)), (1.0, 7, 0.0));
        // Small blocks stand for a whole interval, large ones for themselves.
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

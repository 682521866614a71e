//! Sample points in a stream of bytes.

/// Points at exponentially distributed distances (a Poisson process), in a stream of blocks.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    /// Bytes to the next point; 0 once a block contains the point.
    left: u64,
    /// Mean distance at which the next point was drawn, in bytes.
    interval: u64,
    /// State of the xorshift64* generator; not 0.
    random: u64,
}

impl Sampler {
    /// Begins a stream.
    pub fn begin(seed: u64, interval: u64) -> Sampler {
        let mut sampler = Sampler { left: 0, interval, random: mixed(seed).max(1) };
        sampler.draw(interval);
        sampler
    }

    /// Returns the mean distance at which the next point was drawn, in bytes.
    #[inline]
    pub fn interval(&self) -> u64 {
        self.interval
    }

    /// Advances by a block. Returns whether the block contains a point; if so, the next point has
    /// to be drawn. An empty block counts as a byte.
    #[inline(always)]
    pub fn passes(&mut self, size: usize) -> bool {
        self.left = self.left.saturating_sub(size.max(1) as u64);
        self.left == 0
    }

    /// Takes back a block with a point. The next point is drawn anew: the distance is the same from
    /// anywhere.
    pub fn goes_back(&mut self) {
        self.draw(self.interval);
    }

    /// Draws the next point, from the end of the block on. The distribution of distances has no
    /// memory, so the start does not matter.
    pub fn draw(&mut self, interval: u64) {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let bits = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        // In (0, 1].
        let uniform = (bits + 1) as f64 / (1_u64 << 53) as f64;
        // The first whole byte at or behind the point; the conversion saturates.
        let distance = libm::ceil(-libm::log(uniform) * interval as f64).max(1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a whole number, or the largest there is"
        )]
        let left = distance as u64;
        self.left = left;
        self.interval = interval;
    }
}

/// The splitmix64 hash of a seed.
fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kolmogorov-Smirnov test: the distances follow the exponential distribution.
    #[test]
    fn distances_are_exponential() {
        const N: usize = 50_000;
        for seed in 0..20 {
            let interval = 64 << 10;
            let mut sampler = Sampler::begin(seed, interval);
            let mut distances: Vec<f64> = (0..N)
                .map(|_| {
                    let mut n = 1;
                    while !sampler.passes(1) {
                        // Byte by byte would take long.
                        let step = usize::try_from(sampler.left.saturating_sub(1)).expect("64 bits");
                        if step > 0 {
                            sampler.passes(step);
                            n += step;
                        } else {
                            n += 1;
                        }
                    }
                    sampler.draw(interval);
                    n as f64
                })
                .collect();
            distances.sort_by(f64::total_cmp);
            let below = |x: f64| 1.0 - (-x / interval as f64).exp();
            let farthest = distances
                .iter()
                .enumerate()
                .map(|(i, &x)| (below(x) - i as f64 / N as f64).abs().max((below(x) - (i + 1) as f64 / N as f64).abs()))
                .fold(0.0, f64::max);
            // A value of 1.95 / sqrt(N) is exceeded once in a thousand tests.
            assert!(farthest < 1.95 / (N as f64).sqrt(), "seed {seed}: {farthest}");
        }
    }

    #[test]
    fn a_block_is_hit_as_often_as_its_size_says() {
        let interval = 4096_u64;
        for size in [1_usize, 100, 4096, 40_000] {
            let mut sampler = Sampler::begin(size as u64, interval);
            let (mut hits, n) = (0_u32, 200_000_u32);
            for _ in 0..n {
                if sampler.passes(size) {
                    hits += 1;
                    sampler.draw(interval);
                }
            }
            let p = 1.0 - (-(size as f64) / interval as f64).exp();
            let sigma = (f64::from(n) * p * (1.0 - p)).sqrt();
            assert!((f64::from(hits) - f64::from(n) * p).abs() < 4.0 * sigma + 1.0, "{size}: {hits} of {n}, p {p}");
        }
    }

    #[test]
    fn no_block_is_too_large_or_too_small() {
        let mut sampler = Sampler::begin(1, 1 << 20);
        assert!(sampler.passes(usize::MAX) && sampler.passes(0), "until the next is drawn");
        sampler.goes_back();
        let left = sampler.left;
        assert!(left > 1 && !sampler.passes(0) && sampler.left == left - 1);
    }

    #[test]
    fn extreme_intervals_are_bounded() {
        for interval in [0, 1, u64::MAX] {
            let mut sampler = Sampler::begin(1, interval);
            sampler.draw(interval);
            assert!(sampler.left >= 1);
        }
    }
}

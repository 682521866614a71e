//! What samples say of a sum, and how sure that is.
//!
//! A row's bytes are estimates already; its blocks are samples, each of which stands for more ([`weight`]). Intervals are of
//! 95 %. A block that counts for a frame twice (a cumulative report of a recursion) is taken for two.

use heapline_shared_format::snapshot::{Domain, Sampled, Snapshot, weight};

use crate::view::At;

/// See the module. Sums of them are those of the parts, as samples do not depend on each other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Blocks that are samples; with none of them a sum is exact.
    pub samples: u64,
    /// Blocks that all stand for.
    pub blocks: f64,
    size_variance: f64,
    count_variance: f64,
}

impl Estimate {
    /// So many blocks, of which it is known whether they are samples.
    #[expect(clippy::cast_precision_loss, reason = "a number of blocks")]
    pub fn of(count: u64, sampled: Option<Sampled>) -> Estimate {
        let n = count as f64;
        let Some(Sampled { interval, size, .. }) = sampled else {
            return Estimate { blocks: n, ..Estimate::default() };
        };
        let (bytes, blocks) = (weight::bytes(size, interval) as f64, weight::blocks(size, interval));
        let doubt = n * weight::doubt(size, interval);
        Estimate {
            samples: count,
            blocks: n * blocks,
            size_variance: doubt * bytes * bytes,
            count_variance: doubt * blocks * blocks,
        }
    }

    /// Adds another sum's.
    pub fn add(&mut self, other: &Estimate) {
        self.samples = self.samples.saturating_add(other.samples);
        self.blocks += other.blocks;
        self.size_variance += other.size_variance;
        self.count_variance += other.count_variance;
    }

    /// Number of blocks, to the nearest whole one; `counted` where all are known.
    pub fn count(&self, counted: u64) -> u64 {
        if self.samples == 0 { counted } else { whole(self.blocks) }
    }

    /// 95 % interval of a number of bytes; none when it is exact.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn size_interval(&self, size: u64) -> Option<(u64, u64)> {
        (self.samples > 0).then(|| both(weight::interval(size as f64, self.size_variance)))
    }

    /// 95 % interval of the number of blocks; none when it is exact.
    pub fn count_interval(&self) -> Option<(u64, u64)> {
        (self.samples > 0).then(|| both(weight::interval(self.blocks, self.count_variance)))
    }

    /// Half of the 95 % interval of a difference of sizes with another estimate. Samples that both have would make it smaller.
    pub fn size_doubt(&self, other: &Estimate) -> Option<u64> {
        let variance = self.size_variance + other.size_variance;
        (self.samples + other.samples > 0).then(|| whole(weight::Z * variance.sqrt()))
    }
}

fn both((low, high): (f64, f64)) -> (u64, u64) {
    (whole(low), whole(high))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; is not negative")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

/// What the blocks of a stack are, if they are samples.
pub fn sampled(snapshot: &Snapshot, stack: u32) -> Option<Sampled> {
    let row = snapshot.sampled.binary_search_by_key(&stack, |row| row.stack).ok()?;
    Some(snapshot.sampled[row])
}

/// How sure a domain's figure of a moment is.
pub fn of_domain<'s>(parts: impl IntoIterator<Item = &'s Snapshot>, domain: Domain, at: At) -> Estimate {
    let mut all = Estimate::default();
    for snapshot in parts.into_iter().filter(|snapshot| !snapshot.sampled.is_empty()) {
        match at {
            At::Live => {
                let rows = snapshot.live.iter().filter(|row| row.domain == domain);
                rows.for_each(|row| all.add(&Estimate::of(row.count, sampled(snapshot, row.stack))));
            }
            At::Peak | At::Total => {
                for row in snapshot.totals.iter().filter(|row| row.domain == domain) {
                    let count = if at == At::Peak { row.peak_count } else { row.total_count };
                    all.add(&Estimate::of(count, sampled(snapshot, row.stack)));
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_sums_have_no_interval_and_samples_have_one() {
        let mut sum = Estimate::of(12, None);
        assert_eq!((sum.count(12), sum.size_interval(500), sum.count_interval()), (12, None, None));
        let sampled = Some(Sampled { stack: 0, interval: 1 << 20, size: 64 });
        sum.add(&Estimate::of(100, sampled));
        let size = 500 + 100 * weight::bytes(64, 1 << 20);
        let (low, high) = sum.size_interval(size).expect("an estimate");
        assert!(low < size && size < high && high - low < size / 2, "{low} to {high} around {size}");
        assert_eq!(sum.count(112).abs_diff(100 * 16384), 12 + 50);
        // Blocks that are far larger than the interval are nearly all known.
        let large = Estimate::of(3, Some(Sampled { stack: 0, interval: 1 << 10, size: 1 << 20 }));
        assert_eq!((large.count(3), large.size_interval(3 << 20)), (3, Some((3 << 20, 3 << 20))));
    }
}

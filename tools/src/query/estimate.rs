//! Estimates of sums from samples, with 95 % intervals.
//!
//! - The bytes of a row are an estimate already. The blocks of a row are samples, and each sample
//!   stands for several blocks ([`weight`]).
//! - A block counted twice for a frame (a cumulative report of a recursion) is treated as two
//!   blocks.
//! - A sum without a sample need not be 0. The interval of such a sum begins at 0 and ends at the
//!   number of bytes missed by sampling in one of twenty tries.

use heapline_shared_format::snapshot::{Birth, Domain, Sampled, Snapshot, weight};
use std::collections::{HashMap, HashSet};

use crate::input::copies::{Part, forebears, widest};
use crate::input::moment::{At, totals};

/// Estimate of a sum, with its variance. The variance of a sum is the sum of the variances of its
/// parts: draws are independent, and copies of a draw are counted together
/// ([`crate::input::copies`]).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Number of samples.
    pub samples: u64,
    /// Estimated number of blocks.
    pub blocks: f64,
    size_variance: f64,
    count_variance: f64,
    unmet: Unmet,
}

/// Squares of the bytes and blocks possibly present without a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Unmet {
    size: f64,
    count: f64,
}

impl Estimate {
    /// Estimates `count` blocks. `sampled` is set if the blocks are samples; `copies` is the number
    /// of copies of these samples in the whole sum.
    #[expect(clippy::cast_precision_loss, reason = "numbers of blocks")]
    pub fn of(count: u64, sampled: Option<Sampled>, copies: u64) -> Estimate {
        let n = count as f64;
        let Some(Sampled { interval, size, .. }) = sampled else {
            return Estimate { blocks: n, ..Estimate::default() };
        };
        let (bytes, blocks) = (weight::bytes(size, interval) as f64, weight::blocks(size, interval));
        let doubt = copies as f64 * weight::doubt(size, interval);
        Estimate {
            samples: count,
            blocks: n * blocks,
            size_variance: doubt * bytes * bytes,
            count_variance: doubt * blocks * blocks,
            unmet: Unmet::default(),
        }
    }

    /// Estimates a sum of samples when only the sum is known: `size` bytes in `count` blocks. The
    /// intervals are those of blocks smaller than the mean distance of samples, the widest
    /// possible.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn of_sum(size: u64, count: u64, interval: u64) -> Estimate {
        let (bytes, blocks) = (size as f64, count as f64);
        let draws = bytes / interval.max(1) as f64;
        // The sum of n draws is known to the part 1 / sqrt(n).
        let variance = |value: f64| if draws > 0.0 { value * value / draws } else { 0.0 };
        Estimate {
            samples: whole(draws).max(u64::from(count > 0)),
            blocks,
            size_variance: variance(bytes),
            count_variance: variance(blocks),
            unmet: Unmet::default(),
        }
    }

    /// Adds the estimate of another sum.
    pub fn add(&mut self, other: &Estimate) {
        self.samples = self.samples.saturating_add(other.samples);
        self.blocks += other.blocks;
        self.size_variance += other.size_variance;
        self.count_variance += other.count_variance;
        self.unmet.add(other.unmet);
    }

    /// Number of blocks, rounded; `counted` if there are no samples.
    pub fn count(&self, counted: u64) -> u64 {
        if self.samples == 0 { counted } else { whole(self.blocks) }
    }

    /// Whether the sum is an estimate; otherwise the sum is exact.
    pub fn is_estimate(&self) -> bool {
        self.samples > 0 || self.unmet != Unmet::default()
    }

    /// 95 % interval of a number of bytes; none if the number is exact.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn size_interval(&self, size: u64) -> Option<(u64, u64)> {
        self.is_estimate().then(|| interval(size as f64, self.size_variance, self.unmet.size))
    }

    /// 95 % interval of the number of blocks; none if the number is exact.
    pub fn count_interval(&self) -> Option<(u64, u64)> {
        self.is_estimate().then(|| interval(self.blocks, self.count_variance, self.unmet.count))
    }

    /// Half of the 95 % interval of the difference between the sizes of two estimates. Samples in
    /// both would make the interval smaller, but are not considered.
    pub fn size_doubt(&self, other: &Estimate) -> Option<u64> {
        let variance = self.size_variance + other.size_variance;
        let unmet = self.unmet.size + other.unmet.size;
        (self.is_estimate() || other.is_estimate()).then(|| whole((weight::Z * weight::Z * variance + unmet).sqrt()))
    }
}

impl Unmet {
    /// Up to `bytes` in each of `processes` processes, in at most `allocs` blocks each.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn of(bytes: f64, allocs: Option<u64>, processes: u64) -> Unmet {
        let copies = processes as f64;
        // A block has at least a byte.
        let blocks = allocs.map_or(bytes, |allocs| bytes.min(allocs as f64));
        Unmet { size: (bytes * copies).powi(2), count: (blocks * copies).powi(2) }
    }

    fn add(&mut self, other: Unmet) {
        self.size += other.size;
        self.count += other.count;
    }
}

/// Combines the interval of the samples with the unmet bytes or blocks. Both are independent, so
/// their distances from the estimate add up as squares.
fn interval(estimate: f64, variance: f64, unmet: f64) -> (u64, u64) {
    let (low, high) = weight::interval(estimate, variance);
    (whole(low), whole(estimate + ((high - estimate).powi(2) + unmet).sqrt()))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; is not negative")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

/// Sampling interval and block size of a stack's samples; none if the blocks are no samples.
pub fn sampled(snapshot: &Snapshot, stack: u32) -> Option<Sampled> {
    let row = snapshot.sampled.binary_search_by_key(&stack, |row| row.stack).ok()?;
    Some(snapshot.sampled[row])
}

/// Estimate of a domain at a moment, for the interval of the domain's figure.
pub fn of_domain<'s>(parts: impl Iterator<Item = Part<'s>> + Clone, domain: Domain, at: At) -> Estimate {
    let mut all = Estimate::default();
    for Part { snapshot, copies } in parts.clone().filter(|part| !part.snapshot.sampled.is_empty()) {
        match at {
            At::Live => {
                let rows = snapshot.live.iter().enumerate().filter(|(_, row)| row.domain == domain);
                rows.for_each(|(index, row)| {
                    let copies = copies.of_live(index, row.count);
                    all.add(&Estimate::of(row.count, sampled(snapshot, row.stack), copies));
                });
            }
            At::Peak | At::Total | At::Instant(_) => {
                for row in snapshot.totals.iter().filter(|row| row.domain == domain) {
                    let count = if at == At::Total { row.total_count } else { row.peak_count };
                    let copies = copies.of_stack(at, domain, row.stack, count);
                    all.add(&Estimate::of(count, sampled(snapshot, row.stack), copies));
                }
            }
        }
    }
    let met = if all.samples == 0 { HashMap::new() } else { all_widest(parts.clone(), domain, at) };
    all.add(&unmet(parts, domain, at, (all.samples, &met)));
    all
}

/// Estimate of a sum without samples in a domain.
pub fn of_nothing<'s>(parts: impl Iterator<Item = Part<'s>> + Clone, domain: Domain, at: At) -> Estimate {
    unmet(parts, domain, at, (0, &HashMap::new()))
}

fn all_widest<'s>(parts: impl Iterator<Item = Part<'s>>, domain: Domain, at: At) -> HashMap<u64, u64> {
    let mut all: HashMap<u64, u64> = HashMap::new();
    for (by, most) in parts.flat_map(|part| widest(part, domain, at)) {
        all.entry(by).and_modify(|known| *known = most.max(*known)).or_insert(most);
    }
    all
}

/// Estimate of memory in a domain without a sample:
///
/// 1. in the whole sum, if the sum has no samples at all;
/// 2. in memory that several processes inherited from a common ancestor. A sample of this ancestor
///    in at least half of the heirs rules this doubt out.
fn unmet<'s>(
    parts: impl Iterator<Item = Part<'s>> + Clone,
    domain: Domain,
    at: At,
    (samples, met): (u64, &HashMap<u64, u64>),
) -> Estimate {
    let parts = parts.map(|part| part.snapshot).filter(|part| part.meta.sample_interval != 0);
    let mut all = Estimate::default();
    if !domain.is_sampled() {
        return all;
    }
    let far = |part: &Snapshot| {
        let rows = part.sampled.iter().map(|row| row.interval);
        weight::unmet(rows.chain([part.meta.sample_interval]).max().unwrap_or(0))
    };
    let widest_gap = parts.clone().map(far).fold(0.0, f64::max);
    if samples == 0 {
        // Allocations of the processes are counted exactly. Older memory is not counted.
        let rows = parts.clone().map(|part| totals(part, domain));
        let (bytes, allocs) = rows.fold((0_u64, 0_u64), |(bytes, allocs), row| {
            (bytes.saturating_add(row.allocated_bytes), allocs.saturating_add(row.allocs))
        });
        let is_counted = at == At::Total || all_is_counted(parts.clone());
        all.unmet.add(most(widest_gap, is_counted.then_some((bytes, allocs)), 1));
    }
    if at != At::Total {
        for forebear in forebears(parts) {
            if met.get(&forebear.by).is_none_or(|&most| most < forebear.heirs.div_ceil(2)) {
                let row = forebear.snapshot.map(|snapshot| totals(snapshot, domain));
                all.unmet.add(most(widest_gap, row.map(|row| (row.allocated_bytes, row.allocs)), forebear.heirs));
            }
        }
    }
    all
}

/// Whether all memory of the processes was allocated by these processes: none has inherited memory
/// from a process outside of `parts`.
fn all_is_counted<'s>(parts: impl Iterator<Item = &'s Snapshot> + Clone) -> bool {
    let known: HashSet<u64> = parts.clone().filter_map(|part| Some(part.draws.as_ref()?.by)).collect();
    let is_counted = |part: &Snapshot| match (&part.draws, &part.origin) {
        (Some(draws), _) => draws.lineage().all(|by| known.contains(&by)),
        (None, origin) => origin.as_ref().is_none_or(|origin| origin.birth == Birth::Exec),
    };
    parts.into_iter().all(is_counted)
}

/// Unmet bytes and blocks: at most `gap`, and at most the allocated amount if known.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn most(gap: f64, allocated: Option<(u64, u64)>, processes: u64) -> Unmet {
    let bytes = allocated.map_or(gap, |(bytes, _)| gap.min(bytes as f64));
    Unmet::of(bytes, allocated.map(|(_, allocs)| allocs), processes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_sums_have_no_interval_and_samples_have_one() {
        let mut sum = Estimate::of(12, None, 12);
        assert_eq!((sum.count(12), sum.size_interval(500), sum.count_interval()), (12, None, None));
        let sampled = Some(Sampled { stack: 0, interval: 1 << 20, size: 64 });
        sum.add(&Estimate::of(100, sampled, 100));
        let size = 500 + 100 * weight::bytes(64, 1 << 20);
        let (low, high) = sum.size_interval(size).expect("an estimate");
        assert!(low < size && size < high && high - low < size / 2, "{low} to {high} around {size}");
        assert_eq!(sum.count(112).abs_diff(100 * 16384), 12 + 50);
        // Blocks far larger than the interval are nearly all samples.
        let large = Estimate::of(3, Some(Sampled { stack: 0, interval: 1 << 10, size: 1 << 20 }), 3);
        assert_eq!((large.count(3), large.size_interval(3 << 20)), (3, Some((3 << 20, 3 << 20))));
    }

    #[test]
    fn copies_of_a_sample_widen_the_interval_and_what_was_not_met_its_upper_end() {
        let sampled = Some(Sampled { stack: 0, interval: 1 << 20, size: 64 });
        let size = 100 * weight::bytes(64, 1 << 20);
        let of = |copies| Estimate::of(100, sampled, copies).size_interval(size).expect("an estimate");
        let (alone, shared) = (of(100), of(100 * 25));
        assert!(shared.0 < alone.0 && alone.1 < shared.1, "{alone:?} {shared:?}");
        // As if there were four samples, each with 25 times the weight.
        let few = weight::interval(size as f64, size as f64 * size as f64 / 4.0);
        assert!((shared.0 as f64 / few.0 - 1.0).abs() < 0.01 && (shared.1 as f64 / few.1 - 1.0).abs() < 0.01);
        let nothing = Estimate { unmet: Unmet::of(3e6, Some(1000), 2), ..Estimate::default() };
        assert_eq!((nothing.count(0), nothing.size_interval(0)), (0, Some((0, 6_000_000))));
        assert_eq!(nothing.count_interval(), Some((0, 2000)));
        assert_eq!(nothing.size_doubt(&Estimate::default()), Some(6_000_000));
    }
}

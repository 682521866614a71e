//! Compares two snapshots, as tracemalloc's `Snapshot.compare_to` does.

use crate::frames::Tracebacks;
use crate::query::estimate::Estimate;
use crate::query::statistics::{Key, KeyOrder, Statistic};
use std::cmp::Reverse;
use std::collections::HashMap;

/// Change of a group. Wide enough for the difference of any two sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Bytes, new minus old.
    pub size: i128,
    /// Blocks, new minus old.
    pub count: i128,
    /// Half of the 95 % interval of `size`; none if both sides are exact.
    pub doubt: Option<u64>,
}

/// Kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the words of the output")]
pub enum Kind {
    New,
    Gone,
    Grown,
    Shrunk,
    Same,
}

impl Kind {
    /// All kinds that are a change, in the order of the output.
    pub const CHANGES: [Kind; 4] = [Kind::Grown, Kind::Shrunk, Kind::New, Kind::Gone];

    /// The word of the output.
    pub fn name(self) -> &'static str {
        match self {
            Kind::New => "new",
            Kind::Gone => "gone",
            Kind::Grown => "grown",
            Kind::Shrunk => "shrunk",
            Kind::Same => "same",
        }
    }
}

impl Change {
    /// Kind of the change of a group that has `size` bytes in `count` blocks now.
    pub fn kind(&self, size: u64, count: u64) -> Kind {
        let is_nothing = |size: i128, count: i128| size == 0 && count == 0;
        let (size, count) = (i128::from(size), i128::from(count));
        match (is_nothing(size - self.size, count - self.count), is_nothing(size, count)) {
            (true, false) => Kind::New,
            (false, true) => Kind::Gone,
            _ if self.size > 0 => Kind::Grown,
            _ if self.size < 0 => Kind::Shrunk,
            _ => Kind::Same,
        }
    }

    /// Adds the change of another group.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an estimate"
    )]
    pub fn plus(&self, other: &Change) -> Change {
        let doubt = match (self.doubt, other.doubt) {
            // Independent, so the doubts add up as squares.
            (Some(one), Some(other)) => Some((one as f64).hypot(other as f64).round() as u64),
            (one, other) => one.or(other),
        };
        Change { size: self.size + other.size, count: self.count + other.count, doubt }
    }
}

/// Precision of a group without samples, on each side of a diff.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nothing {
    /// Estimate in the new snapshot.
    pub new: Estimate,
    /// Estimate in the old snapshot.
    pub old: Estimate,
}

/// Returns the groups of both snapshots with their changes (tracemalloc: `StatisticDiff`). Groups
/// only in the old snapshot have size and count 0.
///
/// Sorted by change of size, size, change of count, count and key, the greatest first.
pub fn compare_to(
    tracebacks: &Tracebacks,
    new: HashMap<Key, Statistic>,
    mut old: HashMap<Key, Statistic>,
    nothing: &Nothing,
) -> Vec<(Statistic, Change)> {
    let mut rows: Vec<(Statistic, Change)> = new
        .into_values()
        .map(|stat| {
            let old = old.remove(&stat.key);
            let (size, count) = old.map_or((0, 0), |old| (old.size, old.count));
            let doubt = stat.estimate.size_doubt(&old.map_or(nothing.old, |old| old.estimate));
            (stat, Change { size: difference(stat.size, size), count: difference(stat.count, count), doubt })
        })
        .collect();
    rows.extend(old.into_values().map(|stat| {
        let doubt = stat.estimate.size_doubt(&nothing.new);
        let change = Change { size: difference(0, stat.size), count: difference(0, stat.count), doubt };
        (Statistic { size: 0, count: 0, estimate: nothing.new, ..stat }, change)
    }));
    let keys = KeyOrder::new(tracebacks);
    let order = |(s, c): &(Statistic, Change)| Reverse((c.size.abs(), s.size, c.count.abs(), s.count));
    rows.sort_unstable_by(|a, b| order(a).cmp(&order(b)).then_with(|| keys.compare(b.0.key, a.0.key)));
    rows
}

fn difference(new: u64, old: u64) -> i128 {
    i128::from(new) - i128::from(old)
}

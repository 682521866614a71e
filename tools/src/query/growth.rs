//! Groups that grow: a trend in the history of a process, and how sure it is.
//!
//! Growth is not load. A service that starts fills its tables, a load swings, a cache grows to its
//! bound, and a collector lets memory grow between two collections. So growth is looked for
//!
//! 1. in the second half of the history, after the start;
//! 2. in the least memory of each of [`PARTS`] parts of this half: what is left between two loads;
//! 3. as a trend of all parts, not of the ends: the slope is the median of the slopes between all
//!    pairs of parts (Theil and Sen);
//! 4. up to the end: the slope of the last third is no small part of the whole slope. A cache that
//!    has reached its bound grows no more.
//!
//! A trend counts if the test of Mann and Kendall calls it sure to `LEAST_SURE`, and if the group
//! has grown by more than a small part of itself.

use crate::query::statistics::Key;
use heapline_shared_format::snapshot::{Domain, History};
use std::collections::HashMap;

/// Parts of the second half of a history.
pub const PARTS: usize = 24;
/// Least number of standard deviations of the test of Mann and Kendall: 99 % of both sides.
const LEAST_SURE: f64 = 2.576;
/// Least growth in the half, as a part of the group's memory: 1 / `LEAST_PART`.
const LEAST_PART: f64 = 50.0;
/// Least slope of the last third of the half, as a part of the slope of the half.
const LEAST_AT_END: f64 = 0.25;
const HOUR: f64 = 3_600_000.0;
/// Columns of the memory over the whole history.
pub const COLUMNS: usize = 24;

/// Growth of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Growth {
    /// Bytes an hour.
    pub per_hour: f64,
    /// How sure the trend is: 0.99 to 1.
    pub certainty: f64,
    /// Greatest memory of the group in equal parts of the whole history, at ends of steps.
    pub series: Vec<u64>,
}

/// The growing groups of a process. `groups` has the stacks of each group, each stack once.
pub fn growing(history: &History, domain: Domain, groups: &HashMap<Key, Vec<u32>>) -> HashMap<Key, Growth> {
    let keys: Vec<(&Key, &Vec<u32>)> = groups.iter().collect();
    let group_of: HashMap<u32, usize> = keys
        .iter()
        .enumerate()
        .flat_map(|(group, (_, stacks))| stacks.iter().map(move |&stack| (stack, group)))
        .collect();
    let places = Places::of(history);
    let mut memories = vec![Memory::default(); keys.len()];
    for (index, step) in history.steps.iter().enumerate() {
        for change in step.changes.iter().filter(|change| change.domain == domain) {
            if let Some(&group) = change.stack.and_then(|stack| group_of.get(&stack)) {
                memories[group].settle(index, &places);
                memories[group].now = memories[group].now.wrapping_add_signed(change.size);
            }
        }
    }
    memories.iter_mut().for_each(|memory| memory.settle(history.steps.len(), &places));
    let hours = (history.end() - history.end() / 2) as f64 / HOUR;
    let found =
        keys.iter().zip(memories).filter_map(|((key, _), memory)| Some((**key, memory.growth(&places, hours)?)));
    found.collect()
}

/// Places of the steps of a history, by index.
struct Places {
    /// Columns of the whole history into which a step reaches first and last. A long step fills the
    /// columns behind the step before.
    columns: Vec<(usize, usize)>,
    /// Part of the second half; none for a step of the first half.
    parts: Vec<Option<usize>>,
    /// Whether a step ends in a part. Coarse steps leave parts without an end.
    has_end: [bool; PARTS],
}

impl Places {
    fn of(history: &History) -> Places {
        let (end, half) = (history.end(), history.end() / 2);
        // A step belongs to the place in which it ends.
        let place = |time: u64, begin: u64, count: usize| {
            let span = u128::from(end - begin).max(1);
            let place = (u128::from(time.saturating_sub(begin)) * count as u128).div_ceil(span).saturating_sub(1);
            usize::try_from(place).unwrap_or(0).min(count - 1)
        };
        let ends = history.steps.iter().map(|step| step.end);
        let parts: Vec<Option<usize>> =
            ends.clone().map(|time| (time > half).then(|| place(time, half, PARTS))).collect();
        let mut has_end = [false; PARTS];
        parts.iter().flatten().for_each(|&part| has_end[part] = true);
        let mut next = 0;
        let columns = |time| {
            let last = place(time, 0, COLUMNS);
            let first = next.min(last);
            next = last + 1;
            (first, last)
        };
        Places { columns: ends.map(columns).collect(), parts, has_end }
    }
}

/// Memory of a group over time.
#[derive(Clone)]
struct Memory {
    now: u64,
    /// The first step that is not looked at so far.
    next: usize,
    greatest: [u64; COLUMNS],
    least: [u64; PARTS],
}

impl Default for Memory {
    fn default() -> Memory {
        Memory { now: 0, next: 0, greatest: [0; COLUMNS], least: [u64::MAX; PARTS] }
    }
}

impl Memory {
    /// Looks at all steps before the step `until`. The memory has not changed in them.
    fn settle(&mut self, until: usize, places: &Places) {
        let Some(last) = until.checked_sub(1).filter(|&last| last >= self.next) else { return };
        for column in &mut self.greatest[places.columns[self.next].0..=places.columns[last].1] {
            *column = self.now.max(*column);
        }
        if let Some(last) = places.parts[last] {
            for part in &mut self.least[places.parts[self.next].unwrap_or(0)..=last] {
                *part = self.now.min(*part);
            }
        }
        self.next = until;
    }

    /// Returns the growth, if there is any for sure. `hours` is the length of the half.
    fn growth(&self, places: &Places, hours: f64) -> Option<Growth> {
        let parts = (0..).zip(&self.least).zip(places.has_end).filter(|(_, has_end)| *has_end);
        let points: Vec<Point> = parts.map(|((part, &least), _)| (f64::from(part), least as f64)).collect();
        let trend = Trend::of(&points)?;
        let at_end = median_slope(&points[points.len() - points.len() / 3..]);
        let grown = trend.slope * PARTS as f64;
        let is_much = grown > 1.0 && grown > self.now as f64 / LEAST_PART;
        let goes_on = at_end > trend.slope * LEAST_AT_END;
        let is_leak = trend.deviations >= LEAST_SURE && is_much && goes_on && hours > 0.0;
        is_leak.then(|| Growth {
            per_hour: grown / hours,
            certainty: certainty(trend.deviations),
            series: self.greatest.to_vec(),
        })
    }
}

/// Trend of a few points.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Trend {
    /// Median of the slopes of all pairs (Theil and Sen).
    slope: f64,
    /// Distance of the rising less the falling pairs from 0, in standard deviations (Mann and
    /// Kendall).
    deviations: f64,
}

impl Trend {
    /// Returns the trend of points by rising place. None for less than eight points, which prove
    /// nothing.
    fn of(points: &[Point]) -> Option<Trend> {
        const LEAST_POINTS: usize = 8;
        let count = points.len();
        if count < LEAST_POINTS {
            return None;
        }
        let rising: i32 = pairs(points).map(|(from, to)| i32::from(to.1 > from.1) - i32::from(to.1 < from.1)).sum();
        let spread = |n: f64| n * (n - 1.0) * (2.0 * n + 5.0) / 18.0;
        // Equal points have no order.
        let mut values: Vec<f64> = points.iter().map(|point| point.1).collect();
        values.sort_unstable_by(f64::total_cmp);
        let ties: f64 = values.chunk_by(|one, other| one == other).map(|tied| spread(tied.len() as f64)).sum();
        let variance = spread(count as f64) - ties;
        let excess = f64::from(rising - rising.signum());
        let deviations = if variance > 0.0 { excess / variance.sqrt() } else { 0.0 };
        Some(Trend { slope: median_slope(points), deviations })
    }
}

type Point = (f64, f64);

fn pairs(points: &[Point]) -> impl Iterator<Item = (Point, Point)> + '_ {
    points.iter().enumerate().flat_map(|(index, &from)| points[index + 1..].iter().map(move |&to| (from, to)))
}

/// Median of the slopes of all pairs (Theil and Sen). `points` has at least two points.
fn median_slope(points: &[Point]) -> f64 {
    let mut slopes: Vec<f64> = pairs(points).map(|(from, to)| (to.1 - from.1) / (to.0 - from.0)).collect();
    let middle = slopes.len() / 2;
    *slopes.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// Probability that a normal number is within so many standard deviations: the error function by
/// Abramowitz and Stegun, 7.1.26.
fn certainty(deviations: f64) -> f64 {
    let x = deviations.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let polynomial =
        t * (0.254_829_592 + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    1.0 - polynomial * (-x * x).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use heapline_shared_format::snapshot::history::{Change, Changes, Step};

    /// Steps of a second for an hour, with the memory of one stack.
    fn history(memory: impl Fn(u64) -> u64) -> History {
        let mut before = 0;
        let step = |second: u64| {
            let size = memory(second);
            let difference = size.wrapping_sub(std::mem::replace(&mut before, size)).cast_signed();
            let change = Change {
                domain: Domain::Native,
                stack: Some(0),
                size: difference,
                count: 0,
                allocated_bytes: 0,
                allocs: 0,
            };
            Step { end: second * 1000, changes: Changes::encode(&[change]), ..Step::default() }
        };
        History { steps: (0..=3600).map(step).collect(), ..History::default() }
    }

    fn growth(memory: impl Fn(u64) -> u64) -> Option<Growth> {
        let groups = HashMap::from([(Key::Size(1), vec![0])]);
        growing(&history(memory), Domain::Native, &groups).remove(&Key::Size(1))
    }

    /// A number from 0 to `bound`, by chance but for each second the same.
    fn noise(second: u64, bound: u64) -> u64 {
        (second.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % bound
    }

    #[test]
    fn a_leak_is_found_under_a_load_that_swings_a_thousand_times_as_far() {
        let leak = |second| 1000 * second + noise(second, 100_000_000) / 20 * u64::from(second % 5 > 0);
        let found = growth(leak).expect("a leak");
        assert!((found.per_hour / 3_600_000.0 - 1.0).abs() < 0.05, "{} bytes an hour", found.per_hour);
        assert!(found.certainty > 0.999 && found.series.len() == COLUMNS);
        assert!(growth(|second| 1000 * second).expect("plain").per_hour > 3_590_000.0);
    }

    #[test]
    fn a_start_a_bound_a_saw_and_a_load_are_no_leaks() {
        let start = |second: u64| 10_000 * second.min(600) + noise(second, 3000);
        assert_eq!(growth(start), None, "a start");
        assert_eq!(growth(|second| 1000 * second.min(2300)), None, "a cache that reaches its bound later");
        assert_eq!(growth(|second| 100_000 * (second % 97)), None, "a saw");
        assert_eq!(growth(|second| 5_000_000 + noise(second, 1_000_000)), None, "a load");
        assert_eq!(growth(|_| 7), None, "constant memory");
        assert_eq!(growth(|second| 10_000_000 - 1000 * second), None, "memory that shrinks");
        assert_eq!(growth(|second| 1 << 40 | second), None, "next to nothing");
    }

    #[test]
    fn a_long_step_leaves_no_gap_in_the_memory_over_time() {
        let mut long = history(|second| 1000 * second);
        // A third of the hour is one step.
        let third = Step::join(&long.steps.split_off(1200)[..1200]).expect("steps");
        let rest = history(|second| 1000 * second).steps.split_off(2400);
        long.steps.push(third);
        long.steps.extend(rest);
        let groups = HashMap::from([(Key::Size(1), vec![0])]);
        let found = growing(&long, Domain::Native, &groups).remove(&Key::Size(1)).expect("a leak");
        assert!(found.series.iter().all(|&value| value > 0) && found.series.is_sorted(), "{:?}", found.series);
    }

    #[test]
    fn certainties_are_those_of_the_normal_distribution() {
        for (deviations, expected) in [(0.0, 0.0), (1.0, 0.682_689), (1.96, 0.950_004), (2.576, 0.990_005)] {
            assert!((certainty(deviations) - expected).abs() < 1e-5, "{deviations}: {}", certainty(deviations));
        }
    }
}

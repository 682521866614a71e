//! Questions about the ages of live blocks.
//!
//! A snapshot knows the births of live blocks to a span of time. A bound of an age falls into a
//! span, so the nearest border between spans answers, and the report says how far it is
//! ([`Bound`]).
//!
//! An answer is a snapshot with the live blocks in question only, one row of live blocks for each
//! class of age. All that looks at live blocks then looks at these: groups, filters, trees,
//! formats.

use super::moment::{Instant, span};
use super::time::local;
use super::tree::Subject;
use heapline_shared_format::snapshot::{Ages, BornBlocks, Draws, LiveGroup, SharedSample, Snapshot};
use std::collections::HashMap;

/// Bounds between the classes of `--by age`, in milliseconds.
const CLASS_BOUNDS: [u64; 7] = [1_000, 10_000, 60_000, 600_000, 3_600_000, 86_400_000, 604_800_000];
/// Names of the classes, the youngest first.
pub const CLASSES: [&str; CLASS_BOUNDS.len() + 1] = [
    "< 1 s",
    "1 s to 10 s",
    "10 s to 1 min",
    "1 min to 10 min",
    "10 min to 1 h",
    "1 h to 1 day",
    "1 day to 7 days",
    "7 days or more",
];

/// Blocks that are asked for, by age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Least age, in milliseconds.
    pub older: Option<u64>,
    /// Greatest age, in milliseconds.
    pub younger: Option<u64>,
    /// Whether the blocks are told apart by class of age.
    pub by_class: bool,
}

/// A bound of an age, and the answer of the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The age that is asked for, in milliseconds.
    pub asked: u64,
    /// The age of the nearest border between two spans of births.
    pub answered: u64,
    /// Width of the span that the bound falls into; 0 before the begin of the recording.
    pub width: u64,
    /// Time of the border, in milliseconds since 1970, UTC.
    pub time: u64,
    /// Local time less UTC at the place of the recording, in seconds.
    pub utc_offset: i32,
}

impl Bound {
    /// Describes the answer: "the births before 2026-11-28T03:00:20+01:00, known to 10 s there".
    fn described(&self) -> String {
        let time = local(self.time, self.utc_offset);
        if self.width == 0 { time } else { format!("{time}, births are known to {} there", span(self.width)) }
    }
}

/// What a report on ages is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Bound of the least age.
    pub older: Option<Bound>,
    /// Bound of the greatest age.
    pub younger: Option<Bound>,
    /// Bounds of the classes within the recording.
    pub classes: Vec<Bound>,
}

impl Answered {
    /// Names the blocks: "older than 10 min"; empty for all blocks.
    pub fn which(&self) -> String {
        let older = self.older.map(|bound| format!("older than {}", span(bound.asked)));
        let younger = self.younger.map(|bound| format!("younger than {}", span(bound.asked)));
        older.into_iter().chain(younger).collect::<Vec<_>>().join(" and ")
    }

    /// Says how exact the bounds are, a sentence for each fact.
    pub fn precision(&self) -> Vec<String> {
        let older =
            self.older.map(|bound| format!("Older than {}: born before {}", span(bound.asked), bound.described()));
        let younger =
            self.younger.map(|bound| format!("Younger than {}: born after {}", span(bound.asked), bound.described()));
        let classes = self.classes.iter().map(|bound| format!("{} at {}", span(bound.width), span(bound.asked)));
        let classes = classes.collect::<Vec<_>>().join(", ");
        let classes = (!classes.is_empty()).then(|| format!("Ages are known to a step of the history: {classes}"));
        older.into_iter().chain(younger).chain(classes).collect()
    }
}

/// Fact that a snapshot does not know the ages of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are no ages in the snapshot of process {pid} (--no-history, or an older Heapline): record it again")]
pub struct NoAges {
    /// The process.
    pub pid: u32,
}

/// Returns a subject with the wanted live blocks. Bounds are those of the first process.
///
/// # Errors
///
/// Fails with [`NoAges`].
pub fn of_age(subject: &Subject, wanted: Wanted) -> Result<(Subject, Answered), NoAges> {
    let parts = subject.parts().iter().map(|part| part_of_age(part, wanted)).collect::<Result<Vec<_>, _>>()?;
    let (mut parts, mut answers): (Vec<Snapshot>, Vec<Answered>) = parts.into_iter().unzip();
    let answered = answers.swap_remove(0);
    let subject = if subject.is_tree() { Subject::tree(parts) } else { Subject::process(parts.swap_remove(0)) };
    Ok((subject, answered))
}

/// Spans of birth of a snapshot.
struct Spans<'s> {
    ages: &'s Ages,
    /// Time of the snapshot, in milliseconds since 1970, UTC.
    end: u64,
    utc_offset: i32,
}

impl<'s> Spans<'s> {
    fn of(snapshot: &'s Snapshot) -> Result<Spans<'s>, NoAges> {
        let ages = snapshot.ages.as_ref().ok_or(NoAges { pid: snapshot.meta.pid })?;
        let history = snapshot.history.as_ref();
        let end = history.map_or(0, |history| history.begun.saturating_add(history.end()));
        let end = end.max(ages.begins.last().copied().unwrap_or(0));
        Ok(Spans { ages, end, utc_offset: history.map_or(0, |history| history.utc_offset) })
    }

    /// Returns the number of spans before the border that is nearest to a time, and the border.
    fn nearest(&self, time: u64) -> (usize, u64) {
        let borders = || self.ages.begins.iter().copied().chain([self.end]);
        let nearest = borders().enumerate().min_by_key(|&(_, border)| border.abs_diff(time));
        nearest.unwrap_or((0, self.end))
    }

    /// Returns the number of spans that are older than an age, and the bound.
    fn older_than(&self, age: u64) -> (usize, Bound) {
        let begins = &self.ages.begins;
        let time = self.end.saturating_sub(age);
        let (index, border) = self.nearest(time);
        let next = begins.partition_point(|&begin| begin <= time);
        let width = match next.checked_sub(1) {
            Some(span) => begins.get(next).unwrap_or(&self.end).saturating_sub(begins[span]),
            None => 0,
        };
        let answered = self.end.saturating_sub(border);
        (index, Bound { asked: age, answered, width, time: border, utc_offset: self.utc_offset })
    }
}

fn part_of_age(snapshot: &Snapshot, wanted: Wanted) -> Result<(Snapshot, Answered), NoAges> {
    let spans = Spans::of(snapshot)?;
    let older = wanted.older.map(|age| spans.older_than(age));
    let younger = wanted.younger.map(|age| spans.older_than(age));
    let classes: Vec<(usize, Bound)> = match wanted.by_class {
        true => CLASS_BOUNDS.iter().map(|&age| spans.older_than(age)).collect(),
        false => Vec::new(),
    };
    let kept = younger.map_or(0, |(first, _)| first)..older.map_or(usize::MAX, |(end, _)| end);
    let class = |span: usize| classes.iter().filter(|&&(older, _)| span < older).count();
    let part = with_classes(snapshot, spans.ages, |span| kept.contains(&span).then(|| class(span)));
    let life = spans.end.saturating_sub(spans.ages.begins.first().copied().unwrap_or(spans.end));
    let within = classes.into_iter().map(|(_, bound)| bound).filter(|bound| bound.asked < life && bound.width > 0);
    let bound = |found: Option<(usize, Bound)>| found.map(|(_, bound)| bound);
    Ok((part, Answered { older: bound(older), younger: bound(younger), classes: within.collect() }))
}

/// Returns a snapshot with the live blocks of the spans with a class: each row has blocks of one
/// class, which stands in the place of the span.
fn with_classes(snapshot: &Snapshot, ages: &Ages, class: impl Fn(usize) -> Option<usize>) -> Snapshot {
    let (mut live, mut blocks): (Vec<LiveGroup>, Vec<BornBlocks>) = (Vec::new(), Vec::new());
    // Rows of each row of live blocks.
    let mut parts: HashMap<u32, Vec<usize>> = HashMap::new();
    let mut last: Option<(u32, u32)> = None;
    for born in &ages.blocks {
        let Some(class) = class(born.span as usize) else { continue };
        let class = u32::try_from(class).unwrap_or(u32::MAX);
        if last != Some((born.live, class)) {
            last = Some((born.live, class));
            parts.entry(born.live).or_default().push(live.len());
            let index = u32::try_from(live.len()).unwrap_or(u32::MAX);
            live.push(LiveGroup { count: 0, ..snapshot.live[born.live as usize] });
            blocks.push(BornBlocks { live: index, span: class, count: 0 });
        }
        let (row, born_row) = (live.len() - 1, blocks.len() - 1);
        live[row].count = live[row].count.saturating_add(born.count);
        blocks[born_row].count = live[row].count;
    }
    let draws = snapshot.draws.as_ref().map(|draws| {
        // Of the samples of a row, no more than the row has now. Which of them is not known.
        let mut left: HashMap<usize, u64> = HashMap::new();
        let mut shared: Vec<SharedSample> = Vec::new();
        for sample in &draws.shared {
            let rows = parts.get(&sample.live).map_or(&[][..], Vec::as_slice);
            let row = rows.iter().find(|&&row| *left.entry(row).or_insert(live[row].count) > 0);
            if let Some(&row) = row {
                left.entry(row).and_modify(|left| *left -= 1);
                shared.push(SharedSample { live: u32::try_from(row).unwrap_or(u32::MAX), ..*sample });
            }
        }
        shared.sort_by_key(|sample| sample.live);
        Draws { shared, ..draws.clone() }
    });
    let mut part = snapshot.clone();
    (part.live, part.draws) = (live, draws);
    part.ages = Some(Ages { begins: (0..CLASSES.len() as u64).collect(), blocks });
    part
}

/// Live blocks that were born in a range of time.
#[derive(Debug)]
pub struct Survivors {
    /// The subject, with the blocks born in the range only.
    pub subject: Subject,
    /// Begin and end of the births, in milliseconds since 1970, UTC: the range asked for, or the
    /// nearest times to which births are known.
    pub born: [u64; 2],
}

/// Returns the live blocks that were born after the instant `since` and up to `until`. None if the
/// snapshot does not know the ages of its blocks.
///
/// Where births are not known to the instant, the nearest borders are taken.
pub fn survivors(subject: &Subject, since: Instant, until: Instant) -> Option<Survivors> {
    born_between(subject, [since.end, until.end])
}

/// Returns the live blocks that were born before the middle of the history. None if the snapshot
/// does not know the ages of its blocks.
pub fn older_half(subject: &Subject) -> Option<Survivors> {
    let history = subject.first().history.as_ref()?;
    born_between(subject, [0, history.begun.saturating_add(history.end() / 2)])
}

fn born_between(subject: &Subject, times: [u64; 2]) -> Option<Survivors> {
    let first = Spans::of(subject.first()).ok()?;
    let borders = times.map(|time| first.nearest(time).1);
    let part = |part: &Snapshot| {
        let spans = Spans::of(part).ok()?;
        let [from, to] = borders.map(|time| spans.nearest(time).0);
        Some(with_classes(part, spans.ages, |span| (from..to).contains(&span).then_some(0)))
    };
    let mut parts = subject.parts().iter().map(part).collect::<Option<Vec<_>>>()?;
    let subject = if subject.is_tree() { Subject::tree(parts) } else { Subject::process(parts.swap_remove(0)) };
    Some(Survivors { subject, born: borders })
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own making")]
mod tests {
    use super::*;
    use heapline_shared_format::snapshot::history::Step;
    use heapline_shared_format::snapshot::{Ancestor, Domain, History};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const BEGUN: u64 = 1_000_000;

    /// A snapshot that ends `end` milliseconds after the begin of the history.
    fn snapshot(begins: &[u64], end: u64, live: &[LiveGroup], blocks: Vec<BornBlocks>) -> Snapshot {
        let step = |end| Step { end, ..Step::default() };
        let history = History { begun: BEGUN, steps: vec![step(0), step(end)], ..History::default() };
        let begins = begins.iter().map(|begin| BEGUN + begin).collect();
        let ages = Some(Ages { begins, blocks });
        Snapshot { live: live.to_vec(), history: Some(history), ages, ..Snapshot::default() }
    }

    fn row(stack: u32, count: u64) -> LiveGroup {
        LiveGroup { domain: Domain::Native, stack, thread: 0, size: 10, count }
    }

    fn born(live: u32, span: u32, count: u64) -> BornBlocks {
        BornBlocks { live, span, count }
    }

    #[test]
    fn bounds_are_answered_by_the_nearest_border_and_say_so() {
        let blocks = vec![born(0, 0, 1), born(0, 1, 2), born(0, 2, 4), born(1, 2, 8), born(1, 3, 16)];
        let subject =
            Subject::process(snapshot(&[0, 50_000, 59_000, 59_500], 60_000, &[row(0, 7), row(1, 24)], blocks));
        let ask = |older, younger| {
            let wanted = Wanted { older, younger, by_class: false };
            let (part, answered) = of_age(&subject, wanted).expect("ages");
            let counts: Vec<(u32, u64)> = part.first().live.iter().map(|row| (row.stack, row.count)).collect();
            (counts, answered)
        };
        let (counts, answered) = ask(Some(9_000), None);
        assert_eq!(counts, [(0, 1)]);
        let bound = answered.older.expect("a bound");
        assert_eq!((bound.asked, bound.answered, bound.width), (9_000, 10_000, 9_000));
        assert_eq!(answered.which(), "older than 9 s");
        let text = &answered.precision()[0];
        assert!(
            text.starts_with("Older than 9 s: born before 1970-01-01T00:17:30") && text.ends_with("known to 9 s there"),
            "{text}"
        );
        assert_eq!(ask(Some(2_000), None).0, [(0, 3)]);
        assert_eq!(ask(None, Some(600)).0, [(1, 16)]);
        let (counts, answered) = ask(Some(600), Some(12_000));
        assert_eq!(
            (counts, answered.which().as_str()),
            (vec![(0, 6), (1, 8)], "older than 600 ms and younger than 12 s")
        );
        // Before the recording, and in the future of the last span.
        assert_eq!(ask(Some(1 << 50), None).0, []);
        assert_eq!(ask(Some(0), None).0, [(0, 7), (1, 24)]);
        let error = of_age(&Subject::process(Snapshot::default()), Wanted::default()).expect_err("no ages");
        assert!(error.to_string().contains("no ages in the snapshot"), "{error}");
    }

    #[test]
    fn samples_that_other_processes_have_stay_with_their_rows() {
        let mut part = snapshot(&[0, 100], 1_000, &[row(0, 5)], vec![born(0, 0, 2), born(0, 1, 3)]);
        let shared = (0..4).map(|address| SharedSample { live: 0, address }).collect();
        part.draws = Some(Draws { by: 2, ancestors: vec![Ancestor { by: 1, end: 9 }], shared_end: 9, shared });
        let (part, _) =
            of_age(&Subject::process(part), Wanted { older: Some(900), ..Wanted::default() }).expect("ages");
        let part = part.first();
        assert_eq!((part.live[0].count, part.draws.as_ref().map(|draws| draws.shared.len())), (2, Some(2)));
    }

    proptest! {
        /// Classes and bounds beside a count of each block.
        #[test]
        fn every_block_is_in_the_class_of_its_birth(
            widths in prop::collection::vec(1..100_000u64, 1..40),
            blocks in prop::collection::vec((0..5u32, any::<prop::sample::Index>(), 1..9u64), 0..60),
            older in prop::option::of(0..1_000_000u64),
            younger in prop::option::of(0..1_000_000u64),
        ) {
            let begins: Vec<u64> = widths.iter().scan(0, |sum, width| { *sum += width; Some(*sum - width) }).collect();
            let end: u64 = widths.iter().sum();
            let mut counts: BTreeMap<(u32, u32), u64> = BTreeMap::new();
            for (stack, span, count) in blocks {
                *counts.entry((stack, span.index(begins.len()) as u32)).or_default() += count;
            }
            let live: Vec<LiveGroup> = (0..5).map(|stack| {
                row(stack, counts.iter().filter(|((of, _), _)| *of == stack).map(|(_, count)| count).sum())
            }).collect();
            let blocks = counts.iter().map(|(&(live, span), &count)| born(live, span, count)).collect();
            let part = snapshot(&begins, end, &live, blocks);
            let wanted = Wanted { older, younger, by_class: true };
            let (answer, _) = of_age(&Subject::process(part), wanted).expect("ages");
            let answer = answer.first();
            let found: BTreeMap<(u32, u32), u64> =
                answer.live.iter().zip(&answer.ages.as_ref().expect("ages").blocks)
                    .map(|(row, age)| ((row.stack, age.span), row.count)).collect();
            prop_assert_eq!(found.len(), answer.live.len());
            // A span is older than a bound if its end is older, or nearer to it than its begin.
            let is_older = |span: u32, age: u64| {
                let span = span as usize;
                let (begin, span_end) = (begins[span], begins.get(span + 1).copied().unwrap_or(end));
                let time = end.saturating_sub(age);
                span_end <= time || begin < time && time.abs_diff(span_end) < time.abs_diff(begin)
            };
            let mut wanted: BTreeMap<(u32, u32), u64> = BTreeMap::new();
            for ((stack, span), count) in counts {
                if older.is_none_or(|age| is_older(span, age)) && younger.is_none_or(|age| !is_older(span, age)) {
                    let class = CLASS_BOUNDS.iter().filter(|&&age| is_older(span, age)).count() as u32;
                    *wanted.entry((stack, class)).or_default() += count;
                }
            }
            prop_assert_eq!(found, wanted);
        }
    }
}

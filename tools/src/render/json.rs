//! The report for programs. docs/formats.md specifies each field; `heapline_report` is the version.

use crate::frames::{Frame, Tracebacks, Walked};
use crate::input::ages::{Answered, Bound, CLASSES};
use crate::input::copies::Part;
use crate::input::moment::{At, Instant, totals};
use crate::input::time::local;
use crate::query::blame::Blamer;
use crate::query::diff::Kind;
use crate::query::estimate::{Estimate, of_domain};
use crate::query::report::{Report, Row, Suppressed};
use crate::query::statistics::{By, Key};
use crate::query::tree::{Branch, What, branches};
use crate::query::usable::Rounding;
use crate::render::Sources;
use heapline_shared_format::snapshot::{
    Birth, Domain, DomainTotals, End, LIFETIME_CLASSES, Meta, Snapshot, Unseen, mode_name,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};

const VERSION: u32 = 1;

#[derive(Serialize)]
struct Document<'r> {
    heapline_report: u32,
    snapshot: Taken<'r>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    processes: Vec<ProcessFields<'r>>,
    own: Own,
    domains: Vec<DomainSums>,
    view: String,
    by: &'static str,
    at: &'static str,
    /// The instant of a view of the past.
    #[serde(skip_serializing_if = "Option::is_none")]
    instant: Option<InstantFields>,
    /// The instant that the view is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<InstantFields>,
    /// Bounds of ages.
    #[serde(skip_serializing_if = "Option::is_none")]
    ages: Option<AgeFields>,
    /// Blocks allocated in the range of the report, and live at the snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    survived: Option<RangeFields>,
    /// What is unused by rounding, in a report by size.
    #[serde(skip_serializing_if = "Option::is_none")]
    rounding: Option<RoundingFields>,
    cumulative: bool,
    total: Sums,
    /// What suppressions have left out of a report on leaks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    suppressed: Vec<SuppressedFields<'r>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    threads: Vec<ThreadFields<'r>>,
    stats: Vec<Stat<'r>>,
}

/// An instant of the history, and the step that ends with it.
#[derive(Serialize)]
struct InstantFields {
    time: String,
    step_begin: String,
    step_milliseconds: u64,
}

impl InstantFields {
    fn of(instant: Instant) -> InstantFields {
        InstantFields {
            time: instant.time(),
            step_begin: local(instant.begin, instant.utc_offset),
            step_milliseconds: instant.end.saturating_sub(instant.begin),
        }
    }
}

/// What is unused by rounding: figures, or the reason why they are not known.
#[derive(Serialize)]
struct RoundingFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    allocator: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unused: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown_blocks: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
}

/// Bounds of the ages of a report on ages.
#[derive(Serialize)]
struct AgeFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    older_than: Option<BoundFields>,
    #[serde(skip_serializing_if = "Option::is_none")]
    younger_than: Option<BoundFields>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    classes: Vec<BoundFields>,
}

/// A bound of an age: the age asked for, the age that answers, and how exact births are there.
#[derive(Serialize)]
struct BoundFields {
    milliseconds: u64,
    answered_milliseconds: u64,
    step_milliseconds: u64,
    time: String,
}

impl AgeFields {
    fn of(ages: &Answered) -> AgeFields {
        let bound = |bound: &Bound| BoundFields {
            milliseconds: bound.asked,
            answered_milliseconds: bound.answered,
            step_milliseconds: bound.width,
            time: local(bound.time, bound.utc_offset),
        };
        AgeFields {
            older_than: ages.older.as_ref().map(bound),
            younger_than: ages.younger.as_ref().map(bound),
            classes: ages.classes.iter().map(bound).collect(),
        }
    }
}

#[derive(Serialize)]
struct Taken<'r> {
    pid: u32,
    command: &'r str,
    taken_at: &'r str,
    mode: &'static str,
    unseen: &'r [Unseen],
    sample_interval: u64,
    nframe: u32,
    end: End,
    lost: &'r BTreeMap<String, u64>,
    contradictions: u64,
    untracked_frees: u64,
}

/// A process of a tree, with figures in the domain of the view.
#[derive(Serialize)]
struct ProcessFields<'r> {
    pid: u32,
    parent: Option<u32>,
    birth: Option<Birth>,
    command: &'r str,
    end: End,
    inherited_blocks: Option<u64>,
    #[serde(flatten)]
    sums: DomainSums,
}

#[derive(Serialize)]
struct Own {
    target_bytes: u64,
    aggregator_bytes: u64,
}

#[derive(Serialize)]
struct DomainSums {
    domain: String,
    current: u64,
    peak: u64,
    blocks: u64,
    allocs: u64,
    frees: u64,
    allocated_bytes: u64,
    /// Present if samples were recorded. Numbers of calls and allocated bytes are exact even then.
    #[serde(skip_serializing_if = "Option::is_none")]
    current_interval: Option<[u64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_interval: Option<[u64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocks_interval: Option<[u64; 2]>,
}

/// Exact counts of a thread while samples were recorded.
#[derive(Serialize)]
struct ThreadFields<'r> {
    tid: u32,
    thread: &'r str,
    domain: String,
    allocs: u64,
    allocated_bytes: u64,
    frees: u64,
}

#[derive(Serialize)]
struct Sums {
    groups: usize,
    size: u64,
    count: u64,
    #[serde(flatten)]
    intervals: Intervals,
}

/// 95 % intervals, from and to, of figures estimated from samples.
#[derive(Serialize)]
struct Intervals {
    #[serde(skip_serializing_if = "Option::is_none")]
    size_interval: Option<[u64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count_interval: Option<[u64; 2]>,
}

impl Intervals {
    fn of(size: u64, estimate: &Estimate) -> Intervals {
        Intervals { size_interval: pair(estimate.size_interval(size)), count_interval: pair(estimate.count_interval()) }
    }
}

fn pair(interval: Option<(u64, u64)>) -> Option<[u64; 2]> {
    interval.map(<[u64; 2]>::from)
}

#[derive(Serialize)]
struct Stat<'r> {
    size: u64,
    count: u64,
    #[serde(flatten)]
    intervals: Intervals,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_diff: Option<i128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count_diff: Option<i128>,
    /// Kind of the change since an earlier instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<Kind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    growth: Option<GrowthFields<'r>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    churn: Option<ChurnFields>,
    /// Blocks allocated in the range of the report, and live at the snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    survived: Option<SurvivedFields>,
    /// Half of the 95 % interval of `size_diff`.
    #[serde(skip_serializing_if = "Option::is_none")]
    size_diff_margin: Option<u64>,
    key: Option<KeyValue<'r>>,
    /// Usable bytes of a block, in a report by size.
    #[serde(skip_serializing_if = "Option::is_none")]
    usable: Option<u64>,
    traceback: Vec<FrameFields<'r>>,
    /// Index of the blamed frame in `traceback`.
    #[serde(skip_serializing_if = "Option::is_none")]
    blamed: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_nframe: Option<u16>,
    /// Place in a tree.
    #[serde(flatten)]
    branch: Option<BranchFields>,
}

/// Churn of a group, in a report on churn.
#[derive(Serialize)]
struct ChurnFields {
    temporary: Option<u64>,
    allocations_per_second: f64,
    within_step: u64,
    ended: [u64; LIFETIME_CLASSES],
}

/// Blocks that were allocated in a range of time, and still live at the snapshot.
#[derive(Serialize)]
struct SurvivedFields {
    size: u64,
    count: u64,
    #[serde(flatten)]
    intervals: Intervals,
}

/// The range of births of [`SurvivedFields`], and the sum over all groups.
#[derive(Serialize)]
struct RangeFields {
    born_after: String,
    born_until: String,
    #[serde(flatten)]
    sums: SurvivedFields,
}

impl SurvivedFields {
    fn of(size: u64, count: u64, estimate: &Estimate) -> SurvivedFields {
        SurvivedFields { size, count, intervals: Intervals::of(size, estimate) }
    }
}

/// Growing groups that a pattern has left out.
#[derive(Serialize)]
struct SuppressedFields<'r> {
    pattern: &'r str,
    groups: usize,
    size: u64,
    count: u64,
}

impl<'r> SuppressedFields<'r> {
    fn of(suppressed: &'r Suppressed) -> SuppressedFields<'r> {
        let Suppressed { ref pattern, groups, size, count } = *suppressed;
        SuppressedFields { pattern, groups, size, count }
    }
}

/// Growth of a group, in a report on leaks.
#[derive(Serialize)]
struct GrowthFields<'r> {
    bytes_per_hour: f64,
    certainty: f64,
    series: &'r [u64],
}

/// Fields of a row by tree. The rows are in the order of a walk, each behind its parent.
#[derive(Serialize)]
struct BranchFields {
    depth: usize,
    own_size: u64,
    own_count: u64,
    /// Greatest number of passes through the frame on one stack, in a folded tree.
    #[serde(skip_serializing_if = "Option::is_none")]
    passes: Option<u32>,
    /// Number of branches summed up in the row; only in a row without a frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    others: Option<usize>,
}

/// Key of a group that is not a frame.
#[derive(Serialize)]
#[serde(untagged)]
enum KeyValue<'r> {
    Bytes(u64),
    Name(&'r str),
}

#[derive(Serialize)]
struct FrameFields<'r> {
    filename: &'r str,
    lineno: u32,
    function: &'r str,
    module: &'r str,
    address: String,
    /// How the walk found the frame, grouped by traceback. Absent for Python's frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    walked: Option<Walked>,
    /// The line of the source file, where asked for and there.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
}

/// Writes the report as a JSON document and a newline.
///
/// # Errors
///
/// Passes on errors of `out`.
pub fn write(report: &Report<'_>, sources: Option<&mut Sources>, out: &mut dyn Write) -> io::Result<()> {
    let request = &report.request;
    let meta = &report.snapshot.meta;
    let mut blamer = report.blamer();
    let mut stats: Vec<Stat<'_>> = match request.by {
        By::Tree => branches(report).iter().map(|one| branch(report, one)).collect(),
        _ => report.shown().iter().map(|row| stat(report, row, blamer.as_mut())).collect(),
    };
    if let Some(sources) = sources {
        for frame in stats.iter_mut().flat_map(|stat| &mut stat.traceback) {
            frame.source = sources.line(frame.filename, frame.lineno).map(str::to_string);
        }
    }
    let document = Document {
        heapline_report: VERSION,
        snapshot: taken(meta),
        processes: report.subject.processes().map(|process| fields(process.snapshot, report.view.domain)).collect(),
        own: Own { target_bytes: meta.target_bytes, aggregator_bytes: meta.aggregator_bytes },
        domains: report.snapshot.domains.iter().map(|row| domain(row, report.subject.summed())).collect(),
        view: report.view.domain.to_string(),
        by: request.by.name(),
        at: request.at.name(),
        instant: if let At::Instant(instant) = request.at { Some(InstantFields::of(instant)) } else { None },
        since: report.since.map(InstantFields::of),
        ages: report.ages.as_ref().map(AgeFields::of),
        survived: report.survived.as_ref().map(|survived| {
            let offset = match (report.since, request.at) {
                (Some(instant), _) | (None, At::Instant(instant)) => instant.utc_offset,
                _ => 0,
            };
            let [born_after, born_until] = survived.born.map(|time| local(time, offset));
            let total = &survived.total;
            RangeFields { born_after, born_until, sums: SurvivedFields::of(total.size, total.count, &total.estimate) }
        }),
        rounding: report.rounding().map(|rounding| match rounding {
            Err(why) => RoundingFields { allocator: None, unused: None, unknown_blocks: None, unknown: Some(why) },
            Ok(Rounding { rule, unused, unknown }) => RoundingFields {
                allocator: Some(rule.allocator()),
                unused: Some(unused),
                unknown_blocks: Some(unknown),
                unknown: None,
            },
        }),
        cumulative: request.cumulative,
        total: Sums {
            groups: report.total.groups,
            size: report.total.size,
            count: report.total.count,
            intervals: Intervals::of(report.total.size, &report.total.estimate),
        },
        suppressed: report.suppressed.iter().map(SuppressedFields::of).collect(),
        threads: report.subject.parts().iter().flat_map(threads).collect(),
        stats,
    };
    serde_json::to_writer_pretty(Escaping { out: &mut *out, held: false }, &document)?;
    writeln!(out)
}

/// Escapes the control characters that JSON leaves unescaped (U+007F to U+009F). Names come from
/// the target, and a terminal may show the document. Control characters occur only inside strings,
/// so the document keeps its meaning.
struct Escaping<'o> {
    out: &'o mut dyn Write,
    /// Whether the last byte was [`LEAD`] and is not written yet.
    held: bool,
}

/// First byte of U+0080 to U+00BF in UTF-8.
const LEAD: u8 = 0xc2;

impl Write for Escaping<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while let Some((&first, behind)) = rest.split_first() {
            if std::mem::take(&mut self.held) {
                match first {
                    0x80..=0x9f => write!(self.out, "\\u{first:04x}")?,
                    _ => self.out.write_all(&[LEAD, first])?,
                }
                rest = behind;
                continue;
            }
            let plain = rest.iter().take_while(|&&byte| byte != LEAD && byte != 0x7f).count();
            match rest.get(plain) {
                Some(0x7f) => {
                    self.out.write_all(&rest[..plain])?;
                    self.out.write_all(b"\\u007f")?;
                }
                found => {
                    self.out.write_all(&rest[..plain])?;
                    self.held = found.is_some();
                }
            }
            rest = rest.get(plain + 1..).unwrap_or_default();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn taken(meta: &Meta) -> Taken<'_> {
    Taken {
        pid: meta.pid,
        command: &meta.command,
        taken_at: &meta.taken_at,
        mode: mode_name(meta.sample_interval, &meta.unseen),
        unseen: &meta.unseen,
        sample_interval: meta.sample_interval,
        nframe: meta.nframe,
        end: meta.end,
        lost: &meta.lost,
        contradictions: meta.contradictions.values().fold(0, |sum, &count| sum.saturating_add(count)),
        untracked_frees: meta.untracked_frees,
    }
}

fn fields(snapshot: &Snapshot, view: Domain) -> ProcessFields<'_> {
    let origin = snapshot.origin.as_ref();
    let inherited = origin.and_then(|origin| origin.inherited.as_ref());
    ProcessFields {
        pid: snapshot.meta.pid,
        parent: origin.map(|origin| origin.parent),
        birth: origin.map(|origin| origin.birth),
        command: &snapshot.meta.command,
        end: snapshot.meta.end,
        inherited_blocks: inherited.map(|blocks| blocks.get(&view.to_string()).copied().unwrap_or(0)),
        sums: domain(&totals(snapshot, view), std::iter::once(Part::alone(snapshot))),
    }
}

fn threads(snapshot: &Snapshot) -> impl Iterator<Item = ThreadFields<'_>> {
    snapshot.calls.iter().map(|row| {
        let thread = &snapshot.threads[row.thread as usize];
        ThreadFields {
            tid: thread.tid,
            thread: &thread.name,
            domain: row.domain.to_string(),
            allocs: row.allocs,
            allocated_bytes: row.bytes,
            frees: row.frees,
        }
    })
}

fn domain<'s>(row: &DomainTotals, parts: impl Iterator<Item = Part<'s>> + Clone) -> DomainSums {
    let (live, peak) = (of_domain(parts.clone(), row.domain, At::Live), of_domain(parts, row.domain, At::Peak));
    DomainSums {
        current_interval: pair(live.size_interval(row.current)),
        peak_interval: pair(peak.size_interval(row.peak)),
        blocks_interval: pair(live.count_interval()),
        domain: row.domain.to_string(),
        current: row.current,
        peak: row.peak,
        blocks: row.blocks,
        allocs: row.allocs,
        frees: row.frees,
        allocated_bytes: row.allocated_bytes,
    }
}

fn stat<'r>(report: &'r Report<'_>, row: &Row, blamer: Option<&mut Blamer<'_>>) -> Stat<'r> {
    let names = &report.tracebacks;
    let frame = |frame: &Frame| frame_fields(names, frame);
    let (key, traceback) = match row.stat.key {
        Key::Text(file) if report.request.by == By::Filename => {
            // A file has many lines and functions, but the frame has only those of the largest
            // trace. So line and function are left out.
            let whole_file =
                FrameFields { filename: names.text(file), lineno: 0, function: "", ..frame(&row.stat.frame) };
            (None, vec![whole_file])
        }
        Key::Text(text) => (Some(KeyValue::Name(names.text(text))), Vec::new()),
        Key::Size(size) => (Some(KeyValue::Bytes(size)), Vec::new()),
        Key::Age(class) => (CLASSES.get(class as usize).map(|&name| KeyValue::Name(name)), Vec::new()),
        Key::Line(..) | Key::Symbol(..) => (None, vec![frame(&row.stat.frame)]),
        Key::Traceback(id) => {
            let frames = names.oldest_first(id).into_iter().zip(names.walked(id));
            (None, frames.map(|(found, walked)| FrameFields { walked, ..frame(&found) }).collect())
        }
    };
    let blamed = match row.stat.key {
        Key::Traceback(id) => {
            let depth = blamer.map_or(0, |blamer| blamer.depth(names, id));
            traceback.len().checked_sub(1 + depth)
        }
        _ => None,
    };
    Stat {
        size: row.stat.size,
        count: row.stat.count,
        intervals: Intervals::of(row.stat.size, &row.stat.estimate),
        size_diff_margin: row.change.and_then(|change| change.doubt),
        size_diff: row.change.map(|change| change.size),
        count_diff: row.change.map(|change| change.count),
        change: report.since.and(row.change).map(|change| change.kind(row.stat.size, row.stat.count)),
        growth: report.growth_of(row).map(|growth| GrowthFields {
            bytes_per_hour: growth.per_hour.round(),
            certainty: growth.certainty,
            series: &growth.series,
        }),
        churn: report.churn_of(row).map(|churn| ChurnFields {
            temporary: churn.temporary,
            allocations_per_second: churn.per_second(row.stat.count),
            within_step: churn.within_step,
            ended: churn.ended,
        }),
        survived: report.survived.as_ref().map(|_| {
            let stat = report.survivors_of(row);
            let nothing = || SurvivedFields::of(0, 0, &Estimate::default());
            stat.map_or_else(nothing, |stat| SurvivedFields::of(stat.size, stat.count, &stat.estimate))
        }),
        key,
        usable: row.stat.key.size().and_then(|size| report.rounding()?.ok()?.rule.usable(size)),
        traceback,
        blamed,
        total_nframe: (report.request.by == By::Traceback).then_some(row.stat.total_nframe),
        branch: None,
    }
}

fn branch<'r>(report: &'r Report<'_>, branch: &Branch) -> Stat<'r> {
    let Branch { sums, own, depth, passes, .. } = branch;
    let frame_is_there = matches!(branch.what, What::Frame(_));
    let (others, frame) = match branch.what {
        What::Others(count) => (Some(count), None),
        What::Frame(frame) => (None, Some(frame_fields(&report.tracebacks, &frame))),
    };
    Stat {
        size: sums.size,
        count: sums.blocks(),
        intervals: Intervals::of(sums.size, &sums.estimate),
        size_diff_margin: sums.change.and_then(|change| change.doubt),
        size_diff: sums.change.map(|change| change.size),
        count_diff: sums.change.map(|change| change.count),
        change: report.since.and(sums.change).map(|change| change.kind(sums.size, sums.blocks())),
        growth: None,
        churn: None,
        survived: None,
        key: None,
        usable: None,
        traceback: frame.into_iter().collect(),
        blamed: None,
        total_nframe: None,
        branch: Some(BranchFields {
            depth: *depth,
            own_size: own.size,
            own_count: own.count,
            passes: (report.request.fold && frame_is_there).then_some(*passes),
            others,
        }),
    }
}

fn frame_fields<'r>(names: &'r Tracebacks, frame: &Frame) -> FrameFields<'r> {
    FrameFields {
        filename: names.text(frame.filename),
        lineno: frame.lineno,
        function: names.text(frame.function),
        module: names.text(frame.module),
        address: format!("{:#x}", frame.address),
        walked: None,
        source: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_wherever_the_bytes_are_split() {
        let text = "a\u{7f}\u{80}é\u{9b}31m\u{bf}z\u{1b}";
        let json = serde_json::to_string(text).unwrap();
        for size in 1..json.len() {
            let mut out = Vec::new();
            let mut escaping = Escaping { out: &mut out, held: false };
            json.as_bytes().chunks(size).for_each(|chunk| escaping.write_all(chunk).unwrap());
            let escaped = String::from_utf8(out).unwrap();
            assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
            assert!(!escaped.chars().any(char::is_control), "{escaped:?}");
            assert!(escaped.contains("é") && escaped.contains('\u{bf}'));
        }
    }
}

//! Facts that a reader must know before the figures.

use super::layout::{Layout, Role};
use crate::input::moment::At;
use crate::query::estimate::of_domain;
use crate::query::report::{Report, Row};
use crate::query::statistics::By;
use heapline_shared_format::snapshot::{Begun, Snapshot, mostly_mapped};
use heapline_shared_format::text::counted;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// At this number of samples, the greatest of many estimates is some per cent too high. With fewer,
/// the report has a warning.
const FEW_SAMPLES: u64 = 1000;

/// Begin of the note of an aggregator that recorded nothing. The reason follows a colon.
const NOTHING: &str = "NOTHING WAS RECORDED";

/// Most notes of a report that is not verbose. A tree of many processes may have many notes.
const MOST_NOTES: usize = 8;

/// A fact, in a sentence.
struct Concern {
    kind: Kind,
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The figures are not what they seem to be.
    Warning,
    Fact,
    Note,
    /// Implied by another fact: only a verbose report shows a detail.
    Detail,
}

impl Concern {
    fn new(kind: Kind, text: String) -> Concern {
        Concern { kind, text }
    }
}

/// Facts to know before the figures: losses, contradictions, notes.
pub fn concerns(report: &Report<'_>) -> Vec<String> {
    all(report).into_iter().map(|concern| concern.text).collect()
}

/// The facts for an overview, with their roles; without details.
pub(super) fn brief(report: &Report<'_>) -> Vec<(Role, String)> {
    let role = |kind| if kind == Kind::Warning { Role::Loud } else { Role::Plain };
    let facts = all(report).into_iter().filter(|concern| concern.kind != Kind::Detail);
    facts.map(|concern| (role(concern.kind), concern.text)).collect()
}

/// Writes the facts. A report that is not verbose shows the first of many notes, and no details.
pub(super) fn write(report: &Report<'_>, layout: Layout, out: &mut dyn Write) -> io::Result<()> {
    let most = if layout.is_verbose { usize::MAX } else { MOST_NOTES };
    let mut notes = 0_usize;
    for Concern { kind, text } in &all(report) {
        notes += usize::from(*kind == Kind::Note);
        match kind {
            Kind::Note if notes > most => {}
            Kind::Detail if !layout.is_verbose => {}
            Kind::Warning => layout.say(Role::Loud, text, out)?,
            _ => layout.say(Role::Plain, text, out)?,
        }
    }
    if let more @ 1.. = notes.saturating_sub(most) {
        layout.say(Role::Quiet, &format!("{}: -v shows all", counted(more as u64, "more note")), out)?;
    }
    unknown_lines(report).iter().try_for_each(|text| layout.say(Role::Plain, text, out))
}

fn all(report: &Report<'_>) -> Vec<Concern> {
    let mut concerns = Vec::new();
    let is_empty = report.has_no_records();
    concerns.extend(is_empty.then(|| Concern::new(Kind::Warning, no_records(report))));
    let at_peak = of_domain(report.subject.summed(), report.view.domain, At::Peak);
    if (1..FEW_SAMPLES).contains(&at_peak.samples) {
        let samples = counted(at_peak.samples, "sample");
        let text =
            format!("The peak rests on {samples}: the greatest of many estimates, it is too high rather than too low");
        concerns.push(Concern::new(Kind::Fact, text));
    }
    let mapped = {
        let whose = if report.subject.is_tree() { "the memory of these processes" } else { "this process's memory" };
        mostly_mapped(&report.snapshot.domains, report.view.domain, !report.view.at.is_now(), whose)
    };
    concerns.extend(mapped.map(|text| Concern::new(Kind::Fact, text)));
    let is_told = |concern: &Concern| is_empty && reason(&concern.text).is_some();
    concerns.extend(of_side(report.snapshot).into_iter().filter(|concern| !is_told(concern)).map(noted));
    // A fact of both snapshots is told once.
    let is_new = |concern: &Concern| concerns.iter().all(|other| other.text != concern.text);
    let old: Vec<Concern> = report.old.into_iter().flat_map(of_side).map(noted).filter(is_new).collect();
    let old = old.into_iter();
    concerns.extend(old.map(|concern| Concern { text: format!("old snapshot: {}", concern.text), ..concern }));
    concerns
}

/// Names a note as such.
fn noted(concern: Concern) -> Concern {
    match concern.kind {
        Kind::Note => Concern { text: format!("Note: {}", concern.text), ..concern },
        _ => concern,
    }
}

/// Says that nothing was recorded, and why. Without a known reason, the usual reasons are listed.
fn no_records(report: &Report<'_>) -> String {
    let ranges = report.snapshot.domains.iter().any(|row| row.domain.is_of_ranges());
    let what = if ranges { "nothing but mappings (--domain mmap)" } else { "nothing" };
    let meta = &report.snapshot.meta;
    let reason = meta.notes.iter().find_map(|note| reason(note));
    let is_explained = !meta.notes.is_empty() || !meta.unseen.is_empty();
    match reason {
        Some(reason) => format!("NO RECORDS: {what} was recorded of this program: {reason}"),
        None if is_explained => format!("NO RECORDS: {what} was recorded of this program"),
        None => format!(
            "NO RECORDS: {what} was recorded of this program. Usual reasons: the executable brings its own malloc, is \
             static, or the loader ignored the preload (setuid); or the program never allocated"
        ),
    }
}

/// Returns the reason in a note that nothing was recorded; none for another note.
fn reason(note: &str) -> Option<&str> {
    note.strip_prefix(NOTHING)?.split_once(": ").map(|(_, reason)| reason)
}

/// Facts about a snapshot.
fn of_side(snapshot: &Snapshot) -> Vec<Concern> {
    let meta = &snapshot.meta;
    let mut concerns = Vec::new();
    let mut add = |kind, text| concerns.push(Concern::new(kind, text));
    meta.unseen.iter().for_each(|cause| add(Kind::Warning, format!("NOT SEEN: {}", cause.sentence())));
    if let Some((sum, causes)) = sum(&meta.lost) {
        let events = counted(sum, "event");
        add(Kind::Warning, format!("LOST: {events} missing ({causes}), so figures are wrong by what they held"));
    }
    if let Some((sum, kinds)) = sum(&meta.contradictions) {
        add(Kind::Warning, format!("Contradictions: {} resolved by rule ({kinds})", counted(sum, "event")));
    }
    if meta.untracked_frees > 0 {
        // After an attach, frees of older blocks are no surprise.
        let kind = if meta.begun == Begun::Attach { Kind::Detail } else { Kind::Fact };
        let frees = counted(meta.untracked_frees, "free");
        add(
            kind,
            format!(
                "{frees} of blocks that were not seen to come: older than the tracing, cleared, or another allocator's"
            ),
        );
    }
    if meta.in_realloc > 0 {
        let (whose, calls) = if meta.in_realloc == 1 { ("its", "call") } else { ("their", "calls") };
        add(
            Kind::Fact,
            format!(
                "{} {calls} of realloc, munmap or mremap had not returned at the end: {whose} memory is counted as before \
                 the {calls}",
                meta.in_realloc
            ),
        );
    }
    meta.notes.iter().for_each(|note| add(Kind::Note, note.clone()));
    concerns
}

/// Advice for a module without debug information: all its blocks are in a single row.
fn unknown_lines(report: &Report<'_>) -> Option<String> {
    let by_file = report.request.by == By::Filename;
    let is_heap = |row: &&Row| row.stat.frame.is_unlined() && row.stat.several_functions;
    let row = report.shown().iter().filter(|_| by_file).find(is_heap)?;
    // Without lines, the file is the module.
    let module = report.tracebacks.text(row.stat.frame.filename);
    Some(format!("No lines are known in {module}: --by function tells its blocks apart"))
}

/// Returns the sum and the counts above 0; none if all are 0.
pub(super) fn sum(counts: &BTreeMap<String, u64>) -> Option<(u64, String)> {
    let parts: Vec<String> =
        counts.iter().filter(|(_, count)| **count > 0).map(|(name, count)| format!("{name} {count}")).collect();
    let sum = counts.values().fold(0_u64, |sum, &count| sum.saturating_add(count));
    (!parts.is_empty()).then(|| (sum, parts.join(", ")))
}

//! Facts that a reader must know before the figures.

use crate::input::moment::At;
use crate::query::estimate::of_domain;
use crate::query::report::Report;
use heapline_shared_format::snapshot::{Snapshot, mostly_mapped};
use heapline_shared_format::text::counted;
use std::collections::BTreeMap;

/// At this number of samples, the greatest of many estimates is some per cent too high. With fewer,
/// the report has a warning.
const FEW_SAMPLES: u64 = 1000;

/// Facts to know before the figures: losses, contradictions, notes.
pub fn concerns(report: &Report<'_>) -> Vec<String> {
    let mut texts = Vec::new();
    if report.has_no_records() {
        let ranges = report.snapshot.domains.iter().any(|row| row.domain.is_of_ranges());
        let what = if ranges { "nothing but mappings (--domain mmap)" } else { "nothing" };
        texts.push(format!(
            "NO RECORDS: {what} was recorded in this process. Usual reasons: the executable brings its own malloc, \
             is static, or the loader ignored the preload (setuid); or the process never allocated"
        ));
    }
    let at_peak = of_domain(report.subject.summed(), report.view.domain, At::Peak);
    if (1..FEW_SAMPLES).contains(&at_peak.samples) {
        texts.push(format!(
            "The peak rests on {}: the greatest of many estimates, it is too high rather than too low",
            counted(at_peak.samples, "sample")
        ));
    }
    texts.extend(mostly_mapped(&report.snapshot.domains, report.view.domain, report.view.at != At::Live));
    let sides = [Some((report.snapshot, "")), report.old.map(|old| (old, "old snapshot: "))];
    for (Snapshot { meta, .. }, side) in sides.into_iter().flatten() {
        let mut say = |text: String| texts.push(format!("{side}{text}"));
        meta.unseen.iter().for_each(|cause| say(format!("NOT SEEN: {}", cause.sentence())));
        if let Some((sum, causes)) = sum(&meta.lost) {
            say(format!("LOST: {} missing ({causes}), so figures are wrong by what they held", counted(sum, "event")));
        }
        if let Some((sum, kinds)) = sum(&meta.contradictions) {
            say(format!("Contradictions: {} resolved by rule ({kinds})", counted(sum, "event")));
        }
        if meta.untracked_frees > 0 {
            say(format!(
                "{} of blocks that were not seen to come: older than the tracing, cleared, or another allocator's",
                counted(meta.untracked_frees, "free")
            ));
        }
        if meta.in_realloc > 0 {
            say(format!(
                "{} of realloc, munmap or mremap had not returned at the end: its memory is counted as before it",
                counted(meta.in_realloc, "call")
            ));
        }
        meta.notes.iter().for_each(|note| say(format!("Note: {note}")));
    }
    texts
}

/// Returns the sum and the counts above 0; none if all are 0.
pub(super) fn sum(counts: &BTreeMap<String, u64>) -> Option<(u64, String)> {
    let parts: Vec<String> =
        counts.iter().filter(|(_, count)| **count > 0).map(|(name, count)| format!("{name} {count}")).collect();
    let sum = counts.values().fold(0_u64, |sum, &count| sum.saturating_add(count));
    (!parts.is_empty()).then(|| (sum, parts.join(", ")))
}

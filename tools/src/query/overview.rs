//! What a report says first, before anything is asked: how much, when, and which lines.
//!
//! | The program | Figure of a line | Figure beside |
//! | --- | --- | --- |
//! | has ended | memory at the peak | what was left at the end, if anything was |
//! | runs, or ran on | memory live at the snapshot | change in the last tenth of the history |
//!
//! The layer is the default one of all reports, or a lower one that holds far more. Layers lie
//! above each other: CPython's objects are in `python`, and the blocks and arenas that back the
//! objects are in `native` and `mmap`. So a lower layer that holds a little more says less, not
//! more.

use crate::input::moment::{At, totals};
use crate::input::past::Past;
use crate::input::time::Time;
use crate::input::tree::Subject;
use crate::query::report::{Report, Request};
use crate::query::threads::NoThreads;
use crate::query::view::View;
use crate::symbols::Symbolizer;
use heapline_shared_format::snapshot::history::{DomainStep, Step};
use heapline_shared_format::snapshot::{Domain, End, History, Snapshot, mostly_mapped};

/// Part of the history in which changes are recent: 1 / `RECENT`.
const RECENT: u64 = 10;

/// Memory below this size, in bytes, makes no layer important.
const MUCH: u64 = 16 << 20;

/// Marks of the history at which the peak begins anew.
const NEW_PEAK: [&str; 2] = ["reset-peak", "clear-traces"];

/// A plan of an overview: everything but the names.
#[derive(Debug)]
pub struct Overview {
    /// Layer of the overview.
    pub domain: Domain,
    /// Whether the program has ended.
    pub is_over: bool,
    /// The layer over time; none without a history.
    pub course: Option<Course>,
    recent: Option<(Past, Past)>,
}

/// Memory of a layer over the whole history. Times are milliseconds since the begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Course {
    /// Begin of the history, in milliseconds since 1970, UTC.
    pub begun: u64,
    /// Local time less UTC at the place of the recording, in seconds.
    pub utc_offset: i32,
    /// End of the history.
    pub end: u64,
    /// Greatest memory within each step.
    pub spans: Vec<Span>,
    /// Begin and end of the step with the peak, where known.
    pub peak: Option<(u64, u64)>,
}

/// A figure in a span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Begin of the span.
    pub begin: u64,
    /// End of the span. A span without a length is an instant.
    pub end: u64,
    /// The greatest figure in the span.
    pub value: u64,
}

/// The reports of an overview.
pub struct Parts<'s> {
    /// Plan of the overview.
    pub overview: &'s Overview,
    /// The lines with their figures.
    pub main: Report<'s>,
    /// The lines with the figures beside; none if there is nothing to tell.
    pub beside: Option<Report<'s>>,
}

impl Overview {
    /// Plans the overview of a process.
    pub fn of(subject: &Subject) -> Overview {
        let snapshot = subject.first();
        let domain = layer(snapshot);
        let is_over = matches!(snapshot.meta.end, End::Exited | End::Killed);
        let history = snapshot.history.as_ref().filter(|history| history.end() > 0);
        let course = history.map(|history| Course::of(history, snapshot, domain));
        let recent = history.filter(|_| !is_over).and_then(|history| {
            let now = Past::last(subject).ok()?;
            let before = Past::of(subject, &Time::BeforeEnd((history.end() / RECENT).max(1))).ok()?;
            before.must_be_before(&now).ok()?;
            Some((now, before))
        });
        Overview { domain, is_over, course, recent }
    }

    /// Makes the reports.
    ///
    /// # Errors
    ///
    /// Fails with [`NoThreads`] if the request is for threads.
    pub fn parts<'s>(
        &'s self,
        request: &Request,
        subject: &'s Subject,
        symbolizer: &mut Symbolizer,
    ) -> Result<Parts<'s>, NoThreads> {
        let request = |at| Request { at, domain: Some(self.domain), ..request.clone() };
        let main = if self.is_over { At::Peak } else { At::Live };
        let main = Report::new(request(main), subject, None, symbolizer)?;
        let beside = match &self.recent {
            Some((now, before)) => {
                Some(Report::new(request(now.moment()), &now.subject, Some(&before.subject), symbolizer)?)
            }
            None if self.is_over && totals(subject.head(), self.domain).current > 0 => {
                Some(Report::new(request(At::Live), subject, None, symbolizer)?)
            }
            None => None,
        };
        Ok(Parts { overview: self, main, beside })
    }

    /// Length of the time with recent changes, in milliseconds; none if they are not known.
    pub fn recent_length(&self) -> Option<u64> {
        let (now, before) = self.recent.as_ref()?;
        Some(now.instant.end.saturating_sub(before.instant.end))
    }

    /// Change of the layer's memory in the recent time.
    pub fn recent_change(&self) -> Option<i128> {
        let current = |past: &Past| i128::from(totals(past.subject.head(), self.domain).current);
        self.recent.as_ref().map(|(now, before)| current(now) - current(before))
    }
}

/// Chooses the layer:
///
/// 1. `mmap` if the program has mapped nearly all of its memory itself;
/// 2. `native` in a CPython process if malloc has given twice as much as Python's objects have: at
///    least half of it is not theirs;
/// 3. the default layer.
fn layer(snapshot: &Snapshot) -> Domain {
    let default = View::default_domain(snapshot);
    let at_peak = matches!(snapshot.meta.end, End::Exited | End::Killed);
    let bytes = |domain| {
        let sums = totals(snapshot, domain);
        if at_peak { sums.peak } else { sums.current }
    };
    // Even a program with an unknown allocator maps memory.
    let is_recorded = totals(snapshot, default).allocs > 0;
    let native = bytes(Domain::Native);
    if is_recorded && mostly_mapped(&snapshot.domains, default, at_peak, "").is_some() {
        Domain::Mmap
    } else if native >= MUCH && native / 2 >= bytes(default) {
        Domain::Native
    } else {
        default
    }
}

impl Course {
    fn of(history: &History, snapshot: &Snapshot, domain: Domain) -> Course {
        let steps = history.steps.iter().enumerate();
        let span = |(index, step): (usize, &Step)| {
            let value = step.domain(domain).map_or(0, |row| row.greatest);
            Span { begin: history.begin_of(index), end: step.end, value }
        };
        let peak = totals(snapshot, domain).peak;
        Course {
            begun: history.begun,
            utc_offset: history.utc_offset,
            end: history.end(),
            spans: steps.map(span).collect(),
            peak: Some(peak).filter(|&peak| peak > 0).and_then(|peak| peak_step(history, domain, peak)),
        }
    }
}

/// Finds the step with the peak. An older step may have had more before a reset of the peak.
pub fn peak_step(history: &History, domain: Domain, peak: u64) -> Option<(u64, u64)> {
    let anew = history.marks.iter().filter(|mark| NEW_PEAK.contains(&mark.kind.as_str()));
    let since = anew.map(|mark| mark.at).max().unwrap_or(0);
    let mut steps = history.steps.iter().enumerate().filter(|(_, step)| step.end >= since);
    let has_peak = |row: &DomainStep| row.greatest == peak;
    let (index, step) = steps.find(|(_, step)| step.domain(domain).is_some_and(has_peak))?;
    Some((history.begin_of(index), step.end))
}

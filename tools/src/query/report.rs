//! A report: a request applied to a subject (a process or a tree of processes), or to two subjects
//! compared.

use crate::frames::{Frames, Tracebacks, resolve};
use crate::glob::Glob;
use crate::input::copies::Part;
use crate::input::moment::{At, Instant};
use crate::input::tree::Subject;
use crate::query::blame::{Blame, Blamer, Starts};
use crate::query::diff::{Change, Nothing, compare_to};
use crate::query::estimate::{Estimate, of_domain, of_nothing};
use crate::query::filter::{Filters, Matcher};
use crate::query::focus::Focus;
use crate::query::fold::{Fold, Passes};
use crate::query::growth::{Growth, growing};
use crate::query::statistics::{By, Key, Statistic, Trace, group, sorted};
use crate::query::suppress::Suppressions;
use crate::query::template::Search;
use crate::query::threads::{self, NoThreads};
use crate::query::view::View;
use crate::symbols::Symbolizer;
use heapline_shared_format::snapshot::{Domain, History, Snapshot};
use std::collections::HashMap;

/// Contents of a report. The output format is not part of a request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Grouping of the blocks.
    pub by: By,
    /// Moment of the view.
    pub at: At,
    /// Layer of the view; [`View::default_domain`] if none.
    pub domain: Option<Domain>,
    /// Whether a block counts for every frame of its traceback.
    pub cumulative: bool,
    /// Filters of tracebacks.
    pub filters: Filters,
    /// Choice of stacks.
    pub focus: Focus,
    /// Stacks that a report on leaks leaves out.
    pub suppressions: Suppressions,
    /// Rule for the frame to group blocks under; [`Blame::default_of`] the layer if none.
    pub blame: Option<Blame>,
    /// Functions and files to treat as nobody's own code.
    pub skip: Vec<Glob>,
    /// Kinds of frames, for a process with Python code.
    pub frames: Frames,
    /// Whether frames of allocators are kept.
    pub raw_frames: bool,
    /// Whether a tree begins with the blamed frames, and leads to their callers.
    pub inverted: bool,
    /// Whether a tree shows each cycle of a recursion once.
    pub fold: bool,
    /// Whether tracebacks for people, and trees, keep the code that starts a program or a thread.
    pub start_code: bool,
    /// Number of rows to show; 0 for all.
    pub limit: usize,
}

/// A request without any choice: live blocks by line.
impl Default for Request {
    fn default() -> Request {
        Request {
            by: By::Lineno,
            at: At::Live,
            domain: None,
            cumulative: false,
            filters: Filters::default(),
            focus: Focus::default(),
            suppressions: Suppressions::default(),
            blame: None,
            skip: Vec::new(),
            frames: Frames::Mixed,
            raw_frames: false,
            inverted: false,
            fold: false,
            start_code: false,
            limit: Request::LIMIT,
        }
    }
}

impl Request {
    /// Rows of a report that does not say how many.
    pub const LIMIT: usize = 10;

    /// Returns the search for blamed frames in a view; none if the most recent frames are blamed.
    fn blamer(&self, view: View) -> Option<Blamer<'_>> {
        let blame = self.blame.unwrap_or(Blame::default_of(view.domain));
        (blame == Blame::Own).then(|| Blamer::new(&self.skip))
    }
}

/// Sum of all groups. Each block counts once, even in a cumulative report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Total {
    /// Number of groups.
    pub groups: usize,
    /// Bytes.
    pub size: u64,
    /// Blocks.
    pub count: u64,
    /// Precision of `size` and `count`.
    pub estimate: Estimate,
}

/// Rows that a pattern has left out of a report on leaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppressed {
    /// The pattern.
    pub pattern: String,
    /// Number of rows that would grow.
    pub groups: usize,
    /// Bytes of these rows.
    pub size: u64,
    /// Blocks of these rows.
    pub count: u64,
}

/// A row of the report.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The group.
    pub stat: Statistic,
    /// Change since the old snapshot, in a diff.
    pub change: Option<Change>,
}

/// A report, ready to be shown.
pub struct Report<'s> {
    /// Request behind the report.
    pub request: Request,
    /// Process or processes of the report.
    pub subject: &'s Subject,
    /// Figures of the (new) process, or the sums of a tree.
    pub snapshot: &'s Snapshot,
    /// Snapshot of the old subject, in a diff.
    pub old: Option<&'s Snapshot>,
    old_is_sampled: bool,
    /// Stacks of each group, in a view of the past of a single process.
    stacks: HashMap<Key, Vec<u32>>,
    /// For each pattern: the groups of the suppressed blocks.
    suppressed_groups: Vec<HashMap<Key, (Statistic, Vec<u32>)>>,
    /// What was suppressed, in a report on leaks.
    pub suppressed: Vec<Suppressed>,
    /// Growth of the rows, in a report on leaks ([`Report::keep_growing`]).
    pub growth: Option<HashMap<Key, Growth>>,
    /// Instant of the old subject, if it is the subject of the report at an earlier time.
    pub since: Option<Instant>,
    /// View of the report.
    pub view: View,
    /// All rows, in order. [`Report::shown`] returns the rows within the limit.
    pub rows: Vec<Row>,
    /// Sums of the (new) subject.
    pub total: Total,
    /// Sums of the old subject, in a diff.
    pub old_total: Option<Total>,
    /// Whether the filters dropped all blocks.
    pub nothing_matched: bool,
    /// Names in the rows.
    pub tracebacks: Tracebacks,
    /// Passes through recursive frames, in a folded tree.
    pub passes: Passes,
    /// Problems with modules, a sentence for each.
    pub warnings: Vec<String>,
}

impl<'s> Report<'s> {
    /// Makes the report.
    ///
    /// # Errors
    ///
    /// Fails if the request is for threads, and the snapshot does not have them.
    pub fn new(
        request: Request,
        subject: &'s Subject,
        old: Option<&'s Subject>,
        symbolizer: &mut Symbolizer,
    ) -> Result<Report<'s>, NoThreads> {
        let domain = request.domain.unwrap_or_else(|| View::default_domain(subject.first()));
        let view = View { domain, at: request.at };
        let mut tracebacks = Tracebacks::default();
        let mut fold = Fold::default();
        let mut side = |subject| Side::new(subject, view, &request, symbolizer, &mut tracebacks, &mut fold);
        let (new, before) = (side(subject)?, old.map(&mut side).transpose()?);
        let is_past = matches!(view.at, At::Instant(_)) && !subject.is_tree();
        let stacks = if is_past { stacks_of(&new.traces, &request, &tracebacks) } else { HashMap::new() };
        let of_pattern = |traces: &Vec<Trace>| {
            let mut stacks = stacks_of(traces, &request, &tracebacks);
            let groups = group(&tracebacks, traces.iter().copied(), request.by, request.cumulative);
            let with_stacks =
                groups.into_iter().map(|(key, group)| (key, (group, stacks.remove(&key).unwrap_or_default())));
            with_stacks.collect()
        };
        let suppressed_groups = new.suppressed.iter().map(of_pattern).collect();
        let old_total = before.as_ref().map(|before| before.total(0));
        let rows: Vec<Row> = match &before {
            None => {
                let rows = sorted(&tracebacks, new.groups(&request, &tracebacks));
                rows.into_iter().map(|stat| Row { stat, change: None }).collect()
            }
            Some(before) => {
                let old_nothing = before.nothing;
                let before = before.groups(&request, &tracebacks);
                let nothing = Nothing { new: new.nothing, old: old_nothing };
                let rows = compare_to(&tracebacks, new.groups(&request, &tracebacks), before, &nothing);
                rows.into_iter().map(|(stat, change)| Row { stat, change: Some(change) }).collect()
            }
        };
        let nothing_matched = rows.is_empty() && (new.dropped || before.is_some_and(|side| side.dropped));
        let total = new.total(rows.len());
        let warnings = symbolizer.take_warnings();
        let old_is_sampled = old.is_some_and(Subject::is_sampled);
        let (snapshot, old) = (subject.head(), old.map(Subject::head));
        Ok(Report {
            request,
            subject,
            snapshot,
            old,
            old_is_sampled,
            since: None,
            stacks,
            suppressed_groups,
            suppressed: Vec::new(),
            growth: None,
            view,
            rows,
            total,
            old_total,
            nothing_matched,
            tracebacks,
            passes: fold.passes,
            warnings,
        })
    }

    /// Keeps the rows that grow, the fastest first: a report on leaks. The report is of the last
    /// instant of `history`.
    pub fn keep_growing(&mut self, history: &History) {
        let growth = growing(history, self.view.domain, &self.stacks);
        let speed = |row: &Row| growth.get(&row.stat.key).map_or(0.0, |growth| growth.per_hour);
        self.rows.retain(|row| growth.contains_key(&row.stat.key));
        self.rows.sort_by(|one, other| speed(other).total_cmp(&speed(one)));
        for (template, groups) in self.request.suppressions.0.iter().zip(&self.suppressed_groups) {
            let stacks = groups.iter().map(|(&key, (_, stacks))| (key, stacks.clone())).collect();
            let grown = growing(history, self.view.domain, &stacks);
            let rows: Vec<&Statistic> = grown.keys().map(|key| &groups[key].0).collect();
            if !rows.is_empty() {
                let sum =
                    |of: &dyn Fn(&Statistic) -> u64| rows.iter().fold(0, |sum: u64, row| sum.saturating_add(of(row)));
                let (size, count) = (sum(&|row| row.size), sum(&|row| row.count));
                self.suppressed.push(Suppressed { pattern: template.to_string(), groups: rows.len(), size, count });
            }
        }
        self.growth = Some(growth);
    }

    /// Growth of a row, in a report on leaks.
    pub fn growth_of(&self, row: &Row) -> Option<&Growth> {
        self.growth.as_ref()?.get(&row.stat.key)
    }

    /// Growth of all memory in view since the old snapshot, in a diff: each block once.
    pub fn growth_in_view(&self) -> Option<i128> {
        self.old_total.map(|old| i128::from(self.total.size) - i128::from(old.size))
    }

    /// The rows within the limit.
    pub fn shown(&self) -> &[Row] {
        self.rows.split_at(self.shown_count()).0
    }

    /// Returns the search for blamed frames; none if the most recent frames are blamed.
    pub fn blamer(&self) -> Option<Blamer<'_>> {
        self.request.blamer(self.view)
    }

    /// The rows beyond the limit.
    pub fn others(&self) -> &[Row] {
        self.rows.split_at(self.shown_count()).1
    }

    fn shown_count(&self) -> usize {
        match self.request.limit {
            0 => self.rows.len(),
            limit => limit.min(self.rows.len()),
        }
    }

    /// Whether some figures are estimates.
    pub fn is_sampled(&self) -> bool {
        self.subject.is_sampled() || self.old_is_sampled
    }

    /// Whether nothing at all was recorded: neither in a domain of blocks nor in the domain of the
    /// view. Other domains of ranges do not count: even a program with an unknown allocator maps
    /// memory.
    pub fn has_no_records(&self) -> bool {
        if matches!(self.view.at, At::Instant(_)) {
            // There may be nothing yet, or no longer.
            return false;
        }
        let counts = |domain: Domain| !domain.is_of_ranges() || domain == self.view.domain;
        let mut domains = self.snapshot.domains.iter().filter(|row| counts(row.domain));
        let is_empty = |part: &Snapshot| !part.live.iter().any(|row| counts(row.domain));
        domains.all(|row| row.allocs == 0) && self.subject.parts().iter().all(is_empty)
    }
}

/// Blocks of a subject selected by the request.
struct Side {
    traces: Vec<Trace>,
    /// For each suppression: the blocks that it leaves out.
    suppressed: Vec<Vec<Trace>>,
    /// Whether the filters dropped any blocks.
    dropped: bool,
    /// Precision of the sum of all blocks, and precision of a group without blocks (`nothing`).
    whole: Estimate,
    nothing: Estimate,
}

impl Side {
    fn new(
        subject: &Subject,
        view: View,
        request: &Request,
        symbolizer: &mut Symbolizer,
        tracebacks: &mut Tracebacks,
        fold: &mut Fold,
    ) -> Result<Side, NoThreads> {
        let mut traces = Vec::new();
        for part @ Part { snapshot, .. } in subject.summed() {
            if request.by == By::Thread && view.at != At::Live {
                traces.extend(threads::traces(view, snapshot, tracebacks)?);
                continue;
            }
            let wanted = view.stacks(snapshot);
            let resolved = resolve(snapshot, &wanted, request.frames, request.raw_frames, symbolizer, tracebacks);
            traces.extend(view.traces(part, &resolved, tracebacks));
        }
        let all = traces.len();
        request.focus.apply(tracebacks, &mut traces);
        if let Some(mut blamer) = request.blamer(view) {
            traces.iter_mut().for_each(|trace| trace.blamed = blamer.blamed(tracebacks, trace.traceback));
        }
        if !request.filters.is_empty() {
            let mut matcher = Matcher::new(&request.filters);
            traces.retain(|trace| matcher.keeps(tracebacks, trace));
        }
        if request.by == By::Tree && !request.start_code {
            let mut starts = Starts::default();
            traces.iter_mut().for_each(|trace| trace.traceback = starts.without(tracebacks, trace.traceback));
        }
        if request.by == By::Tree && request.fold {
            traces.iter_mut().for_each(|trace| trace.traceback = fold.folded(tracebacks, trace.traceback));
        }
        let dropped = traces.len() < all;
        let mut suppressed = vec![Vec::new(); request.suppressions.0.len()];
        let mut search = Search::new(&request.suppressions.0);
        traces.retain(|trace| {
            let pattern = search.in_traceback(tracebacks, trace.traceback);
            pattern.into_iter().for_each(|pattern| suppressed[pattern].push(*trace));
            pattern.is_none()
        });
        let whole = of_domain(subject.summed(), view.domain, view.at);
        let nothing = of_nothing(subject.summed(), view.domain, view.at);
        Ok(Side { traces, suppressed, dropped, whole, nothing })
    }

    fn groups(&self, request: &Request, tracebacks: &Tracebacks) -> HashMap<Key, Statistic> {
        group(tracebacks, self.traces.iter().copied(), request.by, request.cumulative)
    }

    fn total(&self, groups: usize) -> Total {
        let mut total = Total { groups, ..Total::default() };
        for trace in self.traces.iter().chain(self.suppressed.iter().flatten()) {
            total.size = total.size.saturating_add(trace.size);
            total.count = total.count.saturating_add(trace.count);
            total.estimate.add(&trace.estimate);
        }
        if !self.dropped {
            total.estimate = self.whole;
        } else if total.count == 0 {
            total.estimate = self.nothing;
        }
        total.count = total.estimate.count(total.count);
        total
    }
}

/// The stacks of each group, with each stack in a single group.
fn stacks_of(traces: &[Trace], request: &Request, tracebacks: &Tracebacks) -> HashMap<Key, Vec<u32>> {
    let mut stacks: HashMap<Key, Vec<u32>> = HashMap::new();
    for trace in traces {
        let frame = tracebacks.frames(trace.blamed).next();
        let key = frame.and_then(|frame| request.by.key(tracebacks, trace, frame));
        if let (Some(key), Some(stack)) = (key, trace.stack) {
            stacks.entry(key).or_default().push(stack);
        }
    }
    stacks
}

//! Export as a page: a single HTML file for a browser, without server and network.
//!
//! ```text
//! page.html, built from tools/page   the program of the page
//!   #head                            JSON: sentences, processes, threads, marks
//!   #data                            base64 of compressed columns (column)
//!     nodes, frames, texts           the tree of all tracebacks (calls)
//!     rows, live blocks, weights     the memory of each traceback (rows)
//!     steps, sums, changes           memory over time (past)
//! ```
//!
//! The page has all domains, all moments and the whole history: nothing is cut. Whatever the page
//! shows is computed in the browser. Names come from the target: control characters are escaped,
//! no `<` is left in the JSON, base64 has no character of HTML, and the page never makes HTML of a
//! name.

mod calls;
mod column;
mod past;
mod rows;

use crate::frames::{Frame, Left, Part, TracebackId, Tracebacks, resolve};
use crate::input::copies;
use crate::input::moment::{At, Instant};
use crate::input::past::SMALLER_ONES;
use crate::input::tree::Subject;
use crate::query::blame::{Blame, Blamer};
use crate::query::estimate::{Estimate, of_domain, sampled};
use crate::query::filter::Matcher;
use crate::query::report::Report;
use crate::query::statistics::Trace;
use crate::query::view::thread_rows;
use crate::render::Sources;
use crate::render::text::{concerns, subject};
use crate::symbols::Symbolizer;
use column::Columns;
use heapline_shared_format::event::python_frame;
use heapline_shared_format::snapshot::{Domain, Sampled, Snapshot};
use heapline_shared_format::text::printable;
use past::{Past, Told};
use rows::{RowOfStack, Rows};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

/// Place holders in the page.
const HEAD: &str = "/*head*/";
const DATA: &str = "/*data*/";
/// The page without data: `npm run build` in `tools/page` makes the file.
const PAGE: &str = include_str!("page.html");

/// A page to be written.
pub struct Page<'p, 's> {
    /// The report with the sentences of the head.
    pub report: &'p Report<'s>,
    /// The old subject, in a diff.
    pub old: Option<&'p Subject>,
    /// The instant that the page shows first.
    pub at: Option<Instant>,
    /// The begin of the range that the page shows first.
    pub since: Option<Instant>,
}

/// What the page is told besides the columns.
#[derive(Serialize)]
struct Head {
    title: String,
    heapline: &'static str,
    /// Sentences on the subject.
    lines: Vec<String>,
    /// Sentences to be read before the figures.
    concerns: Vec<String>,
    /// Whether some figures are estimates.
    sampled: bool,
    /// Whether filters of the report dropped blocks.
    filtered: bool,
    domains: Vec<DomainHead>,
    /// Whether recursions are folded first.
    fold: bool,
    /// Index of the domain to show first.
    domain: u64,
    /// Moment to show first.
    at: &'static str,
    /// Instants to show first: milliseconds since 1970.
    instant: Option<u64>,
    since: Option<u64>,
    processes: Vec<Process>,
    threads: Vec<Thread>,
    sums: Vec<Sum>,
    thread_sums: Vec<ThreadSum>,
    histories: Vec<Told>,
}

#[derive(Serialize)]
struct DomainHead {
    name: String,
    noun: &'static str,
    sampled: bool,
}

#[derive(Serialize)]
struct Process {
    pid: u32,
    command: String,
    /// Generations below the first process.
    depth: usize,
    /// Whether the process is of the old subject.
    old: bool,
    sample_interval: u64,
}

#[derive(Serialize)]
struct Thread {
    process: usize,
    /// Name of the row: threads that ended may share a row.
    name: String,
}

/// Estimates of a domain as a whole.
#[derive(Serialize)]
struct Sum {
    old: bool,
    domain: u64,
    at: &'static str,
    text: String,
    size_interval: Option<[u64; 2]>,
    count_interval: Option<[u64; 2]>,
}

/// Sums of a thread, without tracebacks.
#[derive(Serialize)]
struct ThreadSum {
    thread: usize,
    domain: u64,
    peak: [u64; 2],
    total: [u64; 2],
}

impl Page<'_, '_> {
    /// Writes the page.
    ///
    /// # Errors
    ///
    /// Passes on errors of `out`.
    pub fn write(
        &self,
        mut sources: Option<Sources>,
        symbolizer: &mut Symbolizer,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let request = &self.report.request;
        let mut tracebacks = Tracebacks::default();
        let mut rows = Rows::default();
        let mut pasts = Vec::new();
        let (mut processes, mut threads, mut thread_parts) = (Vec::new(), Vec::new(), Vec::new());
        let sides = [(Some(self.report.subject), false), (self.old, true)];
        let sides = || sides.into_iter().filter_map(|(subject, is_old)| Some((subject?, is_old)));
        let mut matcher = Matcher::new(&request.filters);
        let mut blamer = Blamer::new(&request.skip);
        for (subject, is_old) in sides() {
            let depths: Vec<usize> = subject.processes().map(|process| process.depth).collect();
            for (index, part) in subject.summed().enumerate() {
                let snapshot = part.snapshot;
                let process = u32::try_from(processes.len()).map_err(io::Error::other)?;
                let wanted = wanted(snapshot);
                let mut used = vec![false; snapshot.stacks.len()];
                wanted.iter().filter_map(|&(_, stack)| stack).for_each(|stack| used[stack as usize] = true);
                let resolved =
                    resolve(snapshot, &used, request.frames, request.raw_frames, symbolizer, &mut tracebacks);
                let of_stacks =
                    self.rows(snapshot, process, &resolved, (&mut rows, &mut tracebacks), &mut matcher, &mut blamer);
                let first_thread = u32::try_from(threads.len()).map_err(io::Error::other)?;
                rows.add(part, &of_stacks, first_thread);
                thread_parts.push((threads.len(), snapshot));
                let name = |name: String| Thread { process: processes.len(), name: shown(&name) };
                threads.extend(thread_rows(&snapshot.threads).into_iter().map(name));
                if let Some(history) = snapshot.history.as_ref().filter(|history| !history.steps.is_empty()) {
                    pasts.push(Past { process: processes.len(), history, rows: of_stacks });
                }
                processes.push(Process {
                    pid: snapshot.meta.pid,
                    command: shown(&snapshot.meta.command),
                    depth: depths.get(index).copied().unwrap_or(0),
                    old: is_old,
                    sample_interval: snapshot.meta.sample_interval,
                });
            }
        }
        let domains = self.domains(&rows);
        let domain_number = |domain| domains.iter().position(|&known| known == domain).unwrap_or(0) as u64;
        let mut columns = Columns::default();
        let nodes = calls::write(&mut columns, &tracebacks, &rows.used(), &request.skip, sources.as_mut());
        let places = rows.write(&mut columns, &tracebacks, &nodes, &domain_number);
        let histories = past::write(&mut columns, &pasts, &places, &domain_number);
        let meta = &self.report.snapshot.meta;
        let filtered = !(request.filters.is_empty() && request.focus.is_empty());
        let head = Head {
            title: format!("{} ({})", printable(&meta.command), meta.pid),
            heapline: env!("CARGO_PKG_VERSION"),
            lines: self.lines(),
            concerns: concerns(self.report).iter().map(|text| shown(text)).collect(),
            sampled: self.report.is_sampled(),
            filtered,
            domains: domains
                .iter()
                .map(|domain| DomainHead {
                    name: shown(&domain.to_string()),
                    noun: domain.noun(),
                    sampled: domain.is_sampled(),
                })
                .collect(),
            fold: request.fold,
            domain: domain_number(self.report.view.domain),
            at: request.at.name(),
            instant: self.at.map(|instant| instant.end),
            since: self.since.map(|instant| instant.end),
            processes,
            threads,
            sums: sides().flat_map(|(subject, is_old)| sums(subject, is_old, &domains, filtered)).collect(),
            thread_sums: thread_sums(&thread_parts, &domain_number),
            histories,
        };
        let head = serde_json::to_string(&head)?;
        // Names come from the target, so characters that could end the script are escaped.
        let head = head.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
        let (before, rest) = PAGE.split_once(HEAD).expect("the page has a place for the head");
        let (between, after) = rest.split_once(DATA).expect("the page has a place for the data");
        out.write_all(before.as_bytes())?;
        out.write_all(head.as_bytes())?;
        out.write_all(between.as_bytes())?;
        columns.write(out)?;
        out.write_all(after.as_bytes())
    }

    /// Makes the rows of a process, of the stacks that the request chooses.
    fn rows(
        &self,
        snapshot: &Snapshot,
        process: u32,
        resolved: &[Option<TracebackId>],
        (rows, tracebacks): (&mut Rows, &mut Tracebacks),
        matcher: &mut Matcher<'_>,
        blamer: &mut Blamer<'_>,
    ) -> RowOfStack {
        let request = &self.report.request;
        let interval = snapshot.meta.sample_interval;
        let smaller = smaller_ones(tracebacks, snapshot);
        let mut of_stacks = RowOfStack::new();
        let wanted = wanted(snapshot);
        for stacks in wanted.chunk_by(|one, other| one.0 == other.0) {
            let domain = stacks[0].0;
            let traceback = |stack: Option<u32>| match stack {
                None => smaller,
                Some(stack) => resolved[stack as usize],
            };
            let mut traces: Vec<Trace> =
                stacks.iter().filter_map(|&(_, stack)| Some(trace(traceback(stack)?, stack))).collect();
            request.focus.apply(tracebacks, &mut traces);
            let is_own = request.blame.unwrap_or(Blame::default_of(domain)) == Blame::Own;
            for mut trace in traces {
                if is_own {
                    trace.blamed = blamer.blamed(tracebacks, trace.traceback);
                }
                if !matcher.keeps(tracebacks, &trace) {
                    continue;
                }
                let of_samples = match trace.stack {
                    Some(stack) => sampled(snapshot, stack),
                    // Samples of many stacks: the page estimates a size for all of them.
                    None => (domain.is_sampled() && interval != 0).then_some(Sampled { stack: 0, interval, size: 0 }),
                };
                let row = rows.row((process, domain), (trace.traceback, trace.blamed), of_samples);
                of_stacks.insert((domain, trace.stack), row);
            }
        }
        of_stacks
    }

    /// Domains with figures, those of the report's head first.
    fn domains(&self, rows: &Rows) -> Vec<Domain> {
        let of_subject = self.report.snapshot.domains.iter().map(|row| row.domain);
        let histories = self.report.subject.parts().iter().filter_map(|part| part.history.as_ref());
        let of_history = histories.flat_map(|history| &history.steps).flat_map(|step| &step.domains);
        let others =
            rows.domains().into_iter().chain(of_history.map(|row| row.domain)).chain([self.report.view.domain]);
        let mut seen = HashSet::new();
        of_subject.chain(others).filter(|&domain| seen.insert(domain)).collect()
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = subject(self.report).to_vec();
        if let Some(old) = self.report.old.map(|old| &old.meta) {
            lines.push(format!("Compared with process {} at {}", old.pid, printable(&old.taken_at)));
        }
        lines
    }
}

/// Makes a text printable, for the page.
fn shown(text: &str) -> String {
    printable(text).into_owned()
}

/// A traceback without figures, for the choices of the request.
fn trace(traceback: TracebackId, stack: Option<u32>) -> Trace {
    let (size, count, estimate, blamed) = (0, 0, Estimate::default(), traceback);
    let (total_nframe, truncated, block, threads) = (0, false, None, None);
    Trace { traceback, blamed, size, count, estimate, total_nframe, truncated, block, threads, stack }
}

/// Domains and stacks with blocks, now or in the history, in order. No stack stands for all stacks
/// without rows of their own.
fn wanted(snapshot: &Snapshot) -> Vec<(Domain, Option<u32>)> {
    let live = snapshot.live.iter().map(|row| (row.domain, Some(row.stack)));
    let totals = snapshot.totals.iter().map(|row| (row.domain, Some(row.stack)));
    let mut wanted: HashSet<(Domain, Option<u32>)> = live.chain(totals).collect();
    let steps = snapshot.history.iter().flat_map(|history| &history.steps);
    wanted.extend(steps.flat_map(|step| step.changes.iter()).map(|row| row.key()));
    let mut wanted: Vec<_> = wanted.into_iter().collect();
    wanted.sort_unstable();
    wanted
}

/// Makes the traceback of all stacks without rows of their own; none without a history.
fn smaller_ones(tracebacks: &mut Tracebacks, snapshot: &Snapshot) -> Option<TracebackId> {
    let apart = snapshot.history.as_ref()?.apart;
    let function = tracebacks.string(&format!("each below 1/{apart} of the whole"));
    let filename = tracebacks.string(SMALLER_ONES);
    let (lineno, address, part, left) = (0, python_frame(0, 0), Part::Asks, Left::Tables);
    Some(tracebacks.push(None, Frame { filename, lineno, function, module: filename, address, part, left }))
}

/// Figures and intervals of the domains as a whole. Filters leave parts of the domains, so the page
/// adds up the intervals of the parts.
fn sums(subject: &Subject, is_old: bool, domains: &[Domain], filtered: bool) -> Vec<Sum> {
    use heapline_shared_format::text::{counted, size};
    let mut sums = Vec::new();
    for (number, &domain) in (0..).zip(domains) {
        for at in [At::Live, At::Peak, At::Total] {
            let (bytes, blocks) = totals(subject, domain, at);
            let estimate = of_domain(subject.summed(), domain, at);
            let intervals = (!filtered).then(|| (estimate.size_interval(bytes), estimate.count_interval()));
            let (size_interval, count_interval) = intervals.unwrap_or_default();
            let blocks = counted(estimate.count(blocks), domain.noun());
            let text = match size_interval {
                None => format!("{domain}, {}: {} in {blocks}", at.name(), size(bytes)),
                Some((low, high)) => {
                    let (low, high) = (size(low), size(high));
                    format!("{domain}, {}: ~{} ({low} to {high}, 95 %) in ~{blocks}", at.name(), size(bytes))
                }
            };
            let pair = |interval: Option<(u64, u64)>| interval.map(<[u64; 2]>::from);
            let (size_interval, count_interval) = (pair(size_interval), pair(count_interval));
            let text = shown(&text);
            sums.push(Sum { old: is_old, domain: number, at: at.name(), text, size_interval, count_interval });
        }
    }
    sums
}

/// Bytes, and blocks or samples, of a domain.
fn totals(subject: &Subject, domain: Domain, at: At) -> (u64, u64) {
    let mut sum = (0_u64, 0_u64);
    let mut add = |size: u64, count: u64| sum = (sum.0.saturating_add(size), sum.1.saturating_add(count));
    for copies::Part { snapshot, .. } in subject.summed() {
        match at {
            At::Live => {
                let live = snapshot.live.iter().filter(|row| row.domain == domain);
                live.for_each(|row| add(row.size.saturating_mul(row.count), row.count));
            }
            At::Peak | At::Instant(_) => {
                let rows = snapshot.totals.iter().filter(|row| row.domain == domain);
                rows.for_each(|row| add(row.peak_size, row.peak_count));
            }
            At::Total => {
                let rows = snapshot.totals.iter().filter(|row| row.domain == domain);
                rows.for_each(|row| add(row.total_size, row.total_count));
            }
        }
    }
    sum
}

/// Sums of the threads, those of one row and domain together.
fn thread_sums(parts: &[(usize, &Snapshot)], domain_number: &dyn Fn(Domain) -> u64) -> Vec<ThreadSum> {
    let mut sums: HashMap<(usize, Domain), ThreadSum> = HashMap::new();
    for &(first, snapshot) in parts {
        for row in &snapshot.thread_totals {
            let thread = first + row.thread as usize;
            let sum = sums.entry((thread, row.domain)).or_insert(ThreadSum {
                thread,
                domain: domain_number(row.domain),
                peak: [0; 2],
                total: [0; 2],
            });
            sum.peak = [sum.peak[0].saturating_add(row.peak_size), sum.peak[1].saturating_add(row.peak_count)];
            sum.total = [sum.total[0].saturating_add(row.total_size), sum.total[1].saturating_add(row.total_count)];
        }
    }
    let mut sums: Vec<ThreadSum> = sums.into_values().collect();
    sums.sort_by_key(|sum| (sum.thread, sum.domain));
    sums
}

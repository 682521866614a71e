//! The head: the process, the snapshot, the figures of the layer in view.

use super::concerns::{self, sum};
use super::fit;
use super::layout::{Layout, Role};
use super::processes::processes;
use super::words::{about, end, estimated_count, estimated_size};
use crate::input::moment::At;
use crate::query::estimate::of_domain;
use crate::query::report::Report;
use heapline_shared_format::snapshot::{Begun, Domain, DomainTotals, Meta, began_with, brief_unseen};
use heapline_shared_format::text::{counted, printable, size};
use std::io::{self, Write};

/// Most layers in the first line.
const MOST_LAYERS: usize = 4;

/// Describes the process and the snapshot, a line for each.
pub fn subject(report: &Report<'_>) -> [String; 2] {
    let command = printable(&report.snapshot.meta.command).into_owned();
    [first(report), second(report, &command)]
}

/// Writes the head. A terminal shows the beginning of a long command.
pub(super) fn head(report: &Report<'_>, layout: Layout, out: &mut dyn Write) -> io::Result<()> {
    let meta = &report.snapshot.meta;
    let (first, second) = lines(report, layout);
    layout.say(role(report), &first, out)?;
    layout.say(Role::Plain, &second, out)?;
    if let At::Instant(instant) = report.view.at {
        layout.say(Role::Plain, &format!("As of {}", instant.described()), out)?;
    }
    if let Some(since) = report.since {
        layout.say(Role::Plain, &format!("Compared with {}", since.described()), out)?;
    } else if let Some(old) = report.old.map(|old| &old.meta) {
        let what = if report.subject.is_tree() { "the tree of process" } else { "process" };
        layout.say(Role::Plain, &format!("Compared with {what} {} at {}", old.pid, old.taken_at), out)?;
    }
    if report.subject.is_tree() {
        processes(report, layout, out)?;
    }
    let is_shown = |row: &&DomainTotals| layout.is_verbose || row.domain == report.view.domain;
    for row in report.snapshot.domains.iter().filter(is_shown) {
        layout.say(Role::Plain, &domain(report, row), out)?;
    }
    let origin = report.snapshot.origin.as_ref();
    if let Some((parent, blocks)) = origin.and_then(|origin| Some((origin.parent, origin.inherited.as_ref()?))) {
        layout.say(Role::Plain, &format!("The process {}", began_with(blocks, parent)), out)?;
    }
    if layout.is_verbose {
        let frames = counted(meta.nframe.into(), "frame");
        let (inside, outside) = (size(meta.target_bytes), size(meta.aggregator_bytes));
        let text =
            format!("Up to {frames} a traceback; Heapline's own memory: {inside} in the target, {outside} outside");
        layout.say(Role::Plain, &text, out)?;
    }
    concerns::write(report, layout, out)
}

/// The first two lines, with the beginning of a long command on a terminal.
pub(super) fn lines(report: &Report<'_>, layout: Layout) -> (String, String) {
    (first(report), second(report, &command(report, layout)))
}

/// Role of the first line: loud if the figures are not what they seem to be.
pub(super) fn role(report: &Report<'_>) -> Role {
    let meta = &report.snapshot.meta;
    let is_loud = is_inexact(meta) || report.has_no_records() || !meta.unseen.is_empty();
    if is_loud { Role::Loud } else { Role::Plain }
}

/// The first line: how exact the figures are, and in which layers the memory was.
fn first(report: &Report<'_>) -> String {
    let who = match report.subject.processes().count() {
        0 => format!("Process {}", report.snapshot.meta.pid),
        count => format!("Tree of {}", counted(count as u64, "process")),
    };
    let peaks = peaks(report);
    let separator = if peaks.is_empty() { "" } else { "; " };
    format!("{who}: {}{separator}{peaks}", mode(report))
}

/// Lists the peaks of the layers, the greatest first. Layers are never summed. Reserved address
/// space is no memory, and is named only if in view.
fn peaks(report: &Report<'_>) -> String {
    let is_memory = |row: &&DomainTotals| row.domain != Domain::Reserved || row.domain == report.view.domain;
    let mut rows: Vec<_> = report.snapshot.domains.iter().filter(is_memory).filter(|row| row.peak > 0).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.peak));
    let word = match rows.len() {
        0 => return String::new(),
        _ if report.subject.is_tree() => "peaks together",
        1 => "peak",
        _ => "peaks",
    };
    let layer = |row: &&DomainTotals| {
        let is_estimate = of_domain(report.subject.summed(), row.domain, At::Peak).is_estimate();
        format!("{} {}{}", row.domain, about(is_estimate), size(row.peak))
    };
    let layers: Vec<String> = rows.iter().take(MOST_LAYERS).map(layer).collect();
    format!("{word}: {}", layers.join(", "))
}

/// The second line: command, end and time.
fn second(report: &Report<'_>, command: &str) -> String {
    let meta = &report.snapshot.meta;
    let taken_at = printable(&meta.taken_at);
    match report.subject.is_tree() {
        true => format!("{command} and its children; snapshot of {taken_at}"),
        false => format!("{command}, {}; snapshot of {taken_at}", end(meta)),
    }
}

/// The command, shortened if its line would be too wide for a terminal.
fn command(report: &Report<'_>, layout: Layout) -> String {
    /// Least width of a command.
    const LEAST: usize = 20;
    let command = printable(&report.snapshot.meta.command).into_owned();
    match layout.width.filter(|_| !layout.is_verbose) {
        None => command,
        Some(width) => {
            let rest = fit::columns(&second(report, ""));
            fit::command(&command, width.saturating_sub(rest).max(LEAST.min(width))).into_owned()
        }
    }
}

fn is_inexact(meta: &Meta) -> bool {
    sum(&meta.lost).is_some() || sum(&meta.contradictions).is_some()
}

/// Formats how much of the memory was recorded, and how.
fn mode(report: &Report<'_>) -> String {
    let meta = &report.snapshot.meta;
    let unseen = brief_unseen(&meta.unseen);
    let since = if meta.begun == Begun::Attach { format!(" {}", meta.begun.since()) } else { String::new() };
    let not_seen = |words: &str| unseen.as_ref().map_or(String::new(), |causes| format!("{words}{causes}"));
    match meta.sample_interval {
        _ if report.has_no_records() => format!("NO RECORDS (see below){}", not_seen(", not seen: ")),
        0 if is_inexact(meta) => format!("NOT EXACT (see below){}", not_seen(", and not seen: ")),
        0 => format!("exact{since}{}", not_seen(", but for what is not seen: ")),
        interval => {
            let warning = if is_inexact(meta) { ", NOT EXACT (see below)" } else { "" };
            format!(
                "sampled{since}, one in {}: ~ marks an estimate, with its 95 % interval{warning}{}",
                size(interval),
                not_seen("; not seen: ")
            )
        }
    }
}

/// Formats the sums of a layer.
fn domain(report: &Report<'_>, row: &DomainTotals) -> String {
    let of = |at| of_domain(report.subject.summed(), row.domain, at);
    let (live, at_peak) = (of(At::Live), of(At::Peak));
    let peak = if report.subject.is_tree() { "peaks together" } else { "peak" };
    format!(
        "{}: current {} in {}, {peak} {}; {} allocated ({}), {} freed {}",
        row.domain,
        estimated_size(row.current, live.size_interval(row.current)),
        estimated_count(row.blocks, row.domain.noun(), live.count_interval()),
        estimated_size(row.peak, at_peak.size_interval(row.peak)),
        row.allocs,
        size(row.allocated_bytes),
        row.frees,
        report.snapshot.meta.begun.since(),
    )
}

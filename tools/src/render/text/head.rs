//! The head: the process, the snapshot, the figures of each domain.

use super::concerns::{concerns, sum};
use super::words::{estimated_count, estimated_size};
use crate::input::copies::Part;
use crate::input::moment::{At, totals};
use crate::input::tree::{Process, Subject};
use crate::query::estimate::of_domain;
use crate::query::report::{Report, Row};
use crate::query::statistics::By;
use heapline_shared_format::snapshot::{Birth, DomainTotals, End, Meta, brief_unseen};
use heapline_shared_format::text::{counted, printable, size};
use std::io::{self, Write};

/// Describes the process and the snapshot, a line for each.
pub fn subject(report: &Report<'_>) -> [String; 2] {
    let meta = &report.snapshot.meta;
    let who = match report.subject.processes().count() {
        0 => format!("Process {} ({}), {}", meta.pid, printable(&meta.command), end(meta)),
        count => format!("Tree of {}, {} memory:", counted(count as u64, "process"), report.view.domain),
    };
    [who, format!("Snapshot of {}, {}", printable(&meta.taken_at), mode(meta))]
}

pub(super) fn head(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let (snapshot, meta) = (report.snapshot, &report.snapshot.meta);
    let [who, what] = subject(report);
    writeln!(out, "{who}")?;
    let count = report.subject.processes().count();
    if count > 0 {
        processes(report, count, out)?;
    }
    writeln!(out, "{what}")?;
    if let Some(old) = report.old.map(|old| &old.meta) {
        let what = if report.subject.processes().count() > 0 { "the tree" } else { "that" };
        writeln!(out, "Compared with {what} of process {}, {}", old.pid, printable(&old.taken_at))?;
    }
    for row in &snapshot.domains {
        writeln!(
            out,
            "{}",
            domain(row, if report.subject.processes().count() > 0 { "peaks together" } else { "peak" }, report.subject)
        )?;
    }
    let own = |bytes: u64| size(bytes);
    writeln!(out, "Heapline's own: {} in the target, {} outside", own(meta.target_bytes), own(meta.aggregator_bytes))?;
    concerns(report).iter().chain(&unknown_lines(report)).try_for_each(|text| writeln!(out, "{}", printable(text)))
}

/// Most processes of a tree in a report with limited rows.
const MAX_PROCESSES: usize = 40;

/// Writes the processes of a tree, each below its parent.
pub(super) fn processes(report: &Report<'_>, count: usize, out: &mut dyn Write) -> io::Result<()> {
    let most = if report.request.limit == 0 { count } else { MAX_PROCESSES };
    for Process { snapshot, depth } in report.subject.processes().take(most) {
        let meta = &snapshot.meta;
        let row = totals(snapshot, report.view.domain);
        let interval = |at| of_domain(std::iter::once(Part::alone(snapshot)), report.view.domain, at);
        let birth = match snapshot.origin.as_ref().map(|origin| origin.birth) {
            None => "",
            Some(Birth::Fork) => ", forked",
            Some(Birth::Exec) => ", started",
        };
        writeln!(
            out,
            "{:indent$}{} {}: current {} in {}, peak {}{birth}, {}",
            "",
            meta.pid,
            shortened(&printable(&meta.command)),
            estimated_size(row.current, interval(At::Live).size_interval(row.current)),
            estimated_count(row.blocks, "block", interval(At::Live).count_interval()),
            estimated_size(row.peak, interval(At::Peak).size_interval(row.peak)),
            end(meta),
            indent = 2 + 2 * depth.min(20),
        )?;
    }
    match count.saturating_sub(most) {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more: --limit 0 shows all"),
    }
}

/// Returns the first words of a command.
pub(super) fn shortened(command: &str) -> String {
    const MOST: usize = 60;
    match command.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &command[..end]),
        None => command.to_string(),
    }
}

/// Advice for a module without debug information: all its blocks are in a single row.
pub(super) fn unknown_lines(report: &Report<'_>) -> Option<String> {
    let by_place = matches!(report.request.by, By::Lineno | By::Filename);
    let is_heap = |row: &&Row| row.stat.frame.lineno == 0 && row.stat.several_functions;
    let row = report.shown().iter().filter(|_| by_place).find(is_heap)?;
    let module = report.tracebacks.text(row.stat.frame.module);
    Some(format!("No lines are known in {module}: --by function tells its blocks apart"))
}

pub(super) fn end(meta: &Meta) -> String {
    match (meta.end, meta.exit_status) {
        (End::Running, _) => "running".to_string(),
        (End::Exited, Some(status)) => format!("exited with status {status}"),
        (End::Exited, None) => "exited".to_string(),
        (End::Killed, Some(status)) if status > 128 => format!("killed by signal {}", status - 128),
        (End::Killed, _) => "killed by a signal".to_string(),
        (End::Detached, _) => "detached while it ran".to_string(),
        (End::Stalled, _) => "stopped tracing before its end".to_string(),
    }
}

pub(super) fn mode(meta: &Meta) -> String {
    let frames = format!("up to {} a traceback", counted(meta.nframe.into(), "frame"));
    let unseen = brief_unseen(&meta.unseen).map(|causes| printable(&causes).into_owned());
    match meta.sample_interval {
        0 if sum(&meta.lost).is_some() || sum(&meta.contradictions).is_some() => {
            let unseen = unseen.map(|causes| format!(", and not seen: {causes};")).unwrap_or_else(|| ",".to_string());
            format!("NOT EXACT (see below){unseen} {frames}")
        }
        0 => match unseen {
            None => format!("exact, {frames}"),
            Some(causes) => format!("exact, but for what is not seen: {causes}; {frames}"),
        },
        interval => {
            let unseen = unseen.map(|causes| format!("; not seen: {causes}")).unwrap_or_default();
            format!(
                "sampled, one in {interval} bytes: what is marked ~ is an estimate, with its 95 % interval{unseen}; {frames}"
            )
        }
    }
}

pub(super) fn domain(row: &DomainTotals, peak: &str, subject: &Subject) -> String {
    let of = |at| of_domain(subject.summed(), row.domain, at);
    let (live, at_peak) = (of(At::Live), of(At::Peak));
    format!(
        "{}: current {} in {}, {peak} {}; {} allocated ({}), {} freed since the start",
        row.domain,
        estimated_size(row.current, live.size_interval(row.current)),
        estimated_count(row.blocks, if row.domain.is_of_ranges() { "range" } else { "block" }, live.count_interval()),
        estimated_size(row.peak, at_peak.size_interval(row.peak)),
        row.allocs,
        size(row.allocated_bytes),
        row.frees,
    )
}

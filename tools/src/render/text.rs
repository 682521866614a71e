//! The report for people: tracemalloc's "Pretty top", below a head with the facts of the
//! measurement.
//!
//! The head hides nothing: anything missing, contradictory or noted in the snapshot stands above
//! the figures.

use super::source::Sources;
use crate::blame::Blamer;
use crate::copies::Part;
use crate::diff::Change;
use crate::estimate::of_domain;
use crate::frames::Frame;
use crate::report::{Report, Row};
use crate::statistics::{By, Key};
use crate::tree::{Process, Subject, totals};
use crate::view::At;
use heapline_shared_format::snapshot::{Birth, Domain, DomainTotals, End, Meta, Snapshot, brief_unseen, mostly_mapped};
use heapline_shared_format::text::{format_size, printable, size};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

/// Writes the report. With `sources`, each frame is followed by the source line.
///
/// # Errors
///
/// Passes on errors of `out`.
pub fn write(report: &Report<'_>, mut sources: Option<&mut Sources>, out: &mut dyn Write) -> io::Result<()> {
    head(report, out)?;
    writeln!(out, "\n{}", title(report))?;
    let mut blamer = report.blamer();
    for (index, row) in report.shown().iter().enumerate() {
        write!(out, "#{}: ", index + 1)?;
        match report.request.by {
            By::Traceback => traceback(report, row, blamer.as_mut(), sources.as_deref_mut(), out)?,
            _ => line(report, row, sources.as_deref_mut(), out)?,
        }
    }
    others(report, out)?;
    calls(report, out)?;
    let total = &report.total;
    let size = estimated_size(total.size, total.estimate.size_interval(total.size));
    writeln!(out, "Total allocated size: {size}{}", total_change(report))
}

/// Describes the process and the snapshot, a line for each.
pub fn subject(report: &Report<'_>) -> [String; 2] {
    let meta = &report.snapshot.meta;
    let who = match report.subject.processes().count() {
        0 => format!("Process {} ({}), {}", meta.pid, printable(&meta.command), end(meta)),
        count => format!("Tree of {}, {} memory:", counted(count as u64, "process"), report.view.domain),
    };
    [who, format!("Snapshot of {}, {}", printable(&meta.taken_at), mode(meta))]
}

fn head(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
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
fn processes(report: &Report<'_>, count: usize, out: &mut dyn Write) -> io::Result<()> {
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
fn shortened(command: &str) -> String {
    const MOST: usize = 60;
    match command.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &command[..end]),
        None => command.to_string(),
    }
}

/// Advice for a module without debug information: all its blocks are in a single row.
fn unknown_lines(report: &Report<'_>) -> Option<String> {
    let by_place = matches!(report.request.by, By::Lineno | By::Filename);
    let is_heap = |row: &&Row| row.stat.frame.lineno == 0 && row.stat.several_functions;
    let row = report.shown().iter().filter(|_| by_place).find(is_heap)?;
    let module = report.tracebacks.text(row.stat.frame.module);
    Some(format!("No lines are known in {module}: --by function tells its blocks apart"))
}

fn end(meta: &Meta) -> String {
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

fn mode(meta: &Meta) -> String {
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

fn domain(row: &DomainTotals, peak: &str, subject: &Subject) -> String {
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
fn sum(counts: &BTreeMap<String, u64>) -> Option<(u64, String)> {
    let parts: Vec<String> =
        counts.iter().filter(|(_, count)| **count > 0).map(|(name, count)| format!("{name} {count}")).collect();
    let sum = counts.values().fold(0_u64, |sum, &count| sum.saturating_add(count));
    (!parts.is_empty()).then(|| (sum, parts.join(", ")))
}

fn title(report: &Report<'_>) -> String {
    let (rows, request) = (report.shown().len() as u64, &report.request);
    let groups = match request.by {
        By::Filename => "file",
        By::Lineno => "line",
        By::Traceback => "traceback",
        By::Function => "function",
        By::Module => "module",
        By::Size => "size",
        By::Thread => "thread",
    };
    let at = match request.at {
        At::Live => "live at the snapshot",
        At::Peak => "live at the peak",
        At::Total => "allocated since the start",
    };
    let count = if rows == 1 { format!("Top {groups}") } else { format!("Top {rows} {groups}s") };
    let counting = if request.cumulative { ", blocks counted for every frame" } else { "" };
    let kind = if report.old.is_some() { "differences of " } else { "" };
    let layer = match report.view.domain {
        Domain::Native => "native memory".to_string(),
        domain => format!("{domain} memory"),
    };
    format!("{count}: {kind}{layer} {at}{counting}")
}

/// Writes a group in a line.
fn line(report: &Report<'_>, row: &Row, sources: Option<&mut Sources>, out: &mut dyn Write) -> io::Result<()> {
    let names = &report.tracebacks;
    let frame = &row.stat.frame;
    let (name, detail) = match row.stat.key {
        Key::Text(text) => (printable(names.text(text)).into_owned(), String::new()),
        Key::Line(file, lineno) => {
            let file = printable(names.text(file)).into_owned();
            let others = if row.stat.several_functions { " and others" } else { "" };
            (format!("{file}:{lineno}"), format!(", {}{others}", printable(names.text(frame.function))))
        }
        Key::Size(size) => (format!("blocks of {size} B"), String::new()),
        Key::Traceback(_) => (String::new(), String::new()),
    };
    writeln!(out, "{name}: {}{detail}", figures(row))?;
    match row.stat.key {
        Key::Line(file, lineno) => source_line(sources, names.text(file), lineno, "  ", out),
        _ => Ok(()),
    }
}

/// Formats `419.8 KiB in 12 blocks`, with changes in a diff.
fn figures(row: &Row) -> String {
    let stat = &row.stat;
    let size = estimated_size(stat.size, stat.estimate.size_interval(stat.size));
    let blocks = estimated_count(stat.count, "block", stat.estimate.count_interval());
    match row.change {
        None => format!("{size} in {blocks}"),
        Some(change) => format!("{size} ({}) in {blocks} ({:+})", changed(&change), change.count),
    }
}

/// Formats a number of bytes; an estimate with its interval.
fn estimated_size(bytes: u64, interval: Option<(u64, u64)>) -> String {
    match interval {
        None => size(bytes),
        Some((from, to)) => format!("~{} ({} to {})", size(bytes), size(from), size(to)),
    }
}

/// Formats a number of things; an estimate with its interval.
fn estimated_count(count: u64, noun: &str, interval: Option<(u64, u64)>) -> String {
    match interval {
        None => counted(count, noun),
        Some((from, to)) => format!("~{} ({from} to {to})", counted(count, noun)),
    }
}

/// Formats the change of a size.
fn changed(change: &Change) -> String {
    let bytes = format_size(change.size, true);
    match change.doubt {
        None => bytes,
        Some(doubt) => format!("~{bytes} \u{b1} {}", size(doubt)),
    }
}

/// Writes the exact counts of threads while samples were recorded.
fn calls(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let domain = report.view.domain;
    let rows = report.subject.parts().iter().flat_map(|part| part.calls.iter().map(move |row| (part, row)));
    let mut rows: Vec<_> = rows.filter(|(_, row)| row.domain == domain).collect();
    if rows.is_empty() || report.request.by != By::Thread {
        return Ok(());
    }
    rows.sort_by_key(|(_, row)| std::cmp::Reverse(row.bytes));
    writeln!(out, "All calls, counted exactly:")?;
    let most = if report.request.limit == 0 { rows.len() } else { report.request.limit };
    for (part, row) in rows.into_iter().take(most) {
        let thread = &part.threads[row.thread as usize];
        let bytes = size(row.bytes);
        writeln!(
            out,
            "  {} ({}): {} allocated ({bytes}), {} freed",
            printable(&thread.name),
            thread.tid,
            row.allocs,
            row.frees
        )?;
    }
    Ok(())
}

/// Writes a traceback, the oldest frame first (tracemalloc: `Traceback.format`). A mark shows the
/// blamed frame, unless the most recent frames are blamed.
fn traceback(
    report: &Report<'_>,
    row: &Row,
    blamer: Option<&mut Blamer<'_>>,
    mut sources: Option<&mut Sources>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let names = &report.tracebacks;
    let stat = &row.stat;
    let blocks = estimated_count(stat.count, "memory block", stat.estimate.count_interval());
    let size = estimated_size(stat.size, stat.estimate.size_interval(stat.size));
    match row.change {
        None => writeln!(out, "{blocks}: {size}")?,
        Some(change) => writeln!(out, "{blocks} ({:+}): {size} ({})", change.count, changed(&change))?,
    }
    let cut = u64::from(row.stat.total_nframe).saturating_sub(report.snapshot.meta.nframe.into());
    if row.stat.truncated {
        writeln!(out, "  (older frames are unknown: the stack could not be walked further)")?;
    } else if cut > 0 {
        writeln!(out, "  ({} not kept: see --nframe)", counted(cut, "older frame"))?;
    }
    let Key::Traceback(id) = row.stat.key else { return Ok(()) };
    let frames = names.oldest_first(id);
    let blamed = blamer.and_then(|blamer| frames.len().checked_sub(1 + blamer.depth(names, id)));
    for (index, Frame { filename, lineno, function, module, .. }) in frames.into_iter().enumerate() {
        let mark = if Some(index) == blamed { ">" } else { " " };
        let (file, function) = (names.text(filename), printable(names.text(function)));
        let module = match Path::new(names.text(module)).file_name() {
            Some(name) => format!(" [{}]", printable(&name.to_string_lossy())),
            None => String::new(),
        };
        writeln!(out, "{mark} File \"{}\", line {lineno}, in {function}{module}", printable(file))?;
        source_line(sources.as_deref_mut(), file, lineno, "    ", out)?;
    }
    Ok(())
}

fn source_line(
    sources: Option<&mut Sources>,
    filename: &str,
    lineno: u32,
    indent: &str,
    out: &mut dyn Write,
) -> io::Result<()> {
    match sources.and_then(|sources| sources.line(filename, lineno).map(|line| printable(line).into_owned())) {
        Some(line) => writeln!(out, "{indent}{line}"),
        None => Ok(()),
    }
}

fn others(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let others = report.others();
    if others.is_empty() {
        return Ok(());
    }
    let bytes: i128 = others.iter().map(|row| i128::from(row.stat.size)).sum();
    let change: i128 = others.iter().filter_map(|row| row.change).map(|change| change.size).sum();
    let change = if report.old.is_some() { format!(" ({})", format_size(change, true)) } else { String::new() };
    let is_estimate = others.iter().any(|row| row.stat.estimate.is_estimate());
    let about = if is_estimate { "~" } else { "" };
    writeln!(out, "{} other: {about}{}{change}", others.len(), format_size(bytes, false))
}

/// Formats the change of the whole view, with each block counted once. Empty for a cumulative diff,
/// with its blocks counted several times, and without an old snapshot.
fn total_change(report: &Report<'_>) -> String {
    match report.old {
        Some(_) if !report.request.cumulative => {
            let change = report.rows.iter().filter_map(|row| row.change).map(|change| change.size).sum();
            format!(" ({})", format_size(change, true))
        }
        _ => String::new(),
    }
}

fn counted(count: u64, noun: &str) -> String {
    let ending = if noun.ends_with('s') { "es" } else { "s" };
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}{ending}") }
}

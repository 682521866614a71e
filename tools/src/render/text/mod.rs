//! The report for people: tracemalloc's "Pretty top", below a head with the facts of the
//! measurement.
//!
//! The head hides nothing: anything missing, contradictory or noted in the snapshot stands above
//! the figures.

mod concerns;
mod head;
mod rows;
mod tree;
mod words;

pub use concerns::concerns;
pub use head::subject;

use super::source::Sources;
use crate::input::moment::At;
use crate::query::report::Report;
use crate::query::statistics::By;
use head::head;
use heapline_shared_format::snapshot::Domain;
use heapline_shared_format::text::{format_size, printable, size};
use rows::{Marks, line, traceback};
use std::io::{self, Write};
use tree::tree;
use words::estimated_size;

/// Writes the report. With `sources`, each frame is followed by the source line.
///
/// # Errors
///
/// Passes on errors of `out`.
pub fn write(report: &Report<'_>, mut sources: Option<&mut Sources>, out: &mut dyn Write) -> io::Result<()> {
    head(report, out)?;
    writeln!(out, "\n{}", title(report))?;
    if report.request.by == By::Tree {
        tree(report, sources, out)?;
        return total(report, out);
    }
    let mut marks = Marks::new(report);
    for (index, row) in report.shown().iter().enumerate() {
        write!(out, "#{}: ", index + 1)?;
        match report.request.by {
            By::Traceback => traceback(report, row, &mut marks, sources.as_deref_mut(), out)?,
            _ => line(report, row, sources.as_deref_mut(), out)?,
        }
    }
    others(report, out)?;
    calls(report, out)?;
    total(report, out)
}

fn total(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let total = &report.total;
    let size = estimated_size(total.size, total.estimate.size_interval(total.size));
    writeln!(out, "Total allocated size: {size}{}", total_change(report))
}

fn title(report: &Report<'_>) -> String {
    let (rows, request) = (report.shown().len() as u64, &report.request);
    let groups = match request.by {
        By::Tree if request.inverted => return format!("Callers of the blamed frames: {}", what(report)),
        By::Tree => return format!("Call tree: {}", what(report)),
        By::Filename => "file",
        By::Lineno => "line",
        By::Traceback => "traceback",
        By::Function => "function",
        By::Module => "module",
        By::Size => "size",
        By::Thread => "thread",
    };
    let count = if rows == 1 { format!("Top {groups}") } else { format!("Top {rows} {groups}s") };
    let counting = if request.cumulative { ", blocks counted for every frame" } else { "" };
    format!("{count}: {}{counting}", what(report))
}

/// Describes the blocks in the view.
fn what(report: &Report<'_>) -> String {
    let at = match report.request.at {
        At::Live => "live at the snapshot",
        At::Peak => "live at the peak",
        At::Total => "allocated since the start",
    };
    let kind = if report.old.is_some() { "differences of " } else { "" };
    let layer = match report.view.domain {
        Domain::Native => "native memory".to_string(),
        domain => format!("{domain} memory"),
    };
    format!("{kind}{layer} {at}")
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

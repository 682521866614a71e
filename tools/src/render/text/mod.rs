//! The report for people: tracemalloc's "Pretty top", below a head with the facts of the
//! measurement.
//!
//! The head hides nothing: anything missing, contradictory or noted in the snapshot stands above
//! the figures.
//!
//! | Output | Rows |
//! | --- | --- |
//! | a terminal | aligned columns of one unit, with names that fit (`screen`) |
//! | a file or a pipe | a stable form for scripts, with whole names (`rows`) |
//!
//! A report without a choice is an `overview` of a screen, wherever it goes.

mod concerns;
mod fit;
mod head;
mod layout;
mod markdown;
mod overview;
mod processes;
mod rows;
mod screen;
mod table;
mod tree;
mod unit;
mod words;

pub use concerns::concerns;
pub use head::subject;
pub use layout::Layout;
pub use markdown::markdown;
pub use overview::overview;
pub use words::blocks_of;

use super::source::Sources;
use crate::query::diff::Kind;
use crate::query::growth::{COLUMNS, Growth};
use crate::query::report::{Report, Row};
use crate::query::statistics::{By, Key};
use crate::render::sparkline::{Span, sparkline};
use head::head;
use heapline_shared_format::text::{counted, format_size, printable, size};
use layout::Role;
use rows::{Marks, line, traceback};
use std::io::{self, Write};
use tree::tree;
use words::{about, estimated_size};

/// Writes the report. With `sources`, each frame is followed by the source line.
///
/// # Errors
///
/// Passes on errors of `out`.
pub fn write(
    report: &Report<'_>,
    mut sources: Option<&mut Sources>,
    layout: Layout,
    out: &mut dyn Write,
) -> io::Result<()> {
    head(report, layout, out)?;
    writeln!(out)?;
    if !report.shown().is_empty() {
        layout.say(Role::Quiet, &title(report), out)?;
    }
    if report.request.by == By::Tree {
        tree(report, sources, layout, out)?;
        return total(report, layout, out);
    }
    if let Some(width) = layout.width.filter(|_| !report.rows.is_empty()) {
        screen::rows(report, sources, layout, width, out)?;
        left_out(report, layout, out)?;
        return calls(report, layout, out);
    }
    let mut marks = Marks::new(report);
    for (index, row) in report.shown().iter().enumerate() {
        write!(out, "#{}: ", index + 1)?;
        let sources = sources.as_deref_mut();
        match row.stat.key {
            Key::Traceback(id) => traceback(report, row, &marks.frames(report, id), sources, layout, out)?,
            _ => line(report, row, sources, layout, out)?,
        }
        if let Some(growth) = report.growth_of(row) {
            writeln!(out, "    {}", grows(growth))?;
        }
    }
    others(report, out)?;
    left_out(report, layout, out)?;
    calls(report, layout, out)?;
    total(report, layout, out)
}

fn total(report: &Report<'_>, layout: Layout, out: &mut dyn Write) -> io::Result<()> {
    if report.since.is_some() {
        layout.say(Role::Quiet, &kinds(report), out)?;
    }
    let total = &report.total;
    let size = estimated_size(total.size, total.estimate.size_interval(total.size));
    if layout.width.is_some() {
        return layout.say(Role::Plain, &format!("Total allocated size: {size}{}", total_change(report)), out);
    }
    writeln!(out, "Total allocated size: {}{}", layout.paint(Role::Size, size), total_change(report))
}

/// Describes a growth: "+3.4 MiB an hour, 99.9 % sure  |memory over the whole history|".
fn grows(growth: &Growth) -> String {
    format!("{} an hour, {} sure  |{}|", per_hour(growth), sure(growth), over_time(growth, COLUMNS))
}

#[expect(clippy::cast_possible_truncation, reason = "an estimate, which saturates")]
fn per_hour(growth: &Growth) -> String {
    format_size(growth.per_hour.round() as i128, true)
}

/// Formats how sure a trend is. No trend is quite sure.
fn sure(growth: &Growth) -> String {
    format!("{:.1} %", (growth.certainty * 1000.0).floor().min(999.0) / 10.0)
}

/// Draws the memory over the whole history.
fn over_time(growth: &Growth, columns: usize) -> String {
    let spans = (0..).zip(&growth.series).map(|(begin, &value)| Span { begin, end: begin + 1, value });
    sparkline(&spans.collect::<Vec<_>>(), columns)
}

/// Describes the rows that each suppression has left out of a report on leaks.
pub fn suppressed(report: &Report<'_>) -> impl Iterator<Item = String> {
    let (noun, blocks) = (noun(report.request.by), report.view.domain.noun());
    report.suppressed.iter().map(move |one| {
        let (rows, blocks) = (counted(one.groups as u64, noun), counted(one.count, blocks));
        format!("Suppressed by leak:{}: {rows}, {} in {blocks}", printable(&one.pattern), size(one.size))
    })
}

fn left_out(report: &Report<'_>, layout: Layout, out: &mut dyn Write) -> io::Result<()> {
    suppressed(report).try_for_each(|text| layout.say(Role::Plain, &text, out))
}

/// Counts the groups by the kind of their change: "3 grown, 1 shrunk, 2 new, 0 gone".
fn kinds(report: &Report<'_>) -> String {
    let kind = |row: &Row| row.change.map(|change| change.kind(row.stat.size, row.stat.count));
    let count = |of: Kind| report.rows.iter().filter(|row| kind(row) == Some(of)).count();
    let counts = Kind::CHANGES.map(|of| format!("{} {}", count(of), of.name()));
    counts.join(", ")
}

fn title(report: &Report<'_>) -> String {
    let (rows, request) = (report.shown().len() as u64, &report.request);
    let groups = match request.by {
        By::Tree if request.inverted => return format!("Callers of the blamed frames: {}", what(report)),
        By::Tree => return format!("Call tree: {}", what(report)),
        by => noun(by),
    };
    let count = match (rows, report.growth.is_some()) {
        (1, true) => format!("1 {groups} grows"),
        (_, true) => format!("{} {groups}s grow", report.rows.len()),
        (1, false) => format!("Top {groups}"),
        (_, false) => format!("Top {rows} {groups}s"),
    };
    let counting = if request.cumulative { ", blocks counted for every frame" } else { "" };
    format!("{count}: {}{counting}", what(report))
}

/// A row of a grouping, in a word.
fn noun(by: By) -> &'static str {
    match by {
        By::Filename => "file",
        By::Lineno => "line",
        By::Traceback => "traceback",
        By::Tree => "call",
        By::Function => "function",
        By::Module => "module",
        By::Size => "size",
        By::Thread => "thread",
    }
}

/// Describes the blocks in the view.
fn what(report: &Report<'_>) -> String {
    let kind = if report.old.is_some() { "differences of " } else { "" };
    format!("{kind}{}", blocks_of(report.view, report.snapshot.meta.begun))
}

/// Writes the exact counts of threads while samples were recorded.
fn calls(report: &Report<'_>, layout: Layout, out: &mut dyn Write) -> io::Result<()> {
    let domain = report.view.domain;
    let rows = report.subject.parts().iter().flat_map(|part| part.calls.iter().map(move |row| (part, row)));
    let mut rows: Vec<_> = rows.filter(|(_, row)| row.domain == domain).collect();
    if rows.is_empty() || report.request.by != By::Thread {
        return Ok(());
    }
    rows.sort_by_key(|(_, row)| std::cmp::Reverse(row.bytes));
    layout.say(Role::Quiet, "All calls, counted exactly:", out)?;
    let most = if report.request.limit == 0 { rows.len() } else { report.request.limit };
    for (part, row) in rows.into_iter().take(most) {
        let thread = &part.threads[row.thread as usize];
        let (name, tid, bytes) = (&thread.name, thread.tid, size(row.bytes));
        let text = format!("  {name} ({tid}): {} allocated ({bytes}), {} freed", row.allocs, row.frees);
        layout.say(Role::Plain, &text, out)?;
    }
    Ok(())
}

fn others(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let others = report.others();
    if others.is_empty() {
        return Ok(());
    }
    let bytes: i128 = others.iter().map(|row| i128::from(row.stat.size)).sum();
    let changes = others.iter().filter_map(|row| row.change);
    let is_estimate = changes.clone().any(|change| change.doubt.is_some());
    let change: i128 = changes.map(|change| change.size).sum();
    let change = match report.old {
        Some(_) => format!(" ({}{})", about(is_estimate), format_size(change, true)),
        None => String::new(),
    };
    let is_estimate = others.iter().any(|row| row.stat.estimate.is_estimate());
    writeln!(out, "{} other: {}{}{change}", others.len(), about(is_estimate), format_size(bytes, false))
}

/// Formats the change of the whole view, with each block counted once. Empty for a cumulative diff,
/// with its blocks counted several times, and without an old snapshot.
fn total_change(report: &Report<'_>) -> String {
    match report.old {
        Some(_) if !report.request.cumulative => {
            let changes = report.rows.iter().filter_map(|row| row.change);
            let is_estimate = changes.clone().any(|change| change.doubt.is_some());
            let change = changes.map(|change| change.size).sum();
            format!(" ({}{})", about(is_estimate), format_size(change, true))
        }
        _ => String::new(),
    }
}

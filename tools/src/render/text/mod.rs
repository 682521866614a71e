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
use crate::input::moment::{At, span};
use crate::input::time::local;
use crate::query::churn::{Churn, LIFETIMES};
use crate::query::diff::Kind;
use crate::query::growth::{COLUMNS, Growth};
use crate::query::report::{Report, Row, Survived};
use crate::query::statistics::{By, Key};
use crate::query::usable::Rounding;
use crate::render::sparkline::{Span, sparkline};
use head::head;
use heapline_shared_format::text::{counted, format_size, printable, size};
use layout::Role;
use rows::{Marks, line, traceback};
use std::io::{self, Write};
use tree::tree;
use unit::share;
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
    if let Some(width) = layout.width.filter(|_| !report.rows.is_empty() && report.churn.is_none()) {
        screen::rows(report, sources, layout, width, out)?;
        if let Some(text) = rounding(report) {
            layout.say(Role::Plain, &text, out)?;
        }
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
        for text in details(report, row) {
            writeln!(out, "    {text}")?;
        }
    }
    others(report, out)?;
    left_out(report, layout, out)?;
    calls(report, layout, out)?;
    total(report, layout, out)
}

/// Says how much of the blocks is unused by rounding, in a report by size.
fn rounding(report: &Report<'_>) -> Option<String> {
    let about = about(report.total.estimate.is_estimate());
    Some(match report.rounding()? {
        Err(why) => format!("Unused by rounding: {why}"),
        Ok(Rounding { rule, unused, unknown }) => {
            let share = share(unused, report.total.size.saturating_add(unused), report.total.estimate.is_estimate());
            let share = if share.is_empty() { share } else { format!(", {share} of what is usable") };
            let unknown = match unknown {
                0 => String::new(),
                blocks => format!("; without {about}{}, too large for a rule", counted(blocks, "block")),
            };
            format!("Unused by the rounding of {}: {about}{}{share}{unknown}", rule.allocator(), size(unused))
        }
    })
}

fn total(report: &Report<'_>, layout: Layout, out: &mut dyn Write) -> io::Result<()> {
    if let Some(text) = rounding(report) {
        layout.say(Role::Plain, &text, out)?;
    }
    if report.since.is_some() {
        layout.say(Role::Quiet, &kinds(report), out)?;
    }
    if let Some(text) = survived(report) {
        layout.say(Role::Plain, &text, out)?;
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

/// Sums up what was allocated in the range of the report and still lives. Says which range, if
/// births are not known to the instants of the report.
fn survived(report: &Report<'_>) -> Option<String> {
    let Survived { total, born, .. } = report.survived.as_ref().filter(|_| report.growth.is_none())?;
    let (bytes, blocks) = (estimated_size(total.size, total.estimate.size_interval(total.size)), total.count);
    let range = match (report.since, report.view.at) {
        (Some(since), At::Instant(until)) if *born == [since.end, until.end] => "in the range".to_owned(),
        (Some(since), _) => {
            let [from, to] = born.map(|time| local(time, since.utc_offset));
            format!("from {from} to {to} (the nearest times to which births are known)")
        }
        _ => String::new(),
    };
    Some(format!(
        "Allocated {range} and still live at the snapshot: {bytes} in {}",
        counted(blocks, report.view.domain.noun())
    ))
}

/// The age from which on blocks are old in a report on leaks: the second half of the history.
fn old_from(report: &Report<'_>) -> Option<String> {
    let [_, until] = report.survived.as_ref().filter(|_| report.growth.is_some())?.born;
    match report.view.at {
        At::Instant(now) => Some(span(now.end.saturating_sub(until))),
        _ => None,
    }
}

/// Lines below a row: its churn, or what has survived of it, or how old it is.
fn details(report: &Report<'_>, row: &Row) -> Vec<String> {
    let rounding = report.rounding().and_then(Result::ok).and_then(|Rounding { rule, .. }| {
        let each = row.stat.key.size()?;
        let (usable, unused) = (rule.usable(each)?, rule.unused(each, row.stat.count)?);
        let mark = about(row.stat.estimate.is_estimate());
        (unused > 0).then(|| format!("rounded up to {usable} B each: {mark}{} unused", size(unused)))
    });
    let churn = report.churn_of(row).map(|churn| churns(churn, row.stat.count));
    let survived = report.survived.is_some().then(|| {
        let survived = report.survivors_of(row);
        let (bytes, blocks) = survived.map_or((0, 0), |stat| (stat.size, stat.count));
        let interval = survived.and_then(|stat| stat.estimate.size_interval(bytes));
        let (blocks, bytes) = (counted(blocks, report.view.domain.noun()), estimated_size(bytes, interval));
        match old_from(report) {
            Some(age) => format!("{bytes} in {blocks} older than {age}"),
            None => format!("allocated in it and still live: {bytes} in {blocks}"),
        }
    });
    rounding.into_iter().chain(churn).chain(survived).collect()
}

/// Describes the churn of `count` allocations: "1000 temporary (50.0 %), 4000 allocations a second;
/// lived less than a step: 99.0 %, < 1 s: 1.0 %".
fn churns(churn: &Churn, count: u64) -> String {
    let temporary = churn.temporary.map_or("temporary ones are not known of samples".to_owned(), |temporary| {
        format!("{temporary} temporary{}", of_all(temporary, count))
    });
    let ended = churn.all_ended();
    let classes = [("less than a step", churn.within_step)].into_iter().chain(LIFETIMES.into_iter().zip(churn.ended));
    let classes = classes.filter(|&(_, count)| count > 0);
    let lived: Vec<String> = classes.map(|(name, count)| format!("{name}{}", of_all(count, ended))).collect();
    let lived = if lived.is_empty() { "none ended".to_owned() } else { format!("lived {}", lived.join(", ")) };
    format!("{temporary}; {} allocations a second; {lived}", rate(churn.per_second(count)))
}

fn of_all(part: u64, whole: u64) -> String {
    let share = share(part, whole, false);
    if share.is_empty() { share } else { format!(" ({share})") }
}

/// Formats a rate, with decimals if it is small.
fn rate(rate: f64) -> String {
    if rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
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
    if report.churn.is_some() {
        return format!("Top {rows} {groups}s by churn: {}", what(report));
    }
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
        By::Age => "age",
    }
}

/// Describes the blocks in the view.
fn what(report: &Report<'_>) -> String {
    let kind = if report.old.is_some() { "differences of " } else { "" };
    let ages = report.ages.as_ref().map(|ages| ages.which()).filter(|which| !which.is_empty());
    let ages = ages.map_or(String::new(), |which| format!(", {which}"));
    format!("{kind}{}{ages}", blocks_of(report.view, report.snapshot.meta.begun))
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

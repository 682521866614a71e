//! Rows for a terminal: aligned columns with a common unit, and names that fit.

use super::fit;
use super::layout::{Layout, Role};
use super::rows::{Frames, Marks, OTHERS, Place, missing, of_total};
use super::table::{Column, Table};
use super::unit::{Unit, share};
use super::words::about;
use super::{grows, over_time, per_hour, sure};
use crate::frames::Frame;
use crate::query::growth::Growth;
use crate::query::report::{Report, Row};
use crate::query::statistics::{By, Key};
use crate::query::usable::Rounding;
use crate::render::Sources;
use heapline_shared_format::text::{counted, printable};
use std::io::{self, Write};
use std::path::Path;

/// Functions are shortened to this width even if there is more room.
const WIDEST_FUNCTION: usize = 72;
/// Narrower functions say nothing, and are left out.
pub(super) const NARROWEST_FUNCTION: usize = 8;

/// Columns of the memory over the whole history.
const COURSE: usize = 16;

/// A sum of rows below the table.
struct Sum {
    size: u64,
    change: Option<i128>,
    count: Option<u64>,
    is_estimate: bool,
    interval: Option<(u64, u64)>,
    name: String,
}

/// Writes the rows, and sums of the other rows and of all rows.
pub(super) fn rows(
    report: &Report<'_>,
    sources: Option<&mut Sources>,
    layout: Layout,
    width: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    match report.request.by {
        By::Traceback => tracebacks(report, sources, layout, width, out),
        _ => groups(report, sources, layout, width, out),
    }
}

fn groups(
    report: &Report<'_>,
    mut sources: Option<&mut Sources>,
    layout: Layout,
    width: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    let rows = report.shown();
    let sums = sums(report);
    let table = Table::new(layout, width, columns(report, &sums));
    let places: Vec<Place> = rows.iter().map(|row| Place::of(report, row)).collect();
    let most = layout.most(table.room);
    let widest = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
    let functions = widest(&mut places.iter().filter_map(|place| place.columns_of_function()));
    let functions = if functions == 0 { 0 } else { functions.clamp(NARROWEST_FUNCTION, layout.most(WIDEST_FUNCTION)) };
    // The functions give way down to half of the room.
    let place_most = if functions == 0 { most } else { most.saturating_sub(functions + 2).max(most / 2) };
    let names: Vec<_> = places.iter().map(|place| name(report, &place.name, place_most, most)).collect();
    let aligned = widest(&mut names.iter().map(|name| fit::columns(name)).filter(|&columns| columns <= place_most));
    table.head(heading(report.request.by), out)?;
    for (index, (place, name)) in places.iter().zip(&names).enumerate() {
        let used = aligned.max(fit::columns(name));
        let room = most.saturating_sub(used + 2).min(layout.most(WIDEST_FUNCTION));
        let mut last = layout.paint(Role::Place, name).to_string();
        if let Some(function) = place.function.as_deref().filter(|_| room >= NARROWEST_FUNCTION) {
            last += &" ".repeat(used + 2 - fit::columns(name));
            let others = if place.has_others && room >= OTHERS.len() + NARROWEST_FUNCTION { OTHERS } else { "" };
            let function = fit::function(function, room - others.len());
            last += &format!("{}{others}", layout.paint(Role::Function, function));
        }
        table.row(index, &last, out)?;
        if let Key::Line(file, lineno) = rows[index].stat.key {
            let indent = table.indent() + 2;
            source_line(sources.as_deref_mut(), report.tracebacks.text(file), lineno, layout, indent, width, out)?;
        }
    }
    for (index, sum) in sums.iter().enumerate() {
        table.row(rows.len() + index, &fit::beginning(&sum.name, table.room), out)?;
    }
    Ok(())
}

/// Returns the name of a group in `most` columns; a file name that is wider may take up to `room`.
fn name(report: &Report<'_>, name: &str, most: usize, room: usize) -> String {
    match report.request.by {
        By::Function => fit::function(name, room).into_owned(),
        By::Lineno | By::Filename | By::Module => fit::place(name, most, room).into_owned(),
        _ => fit::beginning(name, room).into_owned(),
    }
}

/// Writes a source line, cut at the terminal's edge.
pub(super) fn source_line(
    sources: Option<&mut Sources>,
    filename: &str,
    lineno: u32,
    layout: Layout,
    indent: usize,
    width: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    let Some(line) = sources.and_then(|sources| sources.line(filename, lineno)) else { return Ok(()) };
    let line = printable(line);
    let indent = indent.min(width / 2);
    writeln!(out, "{:indent$}{}", "", fit::beginning(&line, layout.most(width - indent)))
}

fn heading(by: By) -> &'static str {
    match by {
        By::Filename => "file",
        By::Lineno => "line",
        By::Function => "function",
        By::Module => "module",
        By::Size => "each",
        By::Thread => "thread",
        By::Age => "age",
        By::Traceback => "traceback",
        By::Tree => "call",
    }
}

/// Sums up the rows beyond the limit, and all rows. Rows of a cumulative report have blocks in
/// common, so there is no sum of the rows beyond the limit.
fn sums(report: &Report<'_>) -> Vec<Sum> {
    let (others, total) = (report.others(), &report.total);
    let is_diff = report.old.is_some();
    let change = |rows: &[Row]| {
        let changes = rows.iter().filter_map(|row| row.change).map(|change| change.size);
        (is_diff && !report.request.cumulative).then(|| changes.sum())
    };
    let of_others = Sum {
        size: others.iter().fold(0, |sum, row| sum.saturating_add(row.stat.size)),
        change: change(others),
        count: Some(others.iter().fold(0, |sum, row| sum.saturating_add(row.stat.count))),
        is_estimate: others.iter().any(|row| row.stat.estimate.is_estimate()),
        interval: None,
        name: counted(others.len() as u64, "more row"),
    };
    let of_all = Sum {
        size: total.size,
        change: change(&report.rows),
        count: Some(total.count),
        is_estimate: total.estimate.is_estimate(),
        interval: total.estimate.size_interval(total.size),
        // Rows that do not grow are in the sum.
        name: if report.growth.is_some() { "all memory" } else { "total" }.to_owned(),
    };
    let has_others = !others.is_empty() && !report.request.cumulative;
    has_others.then_some(of_others).into_iter().chain([of_all]).collect()
}

/// Makes the columns of figures.
fn columns(report: &Report<'_>, sums: &[Sum]) -> Vec<Column> {
    let rows = report.shown();
    let is_diff = report.old.is_some();
    let unit = unit(report, sums);
    let estimate = |row: &Row| about(row.stat.estimate.is_estimate());
    let all = |of_row: &dyn Fn(&Row) -> String, of_sum: &dyn Fn(&Sum) -> String| {
        rows.iter().map(of_row).chain(sums.iter().map(of_sum)).collect::<Vec<_>>()
    };
    let interval = |interval: Option<(u64, u64)>| {
        interval.map_or(String::new(), |(from, to)| format!("{} to {}", unit.format(from), unit.format(to)))
    };
    let whole = report.total.size;
    let ranks = (1..=rows.len()).map(|rank| rank.to_string()).chain(sums.iter().map(|_| String::new())).collect();
    let mut columns = vec![
        Column::new("#", Role::Quiet, 1, ranks),
        Column::new(
            unit.name(),
            Role::Size,
            9,
            all(&|row| format!("{}{}", estimate(row), unit.format(row.stat.size)), &|sum| {
                format!("{}{}", about(sum.is_estimate), unit.format(sum.size))
            }),
        ),
        Column::new(
            "95 % interval",
            Role::Plain,
            4,
            all(&|row| interval(row.stat.estimate.size_interval(row.stat.size)), &|sum| interval(sum.interval)),
        ),
    ];
    if is_diff {
        let change = |row: &Row| row.change.map_or(String::new(), |change| unit.format_doubtful(&change));
        let of_sum = |sum: &Sum| {
            let is_estimate = rows.iter().any(|row| row.change.is_some_and(|change| change.doubt.is_some()));
            sum.change.map_or(String::new(), |change| format!("{}{}", about(is_estimate), unit.format_change(change)))
        };
        columns.push(Column::new("change", Role::Size, 8, all(&change, &of_sum)));
    } else if report.growth.is_none() {
        let shares = all(&|row| share(row.stat.size, whole, row.stat.estimate.is_estimate()), &|sum| {
            share(sum.size, whole, sum.is_estimate)
        });
        columns.push(Column::new("share", Role::Plain, 3, shares));
    }
    let blocks = all(&|row| format!("{}{}", estimate(row), row.stat.count), &|sum| {
        sum.count.map_or(String::new(), |count| format!("{}{count}", about(sum.is_estimate)))
    });
    if let Some(Ok(Rounding { rule, .. })) = report.rounding() {
        let unused = |row: &Row| row.stat.key.size().and_then(|size| rule.unused(size, row.stat.count));
        let unused =
            |row: &Row| unused(row).map_or("?".to_owned(), |bytes| format!("{}{}", estimate(row), unit.format(bytes)));
        columns.push(Column::new("unused", Role::Plain, 6, all(&unused, &|_| String::new())));
    }
    if report.survived.is_some() {
        let kept = |row: &Row| {
            report
                .survivors_of(row)
                .map_or("0".to_owned(), |stat| format!("{}{}", estimate(row), unit.format(stat.size)))
        };
        let name = if report.growth.is_some() { "old" } else { "kept" };
        columns.push(Column::new(name, Role::Plain, 6, all(&kept, &|_| String::new())));
    }
    columns.push(Column::new(format!("{}s", report.view.domain.noun()), Role::Plain, 5, blocks));
    if report.growth.is_some() {
        let of = |cell: &dyn Fn(&Growth) -> String| {
            all(&|row| report.growth_of(row).map_or(String::new(), cell), &|_| String::new())
        };
        columns.push(Column::new("an hour", Role::Size, 8, of(&|growth| per_hour(growth))));
        columns.push(Column::new("sure", Role::Plain, 2, of(&|growth| sure(growth))));
        columns.push(Column::new("over the run", Role::Plain, 6, of(&|growth| over_time(growth, COURSE))));
    }
    if is_diff {
        let change = |row: &Row| row.change.map_or(String::new(), |change| format!("{:+}", change.count));
        columns.push(Column::new("change", Role::Plain, 2, all(&change, &|_| String::new())));
    }
    columns
}

/// Chooses the unit of all sizes.
fn unit(report: &Report<'_>, sums: &[Sum]) -> Unit {
    let rows = report.shown().iter();
    let changes = rows.clone().filter_map(|row| row.change).map(|change| change.size.unsigned_abs());
    let changes = changes.map(|change| u64::try_from(change).unwrap_or(u64::MAX));
    let sizes = rows.map(|row| row.stat.size).chain(sums.iter().map(|sum| sum.size));
    Unit::of(sizes.chain(changes).max().unwrap_or(0))
}

/// Writes each traceback as a block of lines, the most recent frame first.
fn tracebacks(
    report: &Report<'_>,
    mut sources: Option<&mut Sources>,
    layout: Layout,
    width: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    /// Columns in front of a frame.
    const INDENT: usize = 4;
    let names = &report.tracebacks;
    let sums = sums(report);
    let unit = unit(report, &sums);
    let mut marks = Marks::new(report);
    let amount = |size: u64, change: Option<i128>, count: Option<u64>, is_estimate: bool| {
        let mark = about(is_estimate);
        let change = change.map_or(String::new(), |change| format!(" ({mark}{})", unit.format_change(change)));
        let size = format!("{mark}{} {}{change}", unit.format(size), unit.name());
        let count =
            count.map_or(String::new(), |count| format!(" in {mark}{}", counted(count, report.view.domain.noun())));
        format!("{size}{count}")
    };
    for (index, row) in report.shown().iter().enumerate() {
        let stat = &row.stat;
        let change = row.change.map(|change| change.size);
        let share = if report.old.is_some() { String::new() } else { of_total(report, row) };
        let amount = amount(stat.size, change, Some(stat.count), stat.estimate.is_estimate());
        layout.say(Role::Size, &format!("#{} {amount}{share}", index + 1), out)?;
        if let Some(growth) = report.growth_of(row) {
            writeln!(out, "    {}", fit::beginning(&grows(growth), width.saturating_sub(INDENT)))?;
        }
        let Key::Traceback(id) = stat.key else { continue };
        let Frames { recent_first: frames, blamed } = marks.frames(report, id);
        let (room, most) = (width.saturating_sub(INDENT), layout.most(width.saturating_sub(INDENT)));
        let place = |frame: &Frame| {
            let file = printable(names.text(frame.filename)).into_owned();
            // Without a line the file is the module's.
            let place = if frame.lineno == 0 { file } else { format!("{file}:{}", frame.lineno) };
            fit::place(&place, most / 2, most).into_owned()
        };
        let places: Vec<String> = frames.iter().map(place).collect();
        let aligned = places.iter().map(|place| fit::columns(place)).filter(|&columns| columns <= room / 2).max();
        for (depth, (frame, place)) in frames.iter().zip(&places).enumerate() {
            let used = aligned.unwrap_or(0).max(fit::columns(place));
            let function = printable(names.text(frame.function));
            let module = Path::new(names.text(frame.module)).file_name().filter(|_| layout.is_verbose);
            let module = module.map_or(String::new(), |name| format!(" [{}]", printable(&name.to_string_lossy())));
            let left = most.saturating_sub(used + 2);
            let mark = if depth == blamed { ">" } else { " " };
            write!(out, "  {} {}", layout.paint(Role::Loud, mark), layout.paint(Role::Place, place))?;
            if left >= NARROWEST_FUNCTION {
                let gap = " ".repeat(used + 2 - fit::columns(place));
                write!(out, "{gap}{}{module}", layout.paint(Role::Function, fit::function(&function, left)))?;
            }
            writeln!(out)?;
            let file = names.text(frame.filename);
            source_line(sources.as_deref_mut(), file, frame.lineno, layout, INDENT + 2, width, out)?;
        }
        if let Some(text) = missing(report, row) {
            writeln!(out, "    {}", layout.paint(Role::Quiet, fit::beginning(&format!("({text})"), room)))?;
        }
    }
    for sum in &sums {
        let share =
            if report.old.is_some() { String::new() } else { share(sum.size, report.total.size, sum.is_estimate) };
        let share = if share.is_empty() { share } else { format!(", {share}") };
        let amount = amount(sum.size, sum.change, sum.count, sum.is_estimate);
        layout.say(Role::Plain, &format!("{}: {amount}{share}", sum.name), out)?;
    }
    Ok(())
}

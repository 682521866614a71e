//! The overview: what a report says first, on a screen of 80 x 24.
//!
//! ```text
//! the process, the command                     2 lines or more
//! facts to know before the figures             as many as there is room for
//! the layer: current, peak and when, the run   up to 4 lines
//! the five lines that matter most              up to 8 lines
//! the commands that lead on                    up to 3 lines
//! ```
//!
//! The last line of the screen is left to the shell. All sections have a bound, but for the facts:
//! the first facts that fit are shown, and `-v` shows all.

use super::fit;
use super::layout::{Layout, Role};
use super::rows::Place;
use super::table::{Column, Table};
use super::unit::{Unit, share};
use super::words::{about, blocks_of, estimated_size};
use super::{concerns, head};
use crate::input::moment::{At, span, totals};
use crate::input::time::local;
use crate::query::estimate::of_domain;
use crate::query::overview::{Course, Parts};
use crate::query::report::{Report, Row};
use crate::query::statistics::Key;
use crate::query::view::View;
use crate::render::sparkline::sparkline;
use heapline_shared_format::snapshot::{Begun, Domain};
use heapline_shared_format::text::{counted, format_size, printable, shell_word};
use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::path::Path;

/// Columns of a screen whose width is not known.
const COLUMNS: usize = 80;
/// Lines of the overview: those of a screen, but for the prompt of the shell.
const LINES: usize = 23;
/// Lines of the program in the overview.
const ROWS: usize = 5;
/// Lines chosen by the figure beside.
const ROWS_BESIDE: usize = 2;
/// A figure beside counts from this part of the whole on: 1 / `LEAST_BESIDE`.
const LEAST_BESIDE: i128 = 100;
/// Most lines of a sentence in the head.
const MOST_OF_HEAD: usize = 2;

/// Lines that the facts have before the commands.
const LEAST_OF_FACTS: usize = 2;

/// Writes the overview. `path` is the snapshot's.
///
/// # Errors
///
/// Passes on errors of `out`.
pub fn overview(parts: &Parts<'_>, path: &Path, layout: Layout, out: &mut dyn Write) -> io::Result<()> {
    let width = layout.width.unwrap_or(COLUMNS);
    let layout = Layout { width: Some(width), ..layout };
    let main = &parts.main;
    let mut top = Lines::default();
    let (first, second) = head::lines(main, layout);
    top.say(layout, head::role(main), &first, MOST_OF_HEAD)?;
    top.say(layout, Role::Plain, &second, MOST_OF_HEAD)?;
    let is_empty = main.has_no_records();
    let mut body = Lines::default();
    if !is_empty {
        body.gap();
        figures(parts, layout, &mut body)?;
        lines_that_matter(parts, layout, width, &mut body)?;
    }
    body.gap();
    // Facts come before commands, but for the first command.
    let facts_first = facts_lines(main, width).min(LEAST_OF_FACTS);
    let room = LINES.saturating_sub(top.count() + body.count() + facts_first).max(1);
    commands(parts, path, layout, width, room, &mut body)?;
    let room = LINES.saturating_sub(top.count() + body.count());
    facts(main, layout, room, &mut top)?;
    out.write_all(&top.bytes)?;
    out.write_all(&body.bytes)
}

/// Finished lines of a screen.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Lines added by the terminal, which breaks long commands.
    broken: usize,
}

impl Lines {
    fn count(&self) -> usize {
        self.broken + self.bytes.iter().filter(|&&byte| byte == b'\n').count()
    }

    fn gap(&mut self) {
        self.bytes.push(b'\n');
    }

    /// Adds a sentence in at most `most` lines.
    fn say(&mut self, layout: Layout, role: Role, text: &str, most: usize) -> io::Result<()> {
        let width = layout.width.unwrap_or(COLUMNS);
        let wrapped = fit::wrapped(&printable(text), width);
        let shown = cut(&wrapped, most, width);
        shown.iter().try_for_each(|line| writeln!(self.bytes, "{}", layout.paint(role, line)))
    }
}

/// Returns the first `most` lines of a sentence. A mark ends a sentence that goes on.
fn cut(lines: &[String], most: usize, width: usize) -> Vec<String> {
    let mut shown: Vec<String> = lines.iter().take(most).cloned().collect();
    if let (true, Some(last)) = (lines.len() > most, shown.last_mut()) {
        // With one column too many, so that the end is cut.
        *last = fit::beginning(&format!("{last:width$} "), width).into_owned();
    }
    shown
}

/// Number of lines of all facts.
fn facts_lines(report: &Report<'_>, width: usize) -> usize {
    concerns::brief(report).iter().map(|(_, text)| fit::wrapped(&printable(text), width).len()).sum()
}

/// Writes the facts to know before the figures, in `room` lines.
fn facts(report: &Report<'_>, layout: Layout, room: usize, out: &mut Lines) -> io::Result<()> {
    let facts = concerns::brief(report);
    let width = layout.width.unwrap_or(COLUMNS);
    let wrapped: Vec<(Role, Vec<String>)> =
        facts.iter().map(|(role, text)| (*role, fit::wrapped(&printable(text), width))).collect();
    let all: usize = wrapped.iter().map(|(_, lines)| lines.len()).sum();
    // A line says that there is more.
    let mut left = if all <= room { room } else { room.saturating_sub(1) };
    let mut hidden = 0;
    for (role, lines) in &wrapped {
        hidden += usize::from(lines.len() > left);
        let shown = cut(lines, left, width);
        left -= shown.len();
        shown.iter().try_for_each(|line| writeln!(out.bytes, "{}", layout.paint(*role, line)))?;
    }
    if hidden > 0 && room > 0 {
        let text = fit::beginning("(-v shows all of these facts)", width).into_owned();
        writeln!(out.bytes, "{}", layout.paint(Role::Quiet, text))?;
    }
    Ok(())
}

/// Writes the figures of the layer, and the memory over the whole run.
fn figures(parts: &Parts<'_>, layout: Layout, out: &mut Lines) -> io::Result<()> {
    let (overview, report) = (parts.overview, &parts.main);
    let sums = totals(report.snapshot, overview.domain);
    let of = |at| of_domain(report.subject.summed(), overview.domain, at);
    let (live, at_peak) = (of(At::Live), of(At::Peak));
    let peak = estimated_size(sums.peak, at_peak.size_interval(sums.peak));
    let when = overview
        .course
        .as_ref()
        .and_then(|course| course.described_peak(report.snapshot.meta.begun, at_peak.is_estimate()))
        .unwrap_or_default();
    let current = estimated_size(sums.current, live.size_interval(sums.current));
    let about = about(live.is_estimate());
    // The interval of an estimate takes the place of the blocks.
    let blocks = match live.is_estimate() {
        true => String::new(),
        false => format!(" in {}", counted(sums.blocks, overview.domain.noun())),
    };
    let change = match (overview.recent_change(), overview.recent_length()) {
        (Some(change), Some(length)) => format!(", {about}{} in the last {}", format_size(change, true), span(length)),
        _ => String::new(),
    };
    let peak = format!("peak {peak}{when}");
    let now = match (sums.current, overview.is_over) {
        (0, true) if !live.is_estimate() => "left nothing at the end".to_owned(),
        (_, true) => format!("left {current}{blocks} at the end"),
        (_, false) => format!("live {current}{blocks}{change}"),
    };
    let name = format!("{} memory: ", overview.domain);
    let lines = if overview.is_over { [peak, now] } else { [now, peak] };
    out.say(layout, Role::Size, &format!("{name}{}", lines[0]), MOST_OF_HEAD)?;
    out.say(layout, Role::Size, &format!("{:indent$}{}", "", lines[1], indent = name.len()), MOST_OF_HEAD)?;
    if let Some(course) = &overview.course {
        let width = layout.width.unwrap_or(COLUMNS).min(COLUMNS);
        let line = sparkline(&course.spans, width.saturating_sub(2));
        writeln!(out.bytes, "|{line}|")?;
        writeln!(out.bytes, "{}", layout.paint(Role::Quiet, course.axis(width)))?;
    }
    Ok(())
}

impl Course {
    /// Describes the step with the peak: " at 03:12:05, 12 s after the start"; between two times if
    /// the step is long. None if it is not known. An estimate has an interval in place of the
    /// second time.
    fn described_peak(&self, begun: Begun, is_estimate: bool) -> Option<String> {
        /// Steps up to this length, in milliseconds, are an instant for people.
        const SHORT: u64 = 60_000;
        let (begin, end) = self.peak?;
        match end - begin {
            0..=SHORT if is_estimate => Some(format!(" at {}", self.clock(end))),
            0..=SHORT => {
                let after = begun.since().replacen("since", "after", 1);
                Some(format!(" at {}, {} {after}", self.clock(end), span(end)))
            }
            _ => Some(format!(" between {} and {}", self.clock(begin), self.clock(end))),
        }
    }

    /// A time of the history as a time of day; with the date if the history has several days.
    fn clock(&self, time: u64) -> String {
        let shown = |time: u64| {
            let text = local(self.begun.saturating_add(time), self.utc_offset);
            text.split_once('T').map_or((text.clone(), String::new()), |(date, clock)| {
                (date.to_owned(), clock.chars().take("03:12:05".len()).collect())
            })
        };
        let (date, clock) = shown(time);
        if shown(0).0 == shown(self.end).0 { clock } else { format!("{date} {clock}") }
    }

    /// The line below the memory over time: begin, length and end of the history.
    fn axis(&self, width: usize) -> String {
        /// Histories up to this length, in milliseconds, need no times of day.
        const SHORT: u64 = 60_000;
        let length = span(self.end);
        let (begin, middle, end) = match self.end {
            0..=SHORT => ("0".to_owned(), String::new(), length.clone()),
            _ => (self.clock(0), format!("{length} in all"), self.clock(self.end)),
        };
        match width.checked_sub(begin.len() + end.len()) {
            Some(room) if room > middle.len() + 1 => format!("{begin}{middle:^room$}{end}"),
            _ => fit::beginning(&length, width).into_owned(),
        }
    }
}

/// A line of the program, with its figures.
struct Figures {
    name: String,
    function: Option<String>,
    size: u64,
    count: u64,
    beside: i128,
    is_estimate: bool,
}

/// Writes the lines that matter most: those with the greatest figures, and those with the greatest
/// figures beside.
fn lines_that_matter(parts: &Parts<'_>, layout: Layout, width: usize, out: &mut Lines) -> io::Result<()> {
    let rows = chosen(parts);
    if rows.is_empty() {
        return Ok(());
    }
    out.gap();
    out.say(layout, Role::Quiet, &title(parts), 1)?;
    let main = &parts.main;
    let sizes = |of: &dyn Fn(&Figures) -> u64| rows.iter().map(of).max().unwrap_or(0);
    let besides = sizes(&|row| u64::try_from(row.beside.unsigned_abs()).unwrap_or(u64::MAX));
    let unit = Unit::of(sizes(&|row| row.size).max(besides));
    let cells = |cell: &dyn Fn(&Figures) -> String| rows.iter().map(cell).collect::<Vec<_>>();
    let mark = |row: &Figures| about(row.is_estimate);
    let mut columns = vec![
        Column::new(unit.name(), Role::Size, 9, cells(&|row| format!("{}{}", mark(row), unit.format(row.size)))),
        Column::new("share", Role::Plain, 3, cells(&|row| share(row.size, main.total.size, row.is_estimate))),
    ];
    if let Some(beside) = &parts.beside {
        let (heading, cell): (_, &dyn Fn(&Figures) -> String) = match beside.old {
            Some(_) => ("change", &|row| format!("{}{}", mark(row), unit.format_change(row.beside))),
            None => {
                let left = |row: &Figures| u64::try_from(row.beside).unwrap_or(0);
                ("left", &move |row| format!("{}{}", mark(row), unit.format(left(row))))
            }
        };
        columns.push(Column::new(heading, Role::Size, 8, cells(cell)));
    }
    let noun = format!("{}s", parts.overview.domain.noun());
    columns.push(Column::new(noun, Role::Plain, 5, cells(&|row| format!("{}{}", mark(row), row.count))));
    let table = Table::new(layout, width, columns);
    let places: Vec<String> =
        rows.iter().map(|row| fit::place(&row.name, table.room / 2, table.room).into_owned()).collect();
    let with_functions = rows.iter().zip(&places).filter(|(row, _)| row.function.is_some());
    let widths = with_functions.map(|(_, place)| fit::columns(place));
    let aligned = widths.filter(|&columns| columns <= table.room / 2).max();
    table.head("line", &mut out.bytes)?;
    for (index, (row, place)) in rows.iter().zip(&places).enumerate() {
        let used = aligned.unwrap_or(0).max(fit::columns(place));
        let function = row.function.as_ref().filter(|_| table.room > used + 2);
        let function = function.map_or(String::new(), |function| {
            let shown = fit::function(function, table.room - used - 2);
            format!("{}{}", " ".repeat(used + 2 - fit::columns(place)), layout.paint(Role::Function, shown))
        });
        table.row(index, &format!("{}{function}", layout.paint(Role::Place, place)), &mut out.bytes)?;
    }
    Ok(())
}

fn title(parts: &Parts<'_>) -> String {
    let what = blocks_of(parts.main.view, parts.main.snapshot.meta.begun);
    match (&parts.beside, parts.overview.recent_length()) {
        (Some(_), Some(length)) => format!("Top lines: {what}, and the change in the last {}", span(length)),
        (Some(_), None) => format!("Top lines: {what}, and what was left at the end"),
        (None, _) => format!("Top lines: {what}"),
    }
}

/// Chooses the lines, and sums up the others in a last row.
fn chosen(parts: &Parts<'_>) -> Vec<Figures> {
    let main = &parts.main;
    let named = |report: &Report<'_>, row: &Row| {
        let Place { name, function, .. } = Place::of(report, row);
        (name, function)
    };
    // A line has one row in each report, but its function may differ.
    let key = |row: &Row, (name, function): &(String, Option<String>)| match row.stat.key {
        Key::Symbol(..) => (name.clone(), function.clone()),
        _ => (name.clone(), None),
    };
    let value = |row: &Row| row.change.map_or(i128::from(row.stat.size), |change| change.size);
    let besides: HashMap<_, _> = parts
        .beside
        .iter()
        .flat_map(|report| report.rows.iter().map(move |row| (key(row, &named(report, row)), value(row))))
        .collect();
    let rows: Vec<(_, Figures)> = main
        .rows
        .iter()
        .map(|row| {
            let names = named(main, row);
            let key = key(row, &names);
            let beside = besides.get(&key).copied().unwrap_or(0);
            let (name, function) = names;
            let Row { stat, .. } = row;
            let is_estimate = stat.estimate.is_estimate();
            (key, Figures { name, function, size: stat.size, count: stat.count, beside, is_estimate })
        })
        .collect();
    let mut by_beside: Vec<usize> = (0..rows.len()).collect();
    by_beside.sort_by_key(|&index| std::cmp::Reverse(rows[index].1.beside));
    let whole: i128 = besides.values().filter(|&&value| value > 0).sum();
    let is_much = |&index: &usize| rows[index].1.beside > 0 && rows[index].1.beside * LEAST_BESIDE >= whole;
    let most = ROWS - ROWS_BESIDE;
    let beside = by_beside.iter().copied().filter(is_much).filter(|&index| index >= most).take(ROWS_BESIDE);
    let mut wanted: HashSet<usize> = (0..most).chain(beside).collect();
    (most..rows.len()).for_each(|index| {
        if wanted.len() < ROWS {
            wanted.insert(index);
        }
    });
    let (total, total_beside) = (main.total, parts.beside.as_ref().map_or(0, sum_beside));
    let mut shown = Vec::new();
    let mut others = 0_u64;
    for (index, (_, row)) in rows.into_iter().enumerate() {
        if wanted.contains(&index) { shown.push(row) } else { others += 1 }
    }
    if others > 0 {
        let size: u64 = shown.iter().fold(0, |sum, row| sum.saturating_add(row.size));
        let count: u64 = shown.iter().fold(0, |sum, row| sum.saturating_add(row.count));
        let beside: i128 = shown.iter().map(|row| row.beside).sum();
        shown.push(Figures {
            name: counted(others, "more line"),
            function: None,
            size: total.size.saturating_sub(size),
            count: total.count.saturating_sub(count),
            beside: total_beside - beside,
            is_estimate: total.estimate.is_estimate(),
        });
    }
    shown
}

/// Sum of the figures beside, over all lines.
fn sum_beside(report: &Report<'_>) -> i128 {
    match report.old {
        Some(_) => report.rows.iter().filter_map(|row| row.change).map(|change| change.size).sum(),
        None => report.total.size.into(),
    }
}

/// Writes the commands that lead on, as many as fit into `room` lines.
fn commands(
    parts: &Parts<'_>,
    path: &Path,
    layout: Layout,
    width: usize,
    room: usize,
    out: &mut Lines,
) -> io::Result<()> {
    // A shell takes the explanation for a comment.
    let wanted: Vec<_> =
        wanted_commands(parts).into_iter().map(|(options, why)| (options, format!("# {why}"))).collect();
    let lines_of = |command: &str| fit::columns(command).div_ceil(width.max(1)).max(1);
    let with = |snapshot: &str| -> Vec<(String, &str)> {
        wanted.iter().map(|(options, why)| (format!("report {snapshot} {options}"), why.as_str())).collect()
    };
    let mut commands = word(path).map_or(Vec::new(), |path| with(&path));
    if commands.first().is_none_or(|(first, _)| lines_of(first) > room) {
        commands = with("SNAPSHOT");
    }
    let mut used = 0;
    commands.retain(|(command, _)| {
        used += lines_of(command);
        used <= room
    });
    /// Columns between a command and what it shows.
    const GAP: usize = 3;
    let widest = |of: &dyn Fn(&(String, &str)) -> usize| commands.iter().map(of).max().unwrap_or(0);
    // The column of the explanations leaves room for all of them.
    let column = widest(&|(command, _)| fit::columns(command)) + GAP;
    let column = column.min(width.saturating_sub(widest(&|(_, why)| why.len())));
    for (command, why) in &commands {
        out.broken += lines_of(command) - 1;
        let gap = column.saturating_sub(fit::columns(command)).max(GAP);
        match fit::columns(command) + gap + why.len() <= width {
            true => writeln!(out.bytes, "{command}{:gap$}{}", "", layout.paint(Role::Quiet, why))?,
            false => writeln!(out.bytes, "{command}")?,
        }
    }
    Ok(())
}

/// Returns a path as a word for a shell; none if a shell and a terminal could take it for something
/// else.
fn word(path: &Path) -> Option<String> {
    let text = path.to_str().filter(|text| printable(text) == *text)?;
    Some(if text.starts_with('-') { shell_word(&format!("./{text}")) } else { shell_word(text) })
}

/// Options of the commands that lead on, and what each shows.
fn wanted_commands(parts: &Parts<'_>) -> Vec<(String, &'static str)> {
    let (overview, report) = (parts.overview, &parts.main);
    if report.has_no_records() {
        let is_mapped = report.snapshot.domains.iter().any(|row| row.domain == Domain::Mmap && row.peak > 0);
        let mapped = is_mapped.then(|| ("--domain mmap".to_owned(), "what the program itself has mapped"));
        return [("-v".to_owned(), "all facts of the recording")].into_iter().chain(mapped).collect();
    }
    let domain = match overview.domain == View::default_domain(report.subject.first()) {
        true => String::new(),
        false => format!("--domain {} ", overview.domain),
    };
    let command = |options: &str, why| (format!("{domain}{options}"), why);
    let is_left = parts.beside.is_some();
    match (overview.is_over, overview.course.is_some()) {
        (true, _) => vec![
            command("--at peak --by tree", "the calls that led there"),
            match is_left {
                true => command("--by traceback", "what was left, and its calls"),
                false => command("--at total --by function", "who allocated the most"),
            },
            command("--at peak --format html -o peak.html", "a flame graph"),
        ],
        (false, has_history) => vec![
            command("--by tree", "the calls that led there"),
            match has_history {
                true => command("--leaks", "what grows, whatever the load"),
                false => command("--at peak", "the lines at the peak"),
            },
            command("--format html -o live.html", "a flame graph"),
        ],
    }
}

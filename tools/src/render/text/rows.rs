//! Rows for scripts: a group in a line, or a traceback.

use super::fit;
use super::layout::{Layout, Role};
use super::unit::share;
use super::words::{estimated_count, estimated_size};
use crate::frames::{Frame, TracebackId, offset_of_nameless};
use crate::input::ages::CLASSES;
use crate::query::blame::{Blamer, Starts};
use crate::query::diff::Change;
use crate::query::report::{Report, Row};
use crate::query::statistics::Key;
use crate::render::Sources;
use heapline_shared_format::text::{counted, format_size, printable, size};
use std::io::{self, Write};
use std::path::Path;

/// Writes a group in a line.
pub(super) fn line(
    report: &Report<'_>,
    row: &Row,
    sources: Option<&mut Sources>,
    layout: Layout,
    out: &mut dyn Write,
) -> io::Result<()> {
    let names = &report.tracebacks;
    let Place { name, function, has_others } = Place::of(report, row);
    let others = if has_others { OTHERS } else { "" };
    let detail = function.map_or(String::new(), |name| format!(", {}{others}", layout.paint(Role::Function, name)));
    writeln!(out, "{}: {}{detail}", layout.paint(Role::Place, name), figures(report, row, layout))?;
    match row.stat.key {
        Key::Line(file, lineno) => source_line(sources, names.text(file), lineno, "  ", out),
        _ => Ok(()),
    }
}

/// Words behind a function that is not the only function of a line.
pub(super) const OTHERS: &str = " and others";

/// Name of a group.
pub(super) struct Place {
    /// File and line, or another key.
    pub(super) name: String,
    /// Function of the largest part, for a line.
    pub(super) function: Option<String>,
    /// Whether there are other functions too.
    pub(super) has_others: bool,
}

impl Place {
    pub(super) fn of(report: &Report<'_>, row: &Row) -> Place {
        let names = &report.tracebacks;
        let has_others = row.stat.several_functions && matches!(row.stat.key, Key::Line(..));
        let (name, function) = match row.stat.key {
            Key::Text(text) => (printable(names.text(text)).into_owned(), None),
            Key::Line(file, lineno) => {
                let function = printable(names.text(row.stat.frame.function)).into_owned();
                (format!("{}:{lineno}", printable(names.text(file))), Some(function))
            }
            Key::Symbol(module, function) => {
                let (module, function) = (printable(names.text(module)), printable(names.text(function)));
                match offset_of_nameless(&module, &function) {
                    Some(offset) => (format!("{module}{offset}"), None),
                    None => (module.into_owned(), Some(function.into_owned())),
                }
            }
            Key::Size(size) => (format!("{}s of {size} B", report.view.domain.noun()), None),
            Key::Age(class) => (age(class).to_owned(), None),
            Key::Traceback(_) => (String::new(), None),
        };
        Place { name, function, has_others }
    }

    /// Width of the function and of the words behind; none without a function.
    pub(super) fn columns_of_function(&self) -> Option<usize> {
        let others = if self.has_others { OTHERS.len() } else { 0 };
        self.function.as_ref().map(|function| fit::columns(function) + others)
    }
}

/// Name of a class of age.
fn age(class: u32) -> &'static str {
    CLASSES.get(class as usize).copied().unwrap_or("unknown")
}

/// Formats `419.8 KiB in 12 blocks, 50.0 %`, with changes in a diff.
fn figures(report: &Report<'_>, row: &Row, layout: Layout) -> String {
    let stat = &row.stat;
    let size = estimated_size(stat.size, stat.estimate.size_interval(stat.size));
    let size = layout.paint(Role::Size, size);
    let blocks = estimated_count(stat.count, report.view.domain.noun(), stat.estimate.count_interval());
    match row.change {
        None => format!("{size} in {blocks}{}", of_total(report, row)),
        Some(change) => format!("{size} ({}) in {blocks} ({:+})", changed(&change), change.count),
    }
}

/// Formats the share of a row in the total: `, 50.0 %`.
pub(super) fn of_total(report: &Report<'_>, row: &Row) -> String {
    let share = share(row.stat.size, report.total.size, row.stat.estimate.is_estimate());
    if share.is_empty() { share } else { format!(", {share}") }
}

/// Formats the change of a size.
pub(super) fn changed(change: &Change) -> String {
    let bytes = format_size(change.size, true);
    match change.doubt {
        None => bytes,
        Some(doubt) => format!("~{bytes} \u{b1} {}", size(doubt)),
    }
}

/// Search for the frames of a traceback that have a mark or are left out.
pub(super) struct Marks<'r> {
    blamer: Option<Blamer<'r>>,
    starts: Option<Starts>,
}

/// The frames of a traceback for people.
pub(super) struct Frames {
    /// The frames, the most recent first.
    pub(super) recent_first: Vec<Frame>,
    /// Index of the blamed frame.
    pub(super) blamed: usize,
}

impl<'r> Marks<'r> {
    pub(super) fn new(report: &'r Report<'_>) -> Marks<'r> {
        Marks { blamer: report.blamer(), starts: (!report.request.start_code).then(Starts::default) }
    }

    /// Returns the frames of a traceback, without the code that starts a program or a thread.
    pub(super) fn frames(&mut self, report: &Report<'_>, id: TracebackId) -> Frames {
        let names = &report.tracebacks;
        let mut frames = names.oldest_first(id);
        let starts = self.starts.as_mut().map_or(0, |starts| starts.count(names, &frames));
        frames.drain(..starts);
        frames.reverse();
        Frames { recent_first: frames, blamed: self.blamer.as_mut().map_or(0, |blamer| blamer.depth(names, id)) }
    }
}

/// Writes a traceback as tracemalloc's `Traceback.format(most_recent_first=True)` does. A mark
/// shows the blamed frame.
pub(super) fn traceback(
    report: &Report<'_>,
    row: &Row,
    Frames { recent_first, blamed }: &Frames,
    mut sources: Option<&mut Sources>,
    layout: Layout,
    out: &mut dyn Write,
) -> io::Result<()> {
    let names = &report.tracebacks;
    let stat = &row.stat;
    let noun = format!("memory {}", report.view.domain.noun());
    let blocks = estimated_count(stat.count, &noun, stat.estimate.count_interval());
    let size = estimated_size(stat.size, stat.estimate.size_interval(stat.size));
    let size = layout.paint(Role::Size, size);
    match row.change {
        None => writeln!(out, "{blocks}: {size}{}", of_total(report, row))?,
        Some(change) => writeln!(out, "{blocks} ({:+}): {size} ({})", change.count, changed(&change))?,
    }
    for (depth, Frame { filename, lineno, function, module, .. }) in recent_first.iter().enumerate() {
        let mark = layout.paint(Role::Loud, if depth == *blamed { ">" } else { " " });
        let (file, function) = (names.text(*filename), printable(names.text(*function)));
        let module = match Path::new(names.text(*module)).file_name() {
            Some(name) => format!(" [{}]", printable(&name.to_string_lossy())),
            None => String::new(),
        };
        let place = layout.paint(Role::Place, printable(file));
        let function = layout.paint(Role::Function, function);
        writeln!(out, "{mark} File \"{place}\", line {lineno}, in {function}{module}")?;
        source_line(sources.as_deref_mut(), file, *lineno, "    ", out)?;
    }
    match missing(report, row) {
        Some(text) => writeln!(out, "  ({text})"),
        None => Ok(()),
    }
}

/// Says which older frames are missing; none if there are all.
pub(super) fn missing(report: &Report<'_>, row: &Row) -> Option<String> {
    let cut = u64::from(row.stat.total_nframe).saturating_sub(report.snapshot.meta.nframe.into());
    if row.stat.truncated {
        Some("older frames are unknown: the stack could not be walked further".to_owned())
    } else {
        (cut > 0).then(|| format!("{} not kept: see --nframe", counted(cut, "older frame")))
    }
}

/// Writes a source line, if the file is there.
pub(super) fn source_line(
    sources: Option<&mut Sources>,
    filename: &str,
    lineno: u32,
    indent: &str,
    out: &mut dyn Write,
) -> io::Result<()> {
    match sources.and_then(|sources| sources.line(filename, lineno)) {
        Some(line) => writeln!(out, "{indent}{}", printable(line)),
        None => Ok(()),
    }
}

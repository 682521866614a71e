//! Rows: a group in a line, or a traceback.

use super::super::source::Sources;
use super::words::{estimated_count, estimated_size};
use crate::frames::Frame;
use crate::query::blame::{Blamer, Starts};
use crate::query::diff::Change;
use crate::query::report::{Report, Row};
use crate::query::statistics::Key;
use heapline_shared_format::text::{counted, format_size, printable, size};
use std::io::{self, Write};
use std::path::Path;

/// Writes a group in a line.
pub(super) fn line(
    report: &Report<'_>,
    row: &Row,
    sources: Option<&mut Sources>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let names = &report.tracebacks;
    let frame = &row.stat.frame;
    let (name, detail) = match row.stat.key {
        Key::Text(text) => (printable(names.text(text)).into_owned(), String::new()),
        Key::Line(file, lineno) => {
            let file = printable(names.text(file)).into_owned();
            let others = if row.stat.several_functions { " and others" } else { "" };
            (format!("{file}:{lineno}"), format!(", {}{others}", printable(names.text(frame.function))))
        }
        Key::Symbol(module, function) => {
            let (module, function) = (printable(names.text(module)), printable(names.text(function)));
            let file = module.rsplit('/').next().unwrap_or_default();
            match function.strip_prefix(file).filter(|offset| offset.starts_with("+0x")) {
                Some(offset) => (format!("{module}{offset}"), String::new()),
                None => (format!("{module}: {function}"), String::new()),
            }
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
pub(super) fn figures(row: &Row) -> String {
    let stat = &row.stat;
    let size = estimated_size(stat.size, stat.estimate.size_interval(stat.size));
    let blocks = estimated_count(stat.count, "block", stat.estimate.count_interval());
    match row.change {
        None => format!("{size} in {blocks}"),
        Some(change) => format!("{size} ({}) in {blocks} ({:+})", changed(&change), change.count),
    }
}

/// Formats the change of a size.
pub(super) fn changed(change: &Change) -> String {
    let bytes = format_size(change.size, true);
    match change.doubt {
        None => bytes,
        Some(doubt) => format!("~{bytes} \u{b1} {}", size(doubt)),
    }
}

/// Searches for the frames of a traceback that have a mark or are left out.
pub(super) struct Marks<'r> {
    blamer: Option<Blamer<'r>>,
    starts: Option<Starts>,
}

impl<'r> Marks<'r> {
    pub(super) fn new(report: &'r Report<'_>) -> Marks<'r> {
        Marks { blamer: report.blamer(), starts: (!report.request.start_code).then(Starts::default) }
    }
}

/// Writes a traceback, the most recent frame first, without the code that starts a program or a
/// thread. A mark shows the blamed frame.
pub(super) fn traceback(
    report: &Report<'_>,
    row: &Row,
    marks: &mut Marks<'_>,
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
    let Key::Traceback(id) = row.stat.key else { return Ok(()) };
    let frames = names.oldest_first(id);
    let first = marks.starts.as_mut().map_or(0, |starts| starts.count(names, &frames));
    let blamed = marks.blamer.as_mut().map_or(0, |blamer| blamer.depth(names, id));
    for (index, Frame { filename, lineno, function, module, .. }) in frames[first..].iter().rev().enumerate() {
        let mark = if index == blamed { ">" } else { " " };
        let (file, function) = (names.text(*filename), printable(names.text(*function)));
        let module = match Path::new(names.text(*module)).file_name() {
            Some(name) => format!(" [{}]", printable(&name.to_string_lossy())),
            None => String::new(),
        };
        writeln!(out, "{mark} File \"{}\", line {lineno}, in {function}{module}", printable(file))?;
        source_line(sources.as_deref_mut(), file, *lineno, "    ", out)?;
    }
    let cut = u64::from(row.stat.total_nframe).saturating_sub(report.snapshot.meta.nframe.into());
    if row.stat.truncated {
        writeln!(out, "  (older frames are unknown: the stack could not be walked further)")?;
    } else if cut > 0 {
        writeln!(out, "  ({} not kept: see --nframe)", counted(cut, "older frame"))?;
    }
    Ok(())
}

pub(super) fn source_line(
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

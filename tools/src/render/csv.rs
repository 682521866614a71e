//! The report for spreadsheets: comments on memory not seen, a head row, then a row per group.
//! Quoted as in RFC 4180, with plain newlines.

use crate::query::report::{Report, Row};
use crate::query::statistics::{By, Key};
use heapline_shared_format::text::printable;
use std::borrow::Cow;
use std::io::{self, Write};

/// Writes the report.
///
/// # Errors
///
/// Passes on errors of `out`.
pub fn write(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    comments(report, out)?;
    let mut head = vec!["size", "count"];
    if report.is_sampled() {
        head.extend(["size_from", "size_to", "count_from", "count_to"]);
    }
    if report.old.is_some() {
        head.extend(["size_diff", "count_diff"]);
        head.extend(report.is_sampled().then_some("size_diff_margin"));
    }
    head.extend(match report.request.by {
        By::Filename => &["filename"][..],
        By::Lineno => &["filename", "lineno", "function", "module"],
        By::Function => &["function"],
        By::Module => &["module"],
        By::Traceback => &["total_nframe", "traceback"],
        By::Size => &["block_size"],
        By::Thread => &["thread"],
    });
    writeln!(out, "{}", head.join(","))?;
    for row in report.shown() {
        let cells = cells(report, row);
        writeln!(out, "{}", cells.iter().map(|cell| quoted(cell)).collect::<Vec<_>>().join(","))?;
    }
    Ok(())
}

/// Writes comments before the first row: causes of memory not seen, and the interval of a total
/// without samples. Writes nothing if there are none.
fn comments(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    for cause in &report.snapshot.meta.unseen {
        writeln!(out, "# NOT SEEN: {}", printable(&cause.sentence()))?;
    }
    match report.total.estimate.size_interval(report.total.size) {
        Some((_, most)) if report.total.size == 0 => {
            writeln!(out, "# No sample was met: an estimate of 0 bytes, with a 95 % interval from 0 to {most}")
        }
        _ => Ok(()),
    }
}

fn cells(report: &Report<'_>, row: &Row) -> Vec<String> {
    let stat = &row.stat;
    let text = |id| harmless(report.tracebacks.text(id));
    let mut cells = vec![stat.size.to_string(), stat.count.to_string()];
    if report.is_sampled() {
        let (size_from, size_to) = stat.estimate.size_interval(stat.size).unwrap_or((stat.size, stat.size));
        let (count_from, count_to) = stat.estimate.count_interval().unwrap_or((stat.count, stat.count));
        cells.extend([size_from, size_to, count_from, count_to].map(|n| n.to_string()));
    }
    if let Some(change) = row.change {
        cells.extend([change.size.to_string(), change.count.to_string()]);
        cells.extend(report.is_sampled().then(|| change.doubt.unwrap_or(0).to_string()));
    }
    match stat.key {
        Key::Text(name) => cells.push(text(name)),
        Key::Size(size) => cells.push(size.to_string()),
        Key::Line(file, lineno) => {
            cells.extend([text(file), lineno.to_string(), text(stat.frame.function), text(stat.frame.module)])
        }
        Key::Traceback(id) => {
            let frames = report.tracebacks.oldest_first(id);
            let places = frames.iter().map(|frame| format!("{}:{}", text(frame.filename), frame.lineno));
            cells.extend([stat.total_nframe.to_string(), places.collect::<Vec<_>>().join(";")]);
        }
    }
    cells
}

/// Makes a name harmless. Control characters are escaped for terminals. An apostrophe is put before
/// a formula of a spreadsheet.
fn harmless(name: &str) -> String {
    let is_formula = name.starts_with(['=', '+', '-', '@']);
    format!("{}{}", if is_formula { "'" } else { "" }, printable(name))
}

fn quoted(cell: &str) -> Cow<'_, str> {
    if cell.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\"")).into()
    } else {
        cell.into()
    }
}

#[cfg(test)]
mod tests {
    use super::{harmless, quoted};

    #[test]
    fn names_do_nothing() {
        assert_eq!(harmless("f<a, b>"), "f<a, b>");
        assert_eq!(harmless("=HYPERLINK(1)"), "'=HYPERLINK(1)");
        assert_eq!(harmless("a\u{1b}[2J\nb"), "a\\u{1b}[2J\\nb");
    }

    #[test]
    fn cells_are_quoted_where_they_must_be() {
        assert_eq!(quoted("a b"), "a b");
        assert_eq!(quoted("f<a, b>"), "\"f<a, b>\"");
        assert_eq!(quoted("operator\"\"_s"), "\"operator\"\"\"\"_s\"");
        assert_eq!(quoted("a\nb"), "\"a\nb\"");
    }
}

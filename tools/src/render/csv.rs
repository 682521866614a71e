//! The report for spreadsheets: comments on memory not seen, a head row, then a row per group.
//! Quoted as in RFC 4180, with plain newlines.

use crate::query::diff::Change;
use crate::query::estimate::Estimate;
use crate::query::report::{Report, Row};
use crate::query::statistics::{By, Key};
use crate::query::tree::{Branch, What, branches};
use crate::render::text::suppressed;
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
    if report.growth.is_some() {
        head.extend(["bytes_per_hour", "certainty"]);
    }
    head.extend(match report.request.by {
        By::Filename => &["filename"][..],
        By::Lineno => &["filename", "lineno", "function", "module"],
        By::Function => &["function"],
        By::Module => &["module"],
        By::Traceback => &["total_nframe", "traceback"],
        By::Tree if report.request.fold => {
            &["own_size", "own_count", "depth", "passes", "others", "filename", "lineno", "function", "module"]
        }
        By::Tree => &["own_size", "own_count", "depth", "others", "filename", "lineno", "function", "module"],
        By::Size => &["block_size"],
        By::Thread => &["thread"],
    });
    writeln!(out, "{}", head.join(","))?;
    if report.request.by == By::Tree {
        for branch in branches(report) {
            let cells = branch_cells(report, &branch);
            writeln!(out, "{}", cells.iter().map(|cell| quoted(cell)).collect::<Vec<_>>().join(","))?;
        }
        return Ok(());
    }
    for row in report.shown() {
        let cells = cells(report, row);
        writeln!(out, "{}", cells.iter().map(|cell| quoted(cell)).collect::<Vec<_>>().join(","))?;
    }
    Ok(())
}

/// Writes comments before the first row: causes of memory not seen, suppressed rows, and the
/// interval of a total without samples. Writes nothing if there are none.
fn comments(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    for cause in &report.snapshot.meta.unseen {
        writeln!(out, "# NOT SEEN: {}", printable(&cause.sentence()))?;
    }
    for suppressed in suppressed(report) {
        writeln!(out, "# {suppressed}")?;
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
    let mut cells = figures(report, stat.size, stat.count, &stat.estimate, row.change);
    if let Some(growth) = report.growth_of(row) {
        cells.extend([format!("{:.0}", growth.per_hour), format!("{:.4}", growth.certainty)]);
    }
    match stat.key {
        Key::Text(name) => cells.push(text(name)),
        Key::Size(size) => cells.push(size.to_string()),
        Key::Symbol(module, function) => cells.extend([text(module), "0".to_string(), text(function), text(module)]),
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

fn branch_cells(report: &Report<'_>, branch: &Branch) -> Vec<String> {
    let text = |id| harmless(report.tracebacks.text(id));
    let Branch { sums, own, passes, .. } = branch;
    let mut cells = figures(report, sums.size, sums.blocks(), &sums.estimate, sums.change);
    cells.extend([own.size.to_string(), own.count.to_string(), branch.depth.to_string()]);
    if report.request.fold {
        let is_frame = matches!(branch.what, What::Frame(_));
        cells.push(if is_frame { passes.to_string() } else { String::new() });
    }
    cells.extend(match branch.what {
        What::Others(count) => [count.to_string(), String::new(), String::new(), String::new(), String::new()],
        What::Frame(frame) => {
            let (lineno, function) = (frame.lineno.to_string(), text(frame.function));
            [String::new(), text(frame.filename), lineno, function, text(frame.module)]
        }
    });
    cells
}

/// Cells of size and count, with intervals if samples were recorded, and with changes in a diff.
fn figures(report: &Report<'_>, size: u64, count: u64, estimate: &Estimate, change: Option<Change>) -> Vec<String> {
    let mut cells = vec![size.to_string(), count.to_string()];
    if report.is_sampled() {
        let (size_from, size_to) = estimate.size_interval(size).unwrap_or((size, size));
        let (count_from, count_to) = estimate.count_interval().unwrap_or((count, count));
        cells.extend([size_from, size_to, count_from, count_to].map(|n| n.to_string()));
    }
    if let Some(change) = change {
        cells.extend([change.size.to_string(), change.count.to_string()]);
        cells.extend(report.is_sampled().then(|| change.doubt.unwrap_or(0).to_string()));
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

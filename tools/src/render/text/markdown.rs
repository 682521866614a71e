//! The report as Markdown, for a comment on a change: a sentence, the facts to know first, a table.
//!
//! The tables are GitHub's. A call tree is a list, with a chain of calls in one item. Names are
//! code, so no name is taken for a mark, a link or a tag.

use super::rows::{Frames, Marks, Place};
use super::unit::share;
use super::words::{about, end, estimated_size};
use super::{concerns, noun, over_time, per_hour, suppressed, sure, what};
use crate::frames::Frame;
use crate::query::report::{Report, Row};
use crate::query::statistics::{By, Key};
use crate::query::tree::{Branch, What, branches};
use heapline_shared_format::text::{counted, format_size, printable, size};
use std::io::{self, Write};

/// Columns of the memory over the whole history.
const COURSE: usize = 16;

/// Writes the report.
///
/// # Errors
///
/// Passes on errors of `out`.
pub fn markdown(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "**{}**\n", escaped(&sentence(report)))?;
    writeln!(out, "{}, {}\n", code(&report.snapshot.meta.command), escaped(&subject(report)))?;
    for concern in concerns(report) {
        writeln!(out, "> {}\n", escaped(&printable(&concern)))?;
    }
    for text in suppressed(report) {
        writeln!(out, "{}\n", escaped(&text))?;
    }
    match report.request.by {
        By::Tree => list(report, out),
        _ if report.rows.is_empty() => writeln!(out, "No {}s.", noun(report.request.by)),
        _ => table(report, out),
    }
}

/// The answer in a sentence: "+2023 KiB to 2027 KiB in 6001 blocks: native memory live at the
/// peak".
fn sentence(report: &Report<'_>) -> String {
    let total = &report.total;
    let size = estimated_size(total.size, total.estimate.size_interval(total.size));
    let mark = about(total.estimate.is_estimate());
    let blocks = counted(total.count, report.view.domain.noun());
    let change = report.growth_in_view().filter(|_| !report.request.cumulative);
    let change = change.map_or(String::new(), |change| format!("{mark}{} to ", format_size(change, true)));
    format!("{change}{size} in {mark}{blocks}: {}", what(report))
}

fn subject(report: &Report<'_>) -> String {
    let meta = &report.snapshot.meta;
    match report.subject.processes().count() {
        0 => format!("process {}: {}; snapshot of {}", meta.pid, end(meta), printable(&meta.taken_at)),
        count => format!("{}; snapshot of {}", counted(count as u64, "process"), printable(&meta.taken_at)),
    }
}

/// Writes the rows as a table.
fn table(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let is_diff = report.old.is_some();
    let blocks = format!("{}s", report.view.domain.noun());
    let mut heads = vec!["#", "size"];
    heads.extend(if is_diff { &["change"][..] } else { &["share"] });
    heads.push(&blocks);
    heads.extend(is_diff.then_some("change"));
    heads.extend(report.growth.iter().flat_map(|_| ["an hour", "sure", "over the run"]));
    let figures = heads.len();
    heads.push(noun(report.request.by));
    let has_functions = report.request.by == By::Lineno;
    heads.extend(has_functions.then_some("function"));
    writeln!(out, "| {} |", heads.join(" | "))?;
    let rule = |index| if index < figures { "---:" } else { "---" };
    writeln!(out, "| {} |", (0..heads.len()).map(rule).collect::<Vec<_>>().join(" | "))?;
    let mut marks = Marks::new(report);
    for (index, row) in report.shown().iter().enumerate() {
        let mut cells = vec![(index + 1).to_string()];
        cells.extend(figures_of(report, row));
        let Place { name, function, .. } = Place::of(report, row);
        match row.stat.key {
            Key::Traceback(id) => cells.push(calls(report, &marks.frames(report, id))),
            _ => cells.push(code(&name)),
        }
        if has_functions {
            cells.push(function.map_or(String::new(), |function| code(&function)));
        }
        // Even in code a bar ends a cell.
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        writeln!(out, "| {} |", cells.join(" | "))?;
    }
    match report.others().len() {
        0 => Ok(()),
        others => {
            writeln!(out, "\n{} not shown.", counted(others as u64, &format!("more {}", noun(report.request.by))))
        }
    }
}

fn figures_of(report: &Report<'_>, row: &Row) -> Vec<String> {
    let stat = &row.stat;
    let count = format!("{}{}", escaped(about(stat.estimate.is_estimate())), stat.count);
    let mut cells = vec![escaped(&estimated_size(stat.size, stat.estimate.size_interval(stat.size)))];
    match row.change {
        Some(change) => {
            let mark = escaped(about(change.doubt.is_some()));
            cells.extend([
                format!("{mark}{}", format_size(change.size, true)),
                count,
                format!("{mark}{:+}", change.count),
            ]);
        }
        None => {
            let share = share(stat.size, report.total.size, stat.estimate.is_estimate());
            cells.extend([escaped(&share), count]);
        }
    }
    if let Some(growth) = report.growth_of(row) {
        cells.extend([per_hour(growth), sure(growth), code(&over_time(growth, COURSE))]);
    }
    cells
}

/// The calls of a traceback, the most recent first.
fn calls(report: &Report<'_>, Frames { recent_first, .. }: &Frames) -> String {
    recent_first.iter().map(|frame| call(report, frame)).collect::<Vec<_>>().join("<br>")
}

fn call(report: &Report<'_>, frame: &Frame) -> String {
    let names = &report.tracebacks;
    let file = names.text(frame.filename);
    let place = if frame.is_unlined() { file.to_owned() } else { format!("{file}:{}", frame.lineno) };
    format!("{} {}", code(names.text(frame.function)), code(&place))
}

/// Writes the call tree as a list.
fn list(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let mut above: Option<String> = None;
    for branch in branches(report) {
        let name = match branch.what {
            What::Frame(frame) => call(report, &frame),
            What::Others(count) => counted(count as u64, "other"),
        };
        let passes = if branch.passes > 1 { format!(", up to {} times", branch.passes) } else { String::new() };
        let amount = escaped(&amount(report, &branch));
        let is_same = above.as_ref() == Some(&amount);
        match (branch.is_only, is_same) {
            (true, true) => write!(out, " → {name}{passes}")?,
            (true, false) => write!(out, " → {amount}: {name}{passes}")?,
            (false, _) => {
                let gap = if above.is_some() { "\n" } else { "" };
                write!(out, "{gap}{:indent$}- {amount}: {name}{passes}", "", indent = 2 * branch.level)?;
            }
        }
        above = Some(amount);
    }
    if above.is_some() { writeln!(out) } else { writeln!(out, "No calls.") }
}

fn amount(report: &Report<'_>, branch: &Branch) -> String {
    let sums = &branch.sums;
    let mark = about(sums.estimate.is_estimate());
    match sums.change {
        Some(change) => format!("{mark}{} to {mark}{}", format_size(change.size, true), size(sums.size)),
        None => {
            let share = share(sums.size, report.total.size, sums.estimate.is_estimate());
            format!("{mark}{}, {share}", size(sums.size))
        }
    }
}

/// Returns a name as code.
fn code(text: &str) -> String {
    let text = printable(text);
    if text.is_empty() {
        return String::new();
    }
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    // A space keeps a mark of the text apart from the fence.
    let gap = if text.starts_with('`') || text.ends_with('`') { " " } else { "" };
    format!("{fence}{gap}{text}{gap}{fence}")
}

/// Returns a text whose characters are no marks of Markdown.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' | '~' | '&' | '@') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{code, escaped};

    #[test]
    fn names_are_no_marks() {
        assert_eq!(code("f<a|b>"), "`f<a|b>`");
        assert_eq!(code("a`b``c"), "```a`b``c```");
        assert_eq!(code("`a"), "`` `a ``");
        assert_eq!(code("a\nb"), "`a\\nb`");
        assert_eq!(code(""), "");
        assert_eq!(escaped("~4 KiB of <b>*a_b*"), "\\~4 KiB of \\<b\\>\\*a\\_b\\*");
    }
}

//! The call tree: a line for each frame, with the blocks below the frame.
//!
//! A dash begins each branch of a fork. The lines below a dash, without a dash and at the same
//! indentation, are a chain: each frame is the only branch of the line above.

use super::super::source::Sources;
use super::rows::{changed, source_line};
use crate::query::report::Report;
use crate::query::tree::{Branch, Own, Sums, What, branches};
use heapline_shared_format::text::{counted, printable, size};
use std::io::{self, Write};

/// Greatest indentation in levels. Deeper levels are not indented further.
const MOST_LEVELS: usize = 24;

/// Writes the tree.
pub(super) fn tree(report: &Report<'_>, mut sources: Option<&mut Sources>, out: &mut dyn Write) -> io::Result<()> {
    let branches = branches(report);
    let figures: Vec<[String; 3]> = branches.iter().map(|branch| figures(report, &branch.sums)).collect();
    let head = ["size", "share", "blocks"];
    let width = |column: usize| {
        let cells = figures.iter().map(|cells| cells[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2)];
    if !branches.is_empty() {
        writeln!(out, "{:>a$} {:>b$} {:>c$}", head[0], head[1], head[2], a = widths[0], b = widths[1], c = widths[2])?;
    }
    for (branch, [bytes, share, blocks]) in branches.iter().zip(&figures) {
        let [a, b, c] = widths;
        let indent = 2 * branch.level.min(MOST_LEVELS);
        let dash = if branch.is_only { "  " } else { "- " };
        writeln!(out, "{bytes:>a$} {share:>b$} {blocks:>c$}  {:indent$}{dash}{}", "", name(report, branch))?;
        if let What::Frame(frame) = branch.what {
            let margin = format!("{:1$}", "", widths.iter().sum::<usize>() + indent + 8);
            source_line(sources.as_deref_mut(), report.tracebacks.text(frame.filename), frame.lineno, &margin, out)?;
        }
    }
    Ok(())
}

fn figures(report: &Report<'_>, sums: &Sums) -> [String; 3] {
    let about = if sums.estimate.is_estimate() { "~" } else { "" };
    let (bytes, blocks) = (size(sums.size), sums.blocks());
    let (bytes, blocks) = match sums.change {
        None => (format!("{about}{bytes}"), format!("{about}{blocks}")),
        Some(change) => {
            (format!("{about}{bytes} ({})", changed(&change)), format!("{about}{blocks} ({:+})", change.count))
        }
    };
    [bytes, share(sums.size, report.total.size), blocks]
}

/// Formats a share of the total: `12.3 %`.
fn share(part: u64, total: u64) -> String {
    if total == 0 {
        return "-".to_string();
    }
    let tenths = u128::from(part).saturating_mul(1000).saturating_add(u128::from(total / 2)) / u128::from(total);
    format!("{}.{} %", tenths / 10, tenths % 10)
}

fn name(report: &Report<'_>, branch: &Branch) -> String {
    let names = &report.tracebacks;
    let frame = match branch.what {
        What::Others(1) => return "1 other".to_string(),
        What::Others(count) => return format!("{count} others"),
        What::Frame(frame) => frame,
    };
    let (function, file) = (printable(names.text(frame.function)), printable(names.text(frame.filename)));
    let place = if frame.is_unlined() { file.into_owned() } else { format!("{file}:{}", frame.lineno) };
    let Own { size: bytes, count } = branch.own;
    let own = match count != 0 && count != branch.sums.blocks() {
        true => format!(", {} in {} by itself", size(bytes), counted(count, "block")),
        false => String::new(),
    };
    format!("{function} ({place}){own}")
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn shares_have_a_tenth() {
        assert_eq!(share(1, 3), "33.3 %");
        assert_eq!(share(2, 3), "66.7 %");
        assert_eq!(share(3, 3), "100.0 %");
        assert_eq!(share(u64::MAX, u64::MAX), "100.0 %");
        assert_eq!(share(0, 0), "-");
    }
}

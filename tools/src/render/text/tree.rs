//! The call tree: a line for each frame, with the blocks below the frame.
//!
//! A dash begins each branch of a fork. The lines below a dash, without a dash and at the same
//! indentation, are a chain: each frame is the only branch of the line above.

use super::super::source::Sources;
use super::fit;
use super::layout::{Layout, Role};
use super::rows::changed;
use super::screen::{NARROWEST_FUNCTION, source_line};
use super::table::{Column, Table};
use super::unit::{Unit, share};
use super::words::about;
use crate::frames::StringId;
use crate::query::diff::Change;
use crate::query::report::Report;
use crate::query::tree::{Branch, Own, Sums, What, branches};
use heapline_shared_format::text::{counted, printable, size};
use std::collections::HashSet;
use std::io::{self, Write};

/// Greatest indentation in levels. Deeper levels are not indented further.
const MOST_LEVELS: usize = 24;

/// Writes the tree.
pub(super) fn tree(
    report: &Report<'_>,
    mut sources: Option<&mut Sources>,
    layout: Layout,
    out: &mut dyn Write,
) -> io::Result<()> {
    let branches = branches(report);
    if branches.is_empty() {
        return Ok(());
    }
    let width = layout.width.unwrap_or(usize::MAX);
    let table = Table::new(layout, width, columns(report, layout, &branches));
    table.head("call", out)?;
    // The calls keep most of a narrow terminal.
    let levels = MOST_LEVELS.min(table.room / 6);
    let mut recursion = Recursion::default();
    for (index, branch) in branches.iter().enumerate() {
        recursion.look(branch);
        let indent = 2 * branch.level.min(levels);
        let dash = if branch.is_only { "  " } else { "- " };
        let room = layout.most(table.room.saturating_sub(indent + dash.len()));
        table.row(index, &format!("{:indent$}{dash}{}", "", call(report, branch, layout, room)), out)?;
        if let What::Frame(frame) = branch.what {
            let indent = table.indent() + indent + 4;
            let file = report.tracebacks.text(frame.filename);
            source_line(sources.as_deref_mut(), file, frame.lineno, layout, indent, width, out)?;
        }
    }
    match recursion.was_met {
        true => layout.say(Role::Quiet, "Recursion: --fold-recursion shows each cycle once", out),
        false => Ok(()),
    }
}

/// Place of a frame: file, line and function.
type Place = (StringId, u32, StringId);

/// Search for frames below themselves.
#[derive(Default)]
struct Recursion {
    /// The places of the present way, and the same as a set.
    way: Vec<Place>,
    places: HashSet<Place>,
    was_met: bool,
}

impl Recursion {
    fn look(&mut self, branch: &Branch) {
        let What::Frame(frame) = branch.what else { return };
        // The first recursion is enough.
        if self.was_met {
            return;
        }
        for left in self.way.drain(branch.depth..) {
            self.places.remove(&left);
        }
        let place = (frame.filename, frame.lineno, frame.function);
        self.was_met = !self.places.insert(place);
        self.way.push(place);
    }
}

/// Formats the sizes of a tree: with one unit on a terminal, for scripts each with a unit.
enum Sizes {
    Common(Unit),
    Each,
}

impl Sizes {
    fn heading(&self) -> &'static str {
        match self {
            Sizes::Common(unit) => unit.name(),
            Sizes::Each => "size",
        }
    }

    fn format(&self, bytes: u64) -> String {
        match self {
            Sizes::Common(unit) => unit.format(bytes),
            Sizes::Each => size(bytes),
        }
    }

    fn format_change(&self, change: &Change) -> String {
        match self {
            Sizes::Common(unit) => unit.format_doubtful(change),
            Sizes::Each => changed(change),
        }
    }
}

fn columns(report: &Report<'_>, layout: Layout, branches: &[Branch]) -> Vec<Column> {
    let greatest = branches.iter().map(|branch| branch.sums.size).max().unwrap_or(0);
    let sizes = if layout.width.is_some() { Sizes::Common(Unit::of(greatest)) } else { Sizes::Each };
    let cells = |cell: &dyn Fn(&Sums) -> String| branches.iter().map(|branch| cell(&branch.sums)).collect::<Vec<_>>();
    let of_change = |cell: &dyn Fn(&Change) -> String| cells(&|sums| sums.change.as_ref().map_or(String::new(), cell));
    let mark = |sums: &Sums| about(sums.estimate.is_estimate());
    let of_total = |sums: &Sums| share(sums.size, report.total.size, sums.estimate.is_estimate());
    vec![
        Column::new(
            sizes.heading(),
            Role::Size,
            9,
            cells(&|sums| format!("{}{}", mark(sums), sizes.format(sums.size))),
        ),
        Column::new("change", Role::Size, 8, of_change(&|change| sizes.format_change(change))),
        Column::new("share", Role::Plain, 3, cells(&of_total)),
        Column::new(
            format!("{}s", report.view.domain.noun()),
            Role::Plain,
            5,
            cells(&|sums| format!("{}{}", mark(sums), sums.blocks())),
        ),
        Column::new("change", Role::Plain, 2, of_change(&|change| format!("{:+}", change.count))),
    ]
}

/// Names a branch in `room` columns: `parse (orders.c:17), 46.9 KiB in 2000 blocks by itself`. The
/// function gives way first, then the place, at last the blocks of the branch itself.
fn call(report: &Report<'_>, branch: &Branch, layout: Layout, room: usize) -> String {
    let names = &report.tracebacks;
    let frame = match branch.what {
        What::Others(count) => return fit::beginning(&counted(count as u64, "other"), room).into_owned(),
        What::Frame(frame) => frame,
    };
    let (function, file) = (printable(names.text(frame.function)), printable(names.text(frame.filename)));
    let place = if frame.is_unlined() { file.into_owned() } else { format!("{file}:{}", frame.lineno) };
    let Own { size: bytes, count } = branch.own;
    let passes = if branch.passes > 1 { format!(", up to {} times", branch.passes) } else { String::new() };
    let own = match count != 0 && count != branch.sums.blocks() {
        true => format!(", {} in {} by itself", size(bytes), counted(count, report.view.domain.noun())),
        false => String::new(),
    };
    let own = format!("{passes}{own}");
    let own = if fit::columns(&own) <= room / 2 { own } else { String::new() };
    let room = room - fit::columns(&own);
    let place = fit::place(&place, room / 2, room);
    let left = room.saturating_sub(fit::columns(&place) + " ()".len());
    if left < NARROWEST_FUNCTION {
        return format!("{}{own}", layout.paint(Role::Function, fit::function(&function, room)));
    }
    let function = layout.paint(Role::Function, fit::function(&function, left));
    format!("{function} ({}){own}", layout.paint(Role::Place, place))
}

//! Export for the viewers of massif (`ms_print`, massif-visualizer): the memory of a layer over
//! time.
//!
//! - Each step of the history is a snapshot with the memory at its end.
//! - The step with the peak has a snapshot more, in front of its end: with the exact peak, and the
//!   tree of what was live there. If the history does not know the step, there is none.
//! - The last snapshot has the tree of what was live at the end.
//!
//! A tree begins with the blamed frames, and leads to their callers, as massif's do.

use crate::frames::Frame;
use crate::input::moment::totals;
use crate::query::overview::peak_step;
use crate::query::report::Report;
use crate::query::tree::{Branch, What, branches};
use heapline_shared_format::event::as_python_frame;
use heapline_shared_format::snapshot::History;
use heapline_shared_format::text::{counted, printable};
use std::io::{self, Write};

/// Largest ways of each tree, where nothing else is asked for. massif itself leaves out all below a
/// hundredth.
pub const LIMIT: usize = 200;

/// Writes the memory over time. `live` and `peak` are inverted trees of the whole layer.
///
/// # Errors
///
/// Passes on errors of `out`.
pub fn write(history: &History, live: &Report<'_>, peak: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let (domain, meta) = (live.view.domain, &live.snapshot.meta);
    let about = if live.is_sampled() { ", estimated from samples" } else { "" };
    writeln!(out, "desc: Heapline, {domain} memory of process {}{about}", meta.pid)?;
    writeln!(out, "cmd: {}", named(&meta.command))?;
    writeln!(out, "time_unit: ms")?;
    let at_peak = totals(live.snapshot, domain).peak;
    let peak_end = Some(at_peak).filter(|&bytes| bytes > 0).and_then(|bytes| peak_step(history, domain, bytes));
    let mut number = 0_u64;
    let mut snapshot = |out: &mut dyn Write, time: u64, bytes: u64, tree: &str| {
        let rule = "#-----------";
        writeln!(out, "{rule}\nsnapshot={number}\n{rule}\ntime={time}\nmem_heap_B={bytes}")?;
        number += 1;
        writeln!(out, "mem_heap_extra_B=0\nmem_stacks_B=0\nheap_tree={tree}")
    };
    for (index, step) in history.steps.iter().enumerate() {
        if peak_end.is_some_and(|(_, end)| end == step.end) {
            snapshot(out, step.end, at_peak, "peak")?;
            tree(peak, out)?;
        }
        let current = step.domain(domain).map_or(0, |row| row.current);
        match index + 1 == history.steps.len() {
            false => snapshot(out, step.end, current, "empty")?,
            true => {
                snapshot(out, step.end, live.total.size, "detailed")?;
                tree(live, out)?;
            }
        }
    }
    Ok(())
}

/// Writes a tree, with the number of branches in front of each branch.
fn tree(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let branches = branches(report);
    let roots = branches.iter().filter(|branch| branch.depth == 0).count();
    writeln!(out, "n{roots}: {} ({} memory)", report.total.size, report.view.domain)?;
    for (branch, below) in branches.iter().zip(counts(&branches)) {
        let indent = branch.depth + 1;
        let what = match branch.what {
            What::Frame(frame) => place(report, &frame),
            What::Others(count) => format!("in {}, not shown", counted(count as u64, "place")),
        };
        writeln!(out, "{:indent$}n{below}: {} {what}", "", branch.sums.size)?;
    }
    Ok(())
}

/// Counts the branches of each branch.
fn counts(branches: &[Branch]) -> Vec<usize> {
    let mut counts = vec![0; branches.len()];
    let mut way: Vec<usize> = Vec::new();
    for (index, branch) in branches.iter().enumerate() {
        way.truncate(branch.depth);
        way.last().into_iter().for_each(|&above| counts[above] += 1);
        way.push(index);
    }
    counts
}

fn place(report: &Report<'_>, frame: &Frame) -> String {
    let names = &report.tracebacks;
    let (function, file) = (named(names.text(frame.function)), named(names.text(frame.filename)));
    // Python's frames have no address.
    let address = match as_python_frame(frame.address) {
        Some(_) => String::new(),
        None => format!("{:#X}: ", frame.address),
    };
    match frame.is_unlined() {
        true => format!("{address}{function} (in {file})"),
        false => format!("{address}{function} ({file}:{})", frame.lineno),
    }
}

/// Returns a name for the format, which ends a line at a `#`.
fn named(text: &str) -> String {
    printable(text).replace('#', ":")
}

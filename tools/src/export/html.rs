//! Export as a flame graph: a single HTML file for a browser, without server and network.
//!
//! The page is `flame.html` with the graph's data inserted as JSON. Frames are drawn from the root
//! down, as wide as the bytes below them. Frames too narrow to see are left out, even of a million
//! stacks.

use crate::frames::TracebackId;
use crate::query::report::Report;
use crate::query::statistics::Key;
use crate::render::text::{concerns, subject};
use heapline_shared_format::text::{counted, printable, size};
use serde::Serialize;
use std::collections::HashMap;
use std::io::{self, Write};

/// Denominator of the smallest part of the total in the graph: frames below 1/5000 are too narrow
/// for a screen and left out.
const FINEST: u64 = 5000;
/// Place holder in the page, replaced by the data.
const DATA: &str = "/*data*/";
const PAGE: &str = include_str!("flame.html");

/// Data of the page.
#[derive(Serialize)]
struct Flame {
    title: String,
    /// Sentences above the graph.
    head: Vec<String>,
    /// Warnings to be read before the figures.
    concerns: Vec<String>,
    /// Whether figures are estimates.
    sampled: bool,
    /// Texts, referred to by frames.
    texts: Vec<String>,
    /// For each frame: depth, function and place (indices of `texts`), bytes and blocks. Parents
    /// come first, and larger frames before smaller ones.
    frames: Vec<(u32, usize, usize, u64, u64)>,
    /// Number of frames left out as too narrow.
    left_out: usize,
}

/// A node in the tree of all tracebacks.
struct Node {
    frame: Option<crate::frames::Frame>,
    /// Greatest number of passes through the frame on one stack, in a folded tree.
    passes: u32,
    size: u64,
    count: u64,
    children: HashMap<crate::frames::Frame, usize>,
}

/// Writes a report grouped by [`crate::query::statistics::By::Tree`].
///
/// # Errors
///
/// Passes on errors of `out`.
pub fn write(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let data = serde_json::to_string(&flame(report)).map_err(io::Error::other)?;
    // Names come from the target, so characters that could end the script are escaped.
    let data = data.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
    let (before, after) = PAGE.split_once(DATA).expect("the page has a place for the data");
    out.write_all(before.as_bytes())?;
    out.write_all(data.as_bytes())?;
    out.write_all(after.as_bytes())
}

fn flame(report: &Report<'_>) -> Flame {
    let tree = tree(report);
    let total = &report.total;
    let (mut texts, mut numbers) = (Vec::new(), HashMap::new());
    let mut number = |text: String| {
        *numbers.entry(text).or_insert_with_key(|text| {
            texts.push(text.clone());
            texts.len() - 1
        })
    };
    let (mut frames, mut left_out) = (Vec::new(), 0);
    // Depth first, the largest child first.
    let mut open = vec![(0_usize, 0_u32)];
    while let Some((index, depth)) = open.pop() {
        let node = &tree[index];
        if node.size < total.size / FINEST {
            left_out += 1;
            continue;
        }
        let (function, place) = match node.frame {
            None => ("all".to_owned(), String::new()),
            Some(frame) => {
                let (names, file) = (&report.tracebacks, report.tracebacks.text(frame.filename));
                let place = if frame.lineno == 0 { file.to_owned() } else { format!("{file}:{}", frame.lineno) };
                let passes = if node.passes > 1 { format!(" (up to {} times)", node.passes) } else { String::new() };
                let function = format!("{}{passes}", printable(names.text(frame.function)));
                (function, printable(&place).into_owned())
            }
        };
        frames.push((depth, number(function), number(place), node.size, node.count));
        let mut children: Vec<usize> = node.children.values().copied().collect();
        children.sort_by_key(|&child| (tree[child].size, std::cmp::Reverse(child)));
        open.extend(children.into_iter().map(|child| (child, depth + 1)));
    }
    let (bytes, blocks) = (size(total.size), counted(total.count, "block"));
    let mut head = subject(report).to_vec();
    let (domain, at) = (report.view.domain, report.view.at.name());
    head.push(match total.estimate.size_interval(total.size) {
        None => format!("{domain}, {at}: {bytes} in {blocks}"),
        Some((low, high)) => {
            let (low, high) = (size(low), size(high));
            format!("{domain}, {at}: ~{bytes} ({low} to {high}, 95 %) in ~{blocks}")
        }
    });
    let meta = &report.snapshot.meta;
    let title = format!("Heapline: {} ({})", printable(&meta.command), meta.pid);
    let concerns = concerns(report).iter().map(|text| printable(text).into_owned()).collect();
    Flame { title, head, concerns, sampled: report.is_sampled(), texts, frames, left_out }
}

/// Builds the tree of all tracebacks. Parents come before their children.
fn tree(report: &Report<'_>) -> Vec<Node> {
    let node = |frame| Node { frame, passes: 1, size: 0, count: 0, children: HashMap::new() };
    let mut tree = vec![node(None)];
    for row in report.shown() {
        let Key::Traceback(id) = row.stat.key else { continue };
        let mut at = 0;
        let add = |tree: &mut Vec<Node>, at: usize| {
            tree[at].size = tree[at].size.saturating_add(row.stat.size);
            tree[at].count = tree[at].count.saturating_add(row.stat.count);
        };
        add(&mut tree, at);
        let names = &report.tracebacks;
        let ways: Vec<TracebackId> = std::iter::successors(Some(id), |&id| names.older(id)).collect();
        for way in ways.into_iter().rev() {
            let frame = names.most_recent(way);
            let next = tree.len();
            let child = *tree[at].children.entry(frame).or_insert(next);
            if child == next {
                tree.push(node(Some(frame)));
            }
            at = child;
            tree[at].passes = tree[at].passes.max(report.passes.get(&way).copied().unwrap_or(1));
            add(&mut tree, at);
        }
    }
    tree
}

//! The call tree of a report: who called whom on the way to the blocks, with the blocks below each
//! frame.
//!
//! - From the root down, a frame's branches are its callees. Inverted, the tree begins with the
//!   blamed frames, and a frame's branches are its callers.
//! - A recursion is a branch below itself. So each block counts once at each depth. A folded tree
//!   ([`crate::query::fold`]) has each cycle once.
//! - Frames are expanded only to be shown, the largest first. A chain (frames that pass all of
//!   their blocks on to one branch) is a single way, and counts as one for the limit.
//! - Nothing here calls itself, so the depth of a tree has no limit.

use crate::frames::{Frame, StringId, TracebackId, Tracebacks};
use crate::query::diff::Change;
use crate::query::estimate::Estimate;
use crate::query::fold::Passes;
use crate::query::report::{Report, Row};
use crate::query::statistics::Key;
use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};

/// Sum of blocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    /// Bytes.
    pub size: u64,
    /// Blocks.
    pub count: u64,
    /// Precision of `size` and `count`.
    pub estimate: Estimate,
    /// Change since the old snapshot, in a diff.
    pub change: Option<Change>,
    /// Importance: the bytes; in a diff the bytes that came or went.
    weight: u128,
}

impl Sums {
    fn of(row: &Row) -> Sums {
        let weight = row.change.map_or(row.stat.size.into(), |change| change.size.unsigned_abs());
        let stat = &row.stat;
        // The doubt about blocks that are gone is in the change.
        let estimate = if stat.count == 0 { Estimate::default() } else { stat.estimate };
        Sums { size: stat.size, count: stat.count, estimate, change: row.change, weight }
    }

    /// Number of blocks, estimated where the blocks are samples.
    pub fn blocks(&self) -> u64 {
        self.estimate.count(self.count)
    }

    fn add(&mut self, other: &Sums) {
        self.size = self.size.saturating_add(other.size);
        self.count = self.count.saturating_add(other.count);
        self.estimate.add(&other.estimate);
        self.weight = self.weight.saturating_add(other.weight);
        self.change = match (self.change, other.change) {
            (Some(one), Some(other)) => Some(one.plus(&other)),
            (one, other) => one.or(other),
        };
    }

    /// Whether there are no blocks, in a diff on either side.
    pub fn is_nothing(&self) -> bool {
        self.count == 0 && self.change.is_none_or(|change| change.count == 0 && change.size == 0)
    }

    fn of_all<'s>(all: impl IntoIterator<Item = &'s Sums>) -> Sums {
        let mut sum = Sums::default();
        all.into_iter().for_each(|sums| sum.add(sums));
        sum
    }
}

/// A line of the tree, in the order of a walk: each branch behind its parent.
#[derive(Clone, Copy, Debug)]
pub struct Branch {
    /// Number of frames between the branch and the beginning of the tree.
    pub depth: usize,
    /// Indentation: the number of forks between the branch and the beginning of the tree.
    pub level: usize,
    /// Whether the branch is the only one of its parent.
    pub is_only: bool,
    /// Greatest number of passes through the frame on one stack, in a folded tree; else 1.
    pub passes: u32,
    /// The frame, or the number of branches summed up in one line.
    pub what: What,
    /// Blocks of the branch.
    pub sums: Sums,
    /// Blocks of the branch that are in none of its branches.
    pub own: Own,
}

/// Blocks of a frame itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Bytes.
    pub size: u64,
    /// Blocks, estimated where the blocks are samples.
    pub count: u64,
}

/// Subject of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A frame.
    Frame(Frame),
    /// A number of branches that are not shown.
    Others(usize),
}

/// Makes the lines of a report grouped by [`crate::query::statistics::By::Tree`].
pub fn branches(report: &Report<'_>) -> Vec<Branch> {
    let limit = if report.request.limit == 0 { usize::MAX } else { report.request.limit };
    let rows = report.rows.iter().filter_map(|row| match row.stat.key {
        Key::Traceback(id) => Some((id, Sums::of(row))),
        _ => None,
    });
    let names = &report.tracebacks;
    if report.request.inverted {
        let mut blamer = report.blamer();
        let mut blamed = |id| blamer.as_mut().map_or(id, |blamer| blamer.blamed(names, id));
        let (ways, sums): (Vec<_>, Vec<_>) =
            rows.enumerate().map(|(row, (id, sums))| ((Some(blamed(id)), row), sums)).unzip();
        chosen(&Callers { names, sums, passes: &report.passes }, ways, limit)
    } else {
        chosen(&Callees::new(names, rows, &report.passes), None, limit)
    }
}

/// A tree whose branches are found on demand.
trait Tree {
    /// Place of a branch in the tree.
    type Place;

    /// Branches of a place, in any order.
    fn branches(&self, place: &Self::Place) -> Vec<Found<Self::Place>>;

    /// Blocks of a place that are in none of its branches.
    fn own(&self, place: &Self::Place) -> Sums;

    fn names(&self) -> &Tracebacks;
}

/// A branch with its place.
struct Found<P> {
    frame: Frame,
    passes: u32,
    sums: Sums,
    place: P,
}

/// The tree from the root down: the tree of tracebacks itself, as far as there are blocks.
struct Callees<'t> {
    names: &'t Tracebacks,
    passes: &'t Passes,
    own: HashMap<TracebackId, Sums>,
    nodes: Vec<Node>,
    /// The last of the branches that begin the tree.
    last: Option<usize>,
}

/// A traceback, with the blocks of the traceback and of all longer ones.
struct Node {
    id: TracebackId,
    sums: Sums,
    /// The last branch, and the branch before this branch: indices of nodes.
    last: Option<usize>,
    before: Option<usize>,
}

impl<'t> Callees<'t> {
    fn new(names: &'t Tracebacks, rows: impl Iterator<Item = (TracebackId, Sums)>, passes: &'t Passes) -> Callees<'t> {
        let own: HashMap<TracebackId, Sums> = rows.collect();
        let mut nodes: Vec<Node> = Vec::new();
        let mut known: HashMap<TracebackId, usize> = HashMap::new();
        let mut last = None;
        // Tracebacks have greater numbers than their callers', so a node is complete when met.
        for id in names.ids().rev() {
            let own = own.get(&id);
            let index = match (known.get(&id), own) {
                (Some(&index), _) => index,
                (None, Some(_)) => push(&mut nodes, id),
                (None, None) => continue,
            };
            own.into_iter().for_each(|own| nodes[index].sums.add(own));
            let sums = nodes[index].sums;
            let below = match names.older(id) {
                None => &mut last,
                Some(older) => {
                    let caller = *known.entry(older).or_insert_with(|| push(&mut nodes, older));
                    nodes[caller].sums.add(&sums);
                    &mut nodes[caller].last
                }
            };
            let before = below.replace(index);
            nodes[index].before = before;
        }
        Callees { names, passes, own, nodes, last }
    }
}

fn push(nodes: &mut Vec<Node>, id: TracebackId) -> usize {
    nodes.push(Node { id, sums: Sums::default(), last: None, before: None });
    nodes.len() - 1
}

impl Tree for Callees<'_> {
    type Place = Option<usize>;

    fn branches(&self, place: &Option<usize>) -> Vec<Found<Option<usize>>> {
        let last = place.map_or(self.last, |index| self.nodes[index].last);
        let indices = std::iter::successors(last, |&index| self.nodes[index].before);
        let found = |index: usize| {
            let Node { id, sums, .. } = self.nodes[index];
            let passes = self.passes.get(&id).copied().unwrap_or(1);
            Found { frame: self.names.most_recent(id), passes, sums, place: Some(index) }
        };
        indices.map(found).collect()
    }

    fn own(&self, place: &Option<usize>) -> Sums {
        place.and_then(|index| self.own.get(&self.nodes[index].id).copied()).unwrap_or_default()
    }

    fn names(&self) -> &Tracebacks {
        self.names
    }
}

/// The inverted tree. A place is a list of ways: the frames that are left on the way to the root,
/// and the row of the blocks.
struct Callers<'t> {
    names: &'t Tracebacks,
    passes: &'t Passes,
    sums: Vec<Sums>,
}

impl Tree for Callers<'_> {
    type Place = Vec<(Option<TracebackId>, usize)>;

    fn branches(&self, place: &Self::Place) -> Vec<Found<Self::Place>> {
        let mut found: Vec<Found<Self::Place>> = Vec::new();
        let mut known: HashMap<(StringId, u32, StringId), usize> = HashMap::new();
        for &(next, row) in place {
            let Some(id) = next else { continue };
            let frame = self.names.most_recent(id);
            let index = *known.entry((frame.filename, frame.lineno, frame.function)).or_insert(found.len());
            if index == found.len() {
                found.push(Found { frame, passes: 1, sums: Sums::default(), place: Vec::new() });
            }
            found[index].passes = found[index].passes.max(self.passes.get(&id).copied().unwrap_or(1));
            found[index].sums.add(&self.sums[row]);
            found[index].place.push((self.names.older(id), row));
        }
        found
    }

    fn own(&self, place: &Self::Place) -> Sums {
        let ends = place.iter().filter(|(next, _)| next.is_none());
        Sums::of_all(ends.map(|&(_, row)| &self.sums[row]))
    }

    fn names(&self) -> &Tracebacks {
        self.names
    }
}

/// A branch to be shown.
struct Shown {
    frame: Frame,
    passes: u32,
    sums: Sums,
    own: Own,
    branches: Vec<usize>,
    others: Others,
}

/// Branches that are not shown.
#[derive(Default)]
struct Others {
    number: usize,
    sums: Sums,
}

/// A branch that may be shown. The greater one is shown first.
struct Candidate<P> {
    found: Found<P>,
    parent: Option<usize>,
    number: usize,
}

impl<P> Candidate<P> {
    fn rank(&self) -> (u128, u64, u64, Reverse<usize>) {
        (self.found.sums.weight, self.found.sums.size, self.found.sums.count, Reverse(self.number))
    }
}

impl<P> PartialEq for Candidate<P> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<P> Eq for Candidate<P> {}

impl<P> PartialOrd for Candidate<P> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> Ord for Candidate<P> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

/// Chooses the `limit` largest chains.
fn chosen<T: Tree>(tree: &T, root: T::Place, limit: usize) -> Vec<Branch> {
    let mut shown: Vec<Shown> = Vec::new();
    let (mut first, mut others) = (Vec::new(), Others::default());
    let mut candidates = BinaryHeap::new();
    let mut number = 0;
    let mut offer = |candidates: &mut BinaryHeap<_>, mut found: Vec<Found<T::Place>>, parent| {
        // Equal branches are offered in the order of their names.
        let text = |frame: &Frame| {
            let text = |id| tree.names().text(id);
            (text(frame.filename), frame.lineno, text(frame.function))
        };
        found.sort_by(|a, b| text(&a.frame).cmp(&text(&b.frame)));
        for found in found {
            number += 1;
            candidates.push(Candidate { found, parent, number });
        }
    };
    offer(&mut candidates, tree.branches(&root), None);
    for _ in 0..limit {
        let Some(Candidate { mut found, mut parent, .. }) = candidates.pop() else { break };
        // The way goes on as long as it is the only one.
        loop {
            let index = shown.len();
            parent.map_or(&mut first, |parent: usize| &mut shown[parent].branches).push(index);
            let mut below = tree.branches(&found.place);
            let own = tree.own(&found.place);
            let Found { frame, passes, sums, .. } = found;
            let (branches, others) = (Vec::new(), Others::default());
            let itself = Own { size: own.size, count: own.blocks() };
            shown.push(Shown { frame, passes, sums, own: itself, branches, others });
            parent = Some(index);
            match below.pop_if(|_| own.is_nothing()) {
                Some(only) if below.is_empty() => found = only,
                last => {
                    below.extend(last);
                    offer(&mut candidates, below, parent);
                    break;
                }
            }
        }
    }
    for Candidate { found, parent, .. } in candidates {
        let others = parent.map_or(&mut others, |parent| &mut shown[parent].others);
        others.number += 1;
        others.sums.add(&found.sums);
    }
    in_order(shown, first, others)
}

/// Lists the shown branches in the order of a walk.
fn in_order(mut shown: Vec<Shown>, first: Vec<usize>, others: Others) -> Vec<Branch> {
    struct Open {
        indices: std::vec::IntoIter<usize>,
        others: Others,
        is_only: bool,
        level: usize,
    }
    let open = |indices: Vec<usize>, others: Others, level: Option<usize>| {
        let lines = indices.len() + usize::from(others.number > 0);
        let is_only = level.is_some() && lines == 1;
        let level = level.map_or(0, |level| if is_only { level } else { level + 1 });
        Open { indices: indices.into_iter(), others, is_only, level }
    };
    let mut lines = Vec::with_capacity(shown.len());
    let mut waiting = vec![open(first, others, None)];
    while let Some(Open { indices, level, is_only, .. }) = waiting.last_mut() {
        let (level, is_only) = (*level, *is_only);
        if let Some(index) = indices.next() {
            let Shown { frame, passes, sums, own, branches, others } = &mut shown[index];
            let (what, depth) = (What::Frame(*frame), waiting.len() - 1);
            lines.push(Branch { depth, level, is_only, passes: *passes, what, sums: *sums, own: *own });
            waiting.push(open(std::mem::take(branches), std::mem::take(others), Some(level)));
        } else if let Some(Open { others: Others { number: number @ 1.., sums }, .. }) = waiting.pop() {
            let (what, depth) = (What::Others(number), waiting.len());
            lines.push(Branch { depth, level, is_only, passes: 1, what, sums, own: Own::default() });
        }
    }
    lines
}

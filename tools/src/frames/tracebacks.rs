//! Strings, frames and tracebacks, each stored once and named by a number.
//!
//! Tracebacks form a tree: one is its caller's traceback and one frame more. Both snapshots of a diff share one store,
//! so that equal tracebacks have equal numbers, and grouping millions of blocks compares numbers, never texts.
//!
//! Two frames of one place are one, as in tracemalloc: same file, same line. Without a line the function counts too,
//! or all of a library without debug information would be one place.

use super::plumbing::Part;
use std::collections::HashMap;
use std::sync::Arc;

/// A string in [`Tracebacks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StringId(u32);

/// A place in the source that called for memory, on the way there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Source file; the module's path where that is not known.
    pub filename: StringId,
    /// Line in it; 0 where it is not known.
    pub lineno: u32,
    /// Function, demangled.
    pub function: StringId,
    /// Path of the module; empty where there is none.
    pub module: StringId,
    /// Return address in the process.
    pub address: u64,
    /// Its part in a request for memory.
    pub part: Part,
}

/// A traceback in [`Tracebacks`]. Equal places all the way, equal number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TracebackId(u32);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    filename: StringId,
    lineno: u32,
    function: Option<StringId>,
}

/// See the module's header.
#[derive(Default)]
pub struct Tracebacks {
    strings: Vec<Arc<str>>,
    string_ids: HashMap<Arc<str>, StringId>,
    nodes: Vec<(Option<TracebackId>, Frame)>,
    node_ids: HashMap<(Option<TracebackId>, Place), TracebackId>,
}

impl Tracebacks {
    /// The number of `text`.
    pub fn string(&mut self, text: &str) -> StringId {
        if let Some(&id) = self.string_ids.get(text) {
            return id;
        }
        let id = StringId(number(self.strings.len()));
        let text: Arc<str> = text.into();
        self.strings.push(Arc::clone(&text));
        self.string_ids.insert(text, id);
        id
    }

    /// The text of a number.
    pub fn text(&self, id: StringId) -> &str {
        &self.strings[id.0 as usize]
    }

    /// How many strings there are: their numbers are below.
    pub fn string_count(&self) -> usize {
        self.strings.len()
    }

    /// The position of a string in tables that have one entry for each.
    pub fn string_index(id: StringId) -> usize {
        id.0 as usize
    }

    /// The position of a traceback in tables that have one entry for each.
    pub fn traceback_index(id: TracebackId) -> usize {
        id.0 as usize
    }

    /// The traceback that has one `frame` more than `older`. Of frames with one place the first to come is kept.
    pub fn push(&mut self, older: Option<TracebackId>, frame: Frame) -> TracebackId {
        let function = (frame.lineno == 0).then_some(frame.function);
        let place = Place { filename: frame.filename, lineno: frame.lineno, function };
        *self.node_ids.entry((older, place)).or_insert_with(|| {
            self.nodes.push((older, frame));
            TracebackId(number(self.nodes.len() - 1))
        })
    }

    /// The most recent frame.
    pub fn most_recent(&self, id: TracebackId) -> Frame {
        self.nodes[id.0 as usize].1
    }

    /// The traceback without its most recent frame.
    pub fn older(&self, id: TracebackId) -> Option<TracebackId> {
        self.nodes[id.0 as usize].0
    }

    /// The frames, the most recent first.
    pub fn frames(&self, id: TracebackId) -> impl Iterator<Item = Frame> + '_ {
        std::iter::successors(Some(id), |&id| self.older(id)).map(|id| self.most_recent(id))
    }

    /// The frames, the oldest first, as tracemalloc shows them.
    pub fn oldest_first(&self, id: TracebackId) -> Vec<Frame> {
        let mut frames: Vec<Frame> = self.frames(id).collect();
        frames.reverse();
        frames
    }

    /// The place of each traceback in tracemalloc's order: by file and line from the oldest frame, the shorter of two
    /// that begin alike first; functions break what ties are left.
    ///
    /// That is the order in which a walk of the tree meets them, when it takes siblings in the order of their places.
    /// One walk makes a comparison of two tracebacks one of two numbers, however deep they are.
    pub fn order(&self) -> TracebackOrder {
        let mut by_text: Vec<usize> = (0..self.strings.len()).collect();
        by_text.sort_unstable_by_key(|&index| &self.strings[index]);
        let texts = inverse(&by_text);
        let text = |id: StringId| texts[id.0 as usize];

        let mut siblings: Vec<usize> = (0..self.nodes.len()).collect();
        let parent = |index: usize| self.nodes[index].0.map_or(0, |id| id.0 as usize + 1);
        siblings.sort_unstable_by_key(|&index| {
            let frame = &self.nodes[index].1;
            (parent(index), text(frame.filename), frame.lineno, text(frame.function))
        });
        // Where the children of each node stand in `siblings`; those of no node come first.
        let mut ends = vec![0; self.nodes.len() + 1];
        siblings.iter().for_each(|&index| ends[parent(index)] += 1);
        let mut end = 0;
        ends.iter_mut().for_each(|count| {
            end += *count;
            *count = end;
        });
        let children = |slot: usize| &siblings[if slot == 0 { 0 } else { ends[slot - 1] }..ends[slot]];

        let mut walk = Vec::with_capacity(self.nodes.len());
        let mut waiting: Vec<usize> = children(0).iter().rev().copied().collect();
        while let Some(index) = waiting.pop() {
            walk.push(index);
            waiting.extend(children(index + 1).iter().rev());
        }
        TracebackOrder(inverse(&walk))
    }
}

/// See [`Tracebacks::order`].
pub struct TracebackOrder(Vec<usize>);

impl TracebackOrder {
    /// Where a traceback stands among all.
    pub fn of(&self, id: TracebackId) -> usize {
        self.0[id.0 as usize]
    }
}

/// For each element where it stands in `order`.
fn inverse(order: &[usize]) -> Vec<usize> {
    let mut places = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, &element)| places[element] = place);
    places
}

/// Tables end where memory does, long before four thousand million entries of 40 bytes.
fn number(index: usize) -> u32 {
    u32::try_from(index).expect("fewer than 2^32 entries")
}

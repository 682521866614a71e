//! Stores strings, frames and tracebacks once each, and names them by numbers.
//!
//! Tracebacks form a tree: a traceback is the caller's traceback plus a frame. Both snapshots of a
//! diff share a store, so equal tracebacks have equal numbers. Grouping millions of blocks compares
//! numbers, never texts.
//!
//! Two frames of Python are one place if file and line are equal, as in tracemalloc. Of native
//! frames the functions must be equal too: several functions may share a line (instances of a
//! template), and a library without debug information has no lines. The tree keeps all functions
//! apart, and [`Tracebacks::alike`] says which tracebacks go through equal places.

use super::Part;
use heapline_shared_format::event::as_python_frame;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;

/// Number of a string in [`Tracebacks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StringId(u32);

/// A call on the way to an allocation: the place in the source, and the function's part in the
/// request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Source file; the module's path if the file is unknown.
    pub filename: StringId,
    /// Line in the file; 0 if unknown.
    pub lineno: u32,
    /// Demangled name of the function.
    pub function: StringId,
    /// Path of the module; empty if there is none.
    pub module: StringId,
    /// Return address in the process.
    pub address: u64,
    /// The function's part in a request for memory.
    pub part: Part,
    /// How the walk of the stack went on to the next older frame.
    pub left: Left,
}

/// How the walk of a stack went on from a frame to the next older frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Left {
    /// By unwind tables.
    Tables,
    /// By the frame pointer.
    FramePointer,
    /// Not at all: the function is inlined in the older function.
    Inlined,
}

/// How the walk of a stack found a native frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Walked {
    /// By the unwind tables of the callee.
    Cfi,
    /// By the frame pointer of the callee, which has no unwind tables.
    Fp,
    /// Either way; the frame's own code lies outside of all objects: generated at run time.
    Jit,
}

impl Frame {
    /// Whether the frame is of a module without debug information, so only the function tells the
    /// place. Frames of Python without a line are at line 0 of their file, as in tracemalloc.
    pub fn is_unlined(&self) -> bool {
        self.lineno == 0 && as_python_frame(self.address).is_none()
    }

    fn place(&self) -> Place {
        let function = as_python_frame(self.address).is_none().then_some(self.function);
        Place { filename: self.filename, lineno: self.lineno, function }
    }
}

/// Number of a traceback in [`Tracebacks`]. Tracebacks through equal places and functions have
/// equal numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TracebackId(u32);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    filename: StringId,
    lineno: u32,
    function: Option<StringId>,
}

/// A traceback: the caller's traceback, and a frame.
struct Node {
    older: Option<TracebackId>,
    frame: Frame,
    /// The first stored traceback through equal places.
    alike: TracebackId,
}

/// Store of strings, frames and tracebacks, each named by a number.
#[derive(Default)]
pub struct Tracebacks {
    strings: Vec<Arc<str>>,
    string_ids: HashMap<Arc<str>, StringId>,
    nodes: Vec<Node>,
    node_ids: HashMap<(Option<TracebackId>, Place, StringId), TracebackId>,
    /// The first traceback of each path of places.
    first_ids: HashMap<(Option<TracebackId>, Place), TracebackId>,
}

impl Tracebacks {
    /// Returns the number of `text`, and stores new texts.
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

    /// Returns the text of a number.
    pub fn text(&self, id: StringId) -> &str {
        &self.strings[id.0 as usize]
    }

    /// Number of stored strings. All string numbers are below.
    pub fn string_count(&self) -> usize {
        self.strings.len()
    }

    /// Index of a string in tables with an entry for each string.
    pub fn string_index(id: StringId) -> usize {
        id.0 as usize
    }

    /// Index of a traceback in tables with an entry for each traceback.
    pub fn traceback_index(id: TracebackId) -> usize {
        id.0 as usize
    }

    /// Adds `frame` to the traceback `older` and returns the number of the longer traceback. Of
    /// equal frames, the first is kept.
    pub fn push(&mut self, older: Option<TracebackId>, frame: Frame) -> TracebackId {
        let place = frame.place();
        let key = (older, place, frame.function);
        if let Some(&id) = self.node_ids.get(&key) {
            return id;
        }
        let id = TracebackId(number(self.nodes.len()));
        let older_alike = older.map(|older| self.alike(older));
        let alike = *self.first_ids.entry((older_alike, place)).or_insert(id);
        self.nodes.push(Node { older, frame, alike });
        self.node_ids.insert(key, id);
        id
    }

    /// Returns the numbers of all tracebacks, each behind the number of the caller's traceback.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = TracebackId> + use<> {
        (0..number(self.nodes.len())).map(TracebackId)
    }

    /// Returns the most recent frame.
    pub fn most_recent(&self, id: TracebackId) -> Frame {
        self.nodes[id.0 as usize].frame
    }

    /// Returns the traceback without the most recent frame.
    pub fn older(&self, id: TracebackId) -> Option<TracebackId> {
        self.nodes[id.0 as usize].older
    }

    /// Returns the traceback that stands for all tracebacks through equal places, whatever the
    /// functions: equal in tracemalloc's sense.
    pub fn alike(&self, id: TracebackId) -> TracebackId {
        self.nodes[id.0 as usize].alike
    }

    /// Iterates over the frames, the most recent first.
    pub fn frames(&self, id: TracebackId) -> impl Iterator<Item = Frame> + '_ {
        std::iter::successors(Some(id), |&id| self.older(id)).map(|id| self.most_recent(id))
    }

    /// Returns the frames, the oldest first, as tracemalloc shows them.
    pub fn oldest_first(&self, id: TracebackId) -> Vec<Frame> {
        let mut frames: Vec<Frame> = self.frames(id).collect();
        frames.reverse();
        frames
    }

    /// Returns how the walk found each frame, the oldest first. None for Python's frames, and where
    /// nothing is known.
    pub fn walked(&self, id: TracebackId) -> Vec<Option<Walked>> {
        let mut by_frame_pointer = false;
        let walked = self.frames(id).map(|frame| {
            let walked = match self.text(frame.module) {
                _ if frame.address == 0 || as_python_frame(frame.address).is_some() => None,
                "" => Some(Walked::Jit),
                _ if by_frame_pointer => Some(Walked::Fp),
                _ => Some(Walked::Cfi),
            };
            if frame.left != Left::Inlined {
                by_frame_pointer = frame.left == Left::FramePointer;
            }
            walked
        });
        let mut walked: Vec<Option<Walked>> = walked.collect();
        walked.reverse();
        walked
    }

    /// Computes the rank of each traceback in tracemalloc's order:
    ///
    /// 1. frame by frame from the oldest frame on, by file and line, without a line by function;
    /// 2. of two tracebacks with an equal beginning, the shorter first.
    ///
    /// Tracebacks through equal places have equal ranks. A walk of the tree of places, with
    /// siblings in the order of their places, meets the tracebacks in this order. After a single
    /// walk, comparing two tracebacks of any depth compares two numbers.
    pub fn order(&self) -> TracebackOrder {
        let mut by_text: Vec<usize> = (0..self.strings.len()).collect();
        by_text.sort_unstable_by_key(|&index| &self.strings[index]);
        let texts = inverse(&by_text);
        let text = |id: StringId| texts[id.0 as usize];

        let place = |index: usize| self.nodes[index].alike.0 as usize;
        let mut siblings: Vec<usize> = (0..self.nodes.len()).filter(|&index| place(index) == index).collect();
        let parent = |index: usize| self.nodes[index].older.map_or(0, |id| place(id.0 as usize) + 1);
        siblings.sort_unstable_by_key(|&index| {
            let frame = &self.nodes[index].frame;
            (parent(index), text(frame.filename), frame.lineno, text(frame.function))
        });
        // End of each node's children in `siblings`. Children of the root come first.
        let mut ends = vec![0; self.nodes.len() + 1];
        siblings.iter().for_each(|&index| ends[parent(index)] += 1);
        let mut end = 0;
        ends.iter_mut().for_each(|count| {
            end += *count;
            *count = end;
        });
        let children = |slot: usize| &siblings[if slot == 0 { 0 } else { ends[slot - 1] }..ends[slot]];

        let mut ranks = vec![0; self.nodes.len()];
        let mut waiting: Vec<usize> = children(0).iter().rev().copied().collect();
        let mut next = 0;
        while let Some(index) = waiting.pop() {
            ranks[index] = next;
            next += 1;
            waiting.extend(children(index + 1).iter().rev());
        }
        TracebackOrder((0..ranks.len()).map(|index| ranks[place(index)]).collect())
    }
}

/// Ranks of all tracebacks in tracemalloc's order, made by [`Tracebacks::order`].
pub struct TracebackOrder(Vec<usize>);

impl TracebackOrder {
    /// Returns the rank of a traceback.
    pub fn of(&self, id: TracebackId) -> usize {
        self.0[id.0 as usize]
    }
}

/// Returns the position of each element in `order`.
fn inverse(order: &[usize]) -> Vec<usize> {
    let mut places = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, &element)| places[element] = place);
    places
}

/// Converts an index to a number. Memory ends long before a table has 2^32 entries of 40 bytes.
fn number(index: usize) -> u32 {
    u32::try_from(index).expect("fewer than 2^32 entries")
}

#[cfg(test)]
mod tests {
    use super::*;
    use heapline_shared_format::event::python_frame;

    #[test]
    fn a_frame_was_found_as_its_callee_was_left() {
        let mut tracebacks = Tracebacks::default();
        let mut push = |older, name: &str, module: &str, address, left| {
            let (function, module) = (tracebacks.string(name), tracebacks.string(module));
            let frame = Frame { filename: module, lineno: 0, function, module, address, part: Part::Asks, left };
            Some(tracebacks.push(older, frame))
        };
        let main = push(None, "main", "program", 1, Left::Tables);
        let outer = push(main, "outer", "library", 2, Left::FramePointer);
        let inlined = push(outer, "inlined", "library", 2, Left::Inlined);
        let generated = push(inlined, "0x3", "", 3, Left::FramePointer);
        let python = push(generated, "python", "file.py", python_frame(1, 0), Left::Tables);
        let leaf = push(python, "leaf", "library", 4, Left::Tables);
        let other = push(inlined, "other", "library", 5, Left::Tables);
        let (fp, cfi) = (Some(Walked::Fp), Some(Walked::Cfi));
        assert_eq!(tracebacks.walked(leaf.expect("pushed")), [fp, fp, fp, Some(Walked::Jit), None, cfi]);
        assert_eq!(tracebacks.walked(other.expect("pushed")), [fp, cfi, cfi, cfi], "the same callers, found otherwise");
    }
}

//! The tree of all tracebacks, as columns: texts, frames, and nodes in the order of a walk.

use super::column::Columns;
use crate::frames::{Frame, TracebackId, Tracebacks};
use crate::query::blame::{Blamer, Starts};
use crate::render::Sources;
use heapline_shared_format::event::as_python_frame;
use heapline_shared_format::text::printable;
use std::collections::HashMap;
use std::hash::Hash;

/// Bits of a node: why the page may hide its frame.
mod bits {
    /// Code that starts the program or a thread.
    pub const START: u64 = 1;
    /// Nobody's code: allocators, wrappers of allocators, standard libraries of languages.
    pub const PLUMBING: u64 = 2;
    /// Python's import system.
    pub const IMPORT: u64 = 4;
    /// Blocks are blamed on the frame.
    pub const BLAMED: u64 = 8;
}

/// Files of Python's import system.
const IMPORT_FILES: [&str; 3] =
    ["<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>", "<frozen zipimport>"];
/// Functions that start Python's threads and programs, by the end of the file's name.
const PYTHON_STARTS: [(&str, &[&str]); 3] = [
    (
        "/threading.py",
        &["Thread._bootstrap", "Thread._bootstrap_inner", "Thread.run", "_bootstrap", "_bootstrap_inner"],
    ),
    ("<frozen runpy>", &["_run_module_as_main", "_run_code"]),
    ("<frozen site>", &["<module>", "main", "addsitepackages", "addsitedir", "addpackage", "execsitecustomize"]),
];
/// Longest source line, in characters.
const WIDEST_SOURCE: usize = 200;

/// Values numbered in the order of their first use.
struct Numbers<K> {
    numbers: HashMap<K, u64>,
    values: Vec<K>,
}

impl<K: Copy + Eq + Hash> Numbers<K> {
    fn new() -> Numbers<K> {
        Numbers { numbers: HashMap::new(), values: Vec::new() }
    }

    fn number(&mut self, value: K) -> u64 {
        *self.numbers.entry(value).or_insert_with(|| {
            self.values.push(value);
            self.values.len() as u64 - 1
        })
    }
}

/// Tracebacks with blocks, and how blocks are blamed.
#[derive(Default)]
pub struct Used {
    /// By traceback: whether blocks have the traceback.
    used: Vec<bool>,
    /// By traceback: whether blocks are blamed on its most recent frame.
    blamed: Vec<bool>,
}

impl Used {
    /// Notes a traceback of blocks, and the traceback up to the blamed frame.
    pub fn add(&mut self, traceback: TracebackId, blamed: TracebackId) {
        set(&mut self.used, Tracebacks::traceback_index(traceback));
        set(&mut self.blamed, Tracebacks::traceback_index(blamed));
    }
}

fn set(flags: &mut Vec<bool>, index: usize) {
    if flags.len() <= index {
        flags.resize(index + 1, false);
    }
    flags[index] = true;
}

/// Writes texts, frames and nodes. Returns the number of the node of each traceback.
pub fn write(
    columns: &mut Columns,
    tracebacks: &Tracebacks,
    used: &Used,
    skip: &[crate::glob::Glob],
    mut sources: Option<&mut Sources>,
) -> Vec<u32> {
    let walk = Walk::of(tracebacks, &used.used);
    let starts = starts(tracebacks, &used.used);
    let mut blamer = Blamer::new(skip);
    let mut frames = Numbers::new();
    let mut flags = Vec::with_capacity(walk.order.len());
    let mut of_nodes = Vec::with_capacity(walk.order.len());
    for &id in &walk.order {
        let index = Tracebacks::traceback_index(id);
        let frame = tracebacks.most_recent(id);
        // Frames of one place are one frame, whatever their addresses.
        of_nodes.push(frames.number(Named::of(&frame)));
        let is = |flags: &[bool], bit| if flags.get(index).is_some_and(|&is| is) { bit } else { 0 };
        let nobodys = if blamer.is_nobodys(tracebacks, frame) { bits::PLUMBING } else { 0 };
        let import = if IMPORT_FILES.contains(&tracebacks.text(frame.filename)) { bits::IMPORT } else { 0 };
        let start = is(&starts, bits::START) | if starts_python(tracebacks, &frame) { bits::START } else { 0 };
        flags.push(start | nobodys | import | is(&used.blamed, bits::BLAMED));
    }
    columns.steps("node.depth", walk.depths.iter().map(|&depth| depth.into()));
    columns.plain("node.frame", of_nodes);
    columns.plain("node.flags", flags);

    let mut texts: Numbers<usize> = Numbers::new();
    let mut lines: Vec<String> = Vec::new();
    let frames = frames.values;
    let mut text = |id| texts.number(Tracebacks::string_index(id));
    columns.plain("frame.function", frames.iter().map(|frame| text(frame.function)));
    columns.plain("frame.file", frames.iter().map(|frame| text(frame.filename)));
    columns.plain("frame.module", frames.iter().map(|frame| text(frame.module)));
    columns.signed(
        "frame.line",
        frames.iter().scan(0_i64, |last, frame| {
            let line = i64::from(frame.lineno);
            Some(line - std::mem::replace(last, line))
        }),
    );
    columns.plain("frame.python", frames.iter().map(|frame| frame.is_python.into()));
    let source = |frame: &Named| {
        let file = tracebacks.text(frame.filename);
        let line = sources.as_mut().and_then(|sources| sources.line(file, frame.lineno));
        line.map_or(0, |line| {
            let cut: String = line.chars().take(WIDEST_SOURCE).collect();
            lines.push(printable(&cut).into_owned());
            lines.len() as u64
        })
    };
    columns.plain("frame.source", frames.iter().map(source));
    columns.texts("sources", &lines);
    let by_index: HashMap<usize, &str> = frames
        .iter()
        .flat_map(|frame| [frame.function, frame.filename, frame.module])
        .map(|id| (Tracebacks::string_index(id), tracebacks.text(id)))
        .collect();
    columns.texts("texts", texts.values.iter().map(|index| printable(by_index[index])));
    walk.numbers
}

fn starts_python(tracebacks: &Tracebacks, frame: &Frame) -> bool {
    let [file, function] = [frame.filename, frame.function].map(|id| tracebacks.text(id));
    PYTHON_STARTS.iter().any(|(end, functions)| file.ends_with(end) && functions.contains(&function))
}

/// A frame without its address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Named {
    function: crate::frames::StringId,
    filename: crate::frames::StringId,
    module: crate::frames::StringId,
    lineno: u32,
    is_python: bool,
}

impl Named {
    fn of(frame: &Frame) -> Named {
        let Frame { function, filename, module, lineno, .. } = *frame;
        Named { function, filename, module, lineno, is_python: as_python_frame(frame.address).is_some() }
    }
}

/// Used tracebacks and their callers, each behind its caller: the order of a walk of the tree.
struct Walk {
    order: Vec<TracebackId>,
    depths: Vec<u32>,
    /// By traceback: position in `order`.
    numbers: Vec<u32>,
}

impl Walk {
    fn of(tracebacks: &Tracebacks, used: &[bool]) -> Walk {
        let count = used.len();
        let mut needed = used.to_vec();
        let ids: Vec<TracebackId> = tracebacks.ids().take(count).collect();
        // Callers have smaller numbers, so a walk back marks all of them.
        for &id in ids.iter().rev() {
            if let (true, Some(older)) = (needed[Tracebacks::traceback_index(id)], tracebacks.older(id)) {
                needed[Tracebacks::traceback_index(older)] = true;
            }
        }
        // Children as linked lists, the first child first.
        let none = usize::MAX;
        let (mut first, mut next) = (vec![none; count + 1], vec![none; count]);
        for &id in ids.iter().rev().filter(|&&id| needed[Tracebacks::traceback_index(id)]) {
            let index = Tracebacks::traceback_index(id);
            let parent = tracebacks.older(id).map_or(count, Tracebacks::traceback_index);
            next[index] = std::mem::replace(&mut first[parent], index);
        }
        let mut walk = Walk { order: Vec::new(), depths: Vec::new(), numbers: vec![u32::MAX; count] };
        let mut open: Vec<(usize, u32)> = Vec::new();
        let push = |open: &mut Vec<(usize, u32)>, parent: usize, depth| {
            let begin = open.len();
            let there = |child: usize| Some(child).filter(|&child| child != none);
            let children = std::iter::successors(there(first[parent]), |&child| there(next[child]));
            open.extend(children.map(|child| (child, depth)));
            open[begin..].reverse();
        };
        push(&mut open, count, 0);
        while let Some((index, depth)) = open.pop() {
            walk.numbers[index] = u32::try_from(walk.order.len()).unwrap_or(u32::MAX);
            walk.order.push(ids[index]);
            walk.depths.push(depth);
            push(&mut open, index, depth + 1);
        }
        walk
    }
}

/// By traceback: whether its most recent frame is start code in all tracebacks that go through it.
fn starts(tracebacks: &Tracebacks, used: &[bool]) -> Vec<bool> {
    let mut starts = Starts::default();
    let (mut is_start, mut is_not) = (vec![false; used.len()], vec![false; used.len()]);
    for id in tracebacks.ids().take(used.len()).filter(|&id| used[Tracebacks::traceback_index(id)]) {
        let path: Vec<TracebackId> = std::iter::successors(Some(id), |&id| tracebacks.older(id)).collect();
        let frames = tracebacks.oldest_first(id);
        let count = starts.count(tracebacks, &frames);
        for (depth, &id) in path.iter().rev().enumerate() {
            let index = Tracebacks::traceback_index(id);
            is_start[index] |= depth < count;
            is_not[index] |= depth >= count;
        }
    }
    is_start.into_iter().zip(is_not).map(|(is, is_not)| is && !is_not).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{Left, Part};

    #[test]
    fn nodes_stand_behind_their_callers_and_unused_tracebacks_are_left_out() {
        let mut tracebacks = Tracebacks::default();
        let mut push = |older, name: &str| {
            let [function, filename] = [name, "a.c"].map(|text| tracebacks.string(text));
            let (part, left) = (Part::Asks, Left::Tables);
            tracebacks.push(older, Frame { filename, lineno: 1, function, module: filename, address: 7, part, left })
        };
        let main = push(None, "main");
        let one = push(Some(main), "one");
        let unused = push(Some(main), "unused");
        let two = push(Some(main), "two");
        let deep = push(Some(one), "deep");
        let mut used = Used::default();
        used.add(two, main);
        used.add(deep, one);
        let walk = Walk::of(&tracebacks, &used.used);
        assert_eq!(walk.order, [main, one, deep, two]);
        assert_eq!(walk.depths, [0, 1, 2, 1]);
        assert_eq!(walk.numbers[Tracebacks::traceback_index(deep)], 2);
        assert_eq!(walk.numbers[Tracebacks::traceback_index(unused)], u32::MAX);
    }
}

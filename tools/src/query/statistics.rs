//! Groups and sorts traces, as tracemalloc's `Snapshot.statistics` does.
//!
//! Compares numbers of [`Tracebacks`]. Texts are compared only if size and count are equal.

use crate::frames::{Frame, StringId, TracebackId, TracebackOrder, Tracebacks, UNKNOWN};
use crate::query::estimate::Estimate;
use std::cell::OnceCell;
use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;

/// Blocks with a common traceback, and with a common size and thread if the blocks are live.
#[derive(Clone, Copy, Debug)]
pub struct Trace {
    /// Traceback of the allocation.
    pub traceback: TracebackId,
    /// The traceback up to the blamed frame.
    pub blamed: TracebackId,
    /// Bytes of all blocks.
    pub size: u64,
    /// Number of blocks; number of samples if the blocks are samples.
    pub count: u64,
    /// Estimate of all blocks behind the samples.
    pub estimate: Estimate,
    /// True physical depth of the stack, saturating at 65535.
    pub total_nframe: u16,
    /// Whether the stack could not be walked to its root.
    pub truncated: bool,
    /// Size and thread, known for live blocks only.
    pub block: Option<Block>,
    /// Name of the row for the thread, where known. A thread that lives has a row of its own.
    /// Threads that ended share a row if their names differ in digits only.
    pub threads: Option<StringId>,
    /// Index of the stack in the process; none for sums of threads.
    pub stack: Option<u32>,
}

/// Size and thread of live blocks.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Bytes of each block.
    pub size: u64,
    /// Name and id of the allocating thread.
    pub thread: StringId,
    /// Class of the age, if blocks are told apart by age.
    pub age: Option<u32>,
}

/// Property by which blocks are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the words of the command line")]
pub enum By {
    Filename,
    Lineno,
    Function,
    Module,
    Traceback,
    /// By traceback too, with functions apart, to be shown as a tree.
    Tree,
    Size,
    Thread,
    /// By class of age ([`crate::input::ages::CLASSES`]).
    Age,
}

/// Value shared by all blocks of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// File name, function, module or thread.
    Text(StringId),
    /// File name and line.
    Line(StringId, u32),
    /// Module without lines, and function.
    Symbol(StringId, StringId),
    /// All places from the root on; for [`By::Tree`] with the functions.
    Traceback(TracebackId),
    /// Size of a block, in bytes.
    Size(u64),
    /// Class of age, the youngest first.
    Age(u32),
}

impl Key {
    /// Size of the blocks of a group by size.
    pub fn size(self) -> Option<u64> {
        if let Key::Size(size) = self { Some(size) } else { None }
    }
}

/// A group (tracemalloc: `Statistic`).
#[derive(Clone, Copy, Debug)]
pub struct Statistic {
    /// Value shared by the group's blocks.
    pub key: Key,
    /// Bytes.
    pub size: u64,
    /// Blocks.
    pub count: u64,
    /// Precision of `size` and `count`.
    pub estimate: Estimate,
    /// Frame of the largest trace in the group. The function, module and address of this frame
    /// represent the group.
    pub frame: Frame,
    /// Whether the group contains frames of other functions too.
    pub several_functions: bool,
    /// Greatest true depth of the group's stacks.
    pub total_nframe: u16,
    /// Whether a stack of the group could not be walked to the root.
    pub truncated: bool,
    /// Size of the largest trace, the source of `frame`.
    pub(crate) largest: u64,
}

/// Groups `traces`. With `cumulative` a block counts for every frame of its traceback, and twice
/// for a frame in a recursion.
///
/// Callers refuse `cumulative` for keys of other kinds than single frames; for such keys the flag
/// has no effect.
pub fn group(
    tracebacks: &Tracebacks,
    traces: impl IntoIterator<Item = Trace>,
    by: By,
    cumulative: bool,
) -> HashMap<Key, Statistic> {
    let mut groups = HashMap::new();
    for trace in traces {
        let is_of_all = cumulative && by.is_of_frames();
        let (id, depth) = if is_of_all { (trace.traceback, usize::MAX) } else { (trace.blamed, 1) };
        for frame in tracebacks.frames(id).take(depth) {
            if let Some(key) = by.key(tracebacks, &trace, frame) {
                add(&mut groups, key, &trace, frame);
            }
        }
    }
    groups.values_mut().for_each(|group: &mut Statistic| group.count = group.estimate.count(group.count));
    groups
}

impl By {
    /// Whether each frame has such a key, so a traceback has several keys.
    pub fn is_of_frames(self) -> bool {
        matches!(self, By::Filename | By::Lineno | By::Function | By::Module)
    }

    /// Whether the key is known for live blocks only.
    pub fn is_of_live_blocks(self) -> bool {
        matches!(self, By::Size | By::Age)
    }

    /// Key of a trace's group, for a frame of the trace.
    pub fn key(self, tracebacks: &Tracebacks, trace: &Trace, frame: Frame) -> Option<Key> {
        Some(match self {
            By::Filename => Key::Text(frame.filename),
            By::Lineno if frame.is_unlined() && tracebacks.text(frame.filename) != UNKNOWN => {
                Key::Symbol(frame.filename, frame.function)
            }
            By::Lineno => Key::Line(frame.filename, frame.lineno),
            By::Function => Key::Text(frame.function),
            By::Module => Key::Text(frame.module),
            By::Traceback => Key::Traceback(tracebacks.alike(trace.traceback)),
            By::Tree => Key::Traceback(trace.traceback),
            By::Size => Key::Size(trace.block?.size),
            By::Thread => Key::Text(trace.threads?),
            By::Age => Key::Age(trace.block?.age?),
        })
    }
}

fn add(groups: &mut HashMap<Key, Statistic>, key: Key, trace: &Trace, frame: Frame) {
    let group = groups.entry(key).or_insert(Statistic {
        key,
        size: 0,
        count: 0,
        estimate: Estimate::default(),
        frame,
        several_functions: false,
        total_nframe: 0,
        truncated: false,
        largest: 0,
    });
    group.size = group.size.saturating_add(trace.size);
    group.count = group.count.saturating_add(trace.count);
    group.estimate.add(&trace.estimate);
    group.total_nframe = group.total_nframe.max(trace.total_nframe);
    group.truncated |= trace.truncated;
    group.several_functions |= group.frame.function != frame.function;
    if trace.size > group.largest {
        group.largest = trace.size;
        group.frame = frame;
    }
}

/// Sorts groups in tracemalloc's order: by size, count and key, the greatest first. Ages have an
/// order of their own: the youngest first.
pub fn sorted(tracebacks: &Tracebacks, groups: HashMap<Key, Statistic>) -> Vec<Statistic> {
    let mut rows: Vec<Statistic> = groups.into_values().collect();
    if rows.first().is_some_and(|row| matches!(row.key, Key::Age(_))) {
        rows.sort_unstable_by_key(|row| if let Key::Age(class) = row.key { class } else { 0 });
        return rows;
    }
    let keys = KeyOrder::new(tracebacks);
    let order = |s: &Statistic| Reverse((s.size, s.count));
    rows.sort_unstable_by(|a, b| order(a).cmp(&order(b)).then_with(|| keys.compare(b.key, a.key)));
    rows
}

/// Comparison of keys in tracemalloc's order.
pub(crate) struct KeyOrder<'t> {
    tracebacks: &'t Tracebacks,
    /// Computed when two tracebacks are compared for the first time.
    order: OnceCell<TracebackOrder>,
}

impl<'t> KeyOrder<'t> {
    pub(crate) fn new(tracebacks: &'t Tracebacks) -> KeyOrder<'t> {
        KeyOrder { tracebacks, order: OnceCell::new() }
    }

    /// Compares two keys. Both must be of the same kind, as all keys of a report are.
    pub(crate) fn compare(&self, a: Key, b: Key) -> Ordering {
        let text = |id| self.tracebacks.text(id);
        match (a, b) {
            (Key::Text(a), Key::Text(b)) => text(a).cmp(text(b)),
            (Key::Line(a, x), Key::Line(b, y)) => text(a).cmp(text(b)).then(x.cmp(&y)),
            (Key::Symbol(a, f), Key::Symbol(b, g)) => text(a).cmp(text(b)).then_with(|| text(f).cmp(text(g))),
            // A symbol is at line 0.
            (Key::Line(a, line), Key::Symbol(b, _)) => text(a).cmp(text(b)).then(line.cmp(&0)).then(Ordering::Less),
            (Key::Symbol(..), Key::Line(..)) => self.compare(b, a).reverse(),
            (Key::Traceback(a), Key::Traceback(b)) if a == b => Ordering::Equal,
            (Key::Traceback(a), Key::Traceback(b)) => {
                let order = self.order.get_or_init(|| self.tracebacks.order());
                let functions = |id| self.tracebacks.oldest_first(id).into_iter().map(|frame| text(frame.function));
                order.of(a).cmp(&order.of(b)).then_with(|| functions(a).cmp(functions(b)))
            }
            (Key::Size(a), Key::Size(b)) => a.cmp(&b),
            (Key::Age(a), Key::Age(b)) => a.cmp(&b),
            _ => unreachable!("one report has keys of one kind"),
        }
    }
}

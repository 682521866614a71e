//! tracemalloc's `Snapshot.statistics`: traces, grouped and sorted.
//!
//! Works on numbers of [`Tracebacks`] throughout; texts are only compared where size and count are equal.

use crate::estimate::Estimate;
use crate::frames::{Frame, StringId, TracebackId, TracebackOrder, Tracebacks};
use std::cell::OnceCell;
use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;

/// Blocks that are alike.
#[derive(Clone, Copy, Debug)]
pub struct Trace {
    /// Where they were allocated.
    pub traceback: TracebackId,
    /// The traceback up to the frame that is blamed.
    pub blamed: TracebackId,
    /// Bytes of all of them.
    pub size: u64,
    /// How many; of samples, those.
    pub count: u64,
    /// What they stand for.
    pub estimate: Estimate,
    /// True physical depth of the stack, saturating at 65535.
    pub total_nframe: u16,
    /// Whether the stack could not be walked to its root.
    pub truncated: bool,
    /// What is known of live blocks only.
    pub block: Option<Block>,
}

/// See [`Trace::block`].
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Bytes of each.
    pub size: u64,
    /// Name and id of the thread that allocated them.
    pub thread: StringId,
}

/// What blocks are grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the words of the command line")]
pub enum By {
    Filename,
    Lineno,
    Function,
    Module,
    Traceback,
    Size,
    Thread,
}

/// What all blocks of a group share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// File name, function, module or thread.
    Text(StringId),
    /// File name and line.
    Line(StringId, u32),
    /// All places from the root.
    Traceback(TracebackId),
    /// Size of a block, in bytes.
    Size(u64),
}

/// A group (tracemalloc: `Statistic`).
#[derive(Clone, Copy, Debug)]
pub struct Statistic {
    /// What its blocks share.
    pub key: Key,
    /// Bytes.
    pub size: u64,
    /// Blocks.
    pub count: u64,
    /// How sure both are.
    pub estimate: Estimate,
    /// The frame behind the largest part of the group: its function, module and address speak for the others.
    pub frame: Frame,
    /// Whether frames of other functions are in the group too.
    pub several_functions: bool,
    /// Of the largest part too: the greatest depth of its stacks.
    pub total_nframe: u16,
    /// Whether some stack could not be walked to its root.
    pub truncated: bool,
    /// Size of the largest part, which decides on `frame`.
    pub(crate) largest: u64,
}

/// Groups `traces`. With `cumulative` a block counts for every frame of its traceback, twice where it recurs.
///
/// The callers refuse `cumulative` for keys that are no single frame; here it has no effect on them.
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
            if let Some(key) = by.key(&trace, frame) {
                add(&mut groups, key, &trace, frame);
            }
        }
    }
    groups.values_mut().for_each(|group: &mut Statistic| group.count = group.estimate.count(group.count));
    groups
}

impl By {
    /// Whether each frame has such a key, so that a traceback has several.
    pub fn is_of_frames(self) -> bool {
        matches!(self, By::Filename | By::Lineno | By::Function | By::Module)
    }

    /// Whether it can only be known of live blocks.
    pub fn is_of_live_blocks(self) -> bool {
        matches!(self, By::Size | By::Thread)
    }

    fn key(self, trace: &Trace, frame: Frame) -> Option<Key> {
        Some(match self {
            By::Filename => Key::Text(frame.filename),
            By::Lineno => Key::Line(frame.filename, frame.lineno),
            By::Function => Key::Text(frame.function),
            By::Module => Key::Text(frame.module),
            By::Traceback => Key::Traceback(trace.traceback),
            By::Size => Key::Size(trace.block?.size),
            By::Thread => Key::Text(trace.block?.thread),
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

/// The groups in tracemalloc's order: by size, count and key, the greatest first.
pub fn sorted(tracebacks: &Tracebacks, groups: HashMap<Key, Statistic>) -> Vec<Statistic> {
    let mut rows: Vec<Statistic> = groups.into_values().collect();
    let keys = KeyOrder::new(tracebacks);
    let order = |s: &Statistic| Reverse((s.size, s.count));
    rows.sort_unstable_by(|a, b| order(a).cmp(&order(b)).then_with(|| keys.compare(b.key, a.key)));
    rows
}

/// tracemalloc's order of keys.
pub(crate) struct KeyOrder<'t> {
    tracebacks: &'t Tracebacks,
    /// Made when the first two tracebacks are compared.
    order: OnceCell<TracebackOrder>,
}

impl<'t> KeyOrder<'t> {
    pub(crate) fn new(tracebacks: &'t Tracebacks) -> KeyOrder<'t> {
        KeyOrder { tracebacks, order: OnceCell::new() }
    }

    /// Compares two keys of one kind, as those of a report are.
    pub(crate) fn compare(&self, a: Key, b: Key) -> Ordering {
        let text = |id| self.tracebacks.text(id);
        match (a, b) {
            (Key::Text(a), Key::Text(b)) => text(a).cmp(text(b)),
            (Key::Line(a, x), Key::Line(b, y)) => text(a).cmp(text(b)).then(x.cmp(&y)),
            (Key::Traceback(a), Key::Traceback(b)) => {
                let order = self.order.get_or_init(|| self.tracebacks.order());
                order.of(a).cmp(&order.of(b))
            }
            (Key::Size(a), Key::Size(b)) => a.cmp(&b),
            _ => unreachable!("one report has keys of one kind"),
        }
    }
}

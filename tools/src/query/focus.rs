//! Chooses stacks by any of their frames: with, without, and from a frame on.
//!
//! | Choice | pprof | Stacks |
//! | --- | --- | --- |
//! | focus | `-focus` | with a frame that matches |
//! | ignore | `-ignore` | without a frame that matches |
//! | trim | `-show_from` | from the oldest frame that matches on; none without such a frame |
//!
//! Several patterns of a kind are alternatives. The frames are those of the report: without the
//! frames of allocators, unless raw frames are asked for. The blamed frame of a trimmed stack is
//! one of the frames that are left.

use crate::frames::{TracebackId, Tracebacks};
use crate::query::statistics::Trace;
use crate::query::template::{Search, Template};
use std::collections::HashMap;

/// Choice of stacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Focus {
    /// Keep stacks with a match of any of these; all stacks if there are none.
    pub focus: Vec<Template>,
    /// Drop stacks with a match of any of these.
    pub ignore: Vec<Template>,
    /// Begin stacks with the oldest match of any of these.
    pub trim: Vec<Template>,
}

impl Focus {
    /// Whether all stacks are chosen, and stay whole.
    pub fn is_empty(&self) -> bool {
        self.focus.is_empty() && self.ignore.is_empty() && self.trim.is_empty()
    }

    /// Drops and trims stacks.
    pub(crate) fn apply(&self, tracebacks: &mut Tracebacks, traces: &mut Vec<Trace>) {
        let (mut focus, mut ignore) = (Search::new(&self.focus), Search::new(&self.ignore));
        traces.retain(|trace| {
            let is_in_focus = self.focus.is_empty() || focus.in_traceback(tracebacks, trace.traceback).is_some();
            is_in_focus && ignore.in_traceback(tracebacks, trace.traceback).is_none()
        });
        if self.trim.is_empty() {
            return;
        }
        let mut trim = Trim { search: Search::new(&self.trim), known: HashMap::new() };
        traces.retain_mut(|trace| {
            let trimmed = trim.trimmed(tracebacks, trace.traceback);
            trimmed.into_iter().for_each(|id| (trace.traceback, trace.blamed) = (id, id));
            trimmed.is_some()
        });
    }
}

/// Trims tracebacks, each once.
struct Trim<'t> {
    search: Search<'t>,
    known: HashMap<TracebackId, Option<TracebackId>>,
}

impl Trim<'_> {
    /// Returns the traceback from the oldest match on; none without a match.
    fn trimmed(&mut self, tracebacks: &mut Tracebacks, id: TracebackId) -> Option<TracebackId> {
        let mut unknown = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next.filter(|id| !self.known.contains_key(id)) {
            unknown.push(id);
            next = tracebacks.older(id);
        }
        let mut trimmed = next.and_then(|id| self.known[&id]);
        for id in unknown.into_iter().rev() {
            let frame = tracebacks.most_recent(id);
            if trimmed.is_some() || self.search.in_frame(tracebacks, &frame).is_some() {
                trimmed = Some(tracebacks.push(trimmed, frame));
            }
            self.known.insert(id, trimmed);
        }
        trimmed
    }
}

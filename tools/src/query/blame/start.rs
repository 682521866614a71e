//! Finds the code that starts a program or a thread, at the old end of tracebacks.
//!
//! `_start`, `__libc_start_main`, `clone3`, the loader before a constructor, `std::rt::lang_start`
//! and the trampolines of `std::thread` are below every block and tell nothing. Such frames are
//! nobody's, and the frames of a traceback up to the first other frame are start code. A traceback
//! of start code only stays whole.

use super::{Blamer, Owner, is_nameless, patterns};
use crate::frames::{Frame, TracebackId, Tracebacks};
use std::collections::HashMap;

/// Part of a traceback, walked from the oldest frame on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Walk<T> {
    /// All frames so far are start code.
    Start,
    /// The last frame is a `main` without a line, perhaps made by Rust's compiler, or has no name.
    Main(T),
    /// Frames of others were met.
    Others(T),
}

/// Search for start code.
pub struct Starts {
    blamer: Blamer<'static>,
    known: HashMap<TracebackId, Walk<TracebackId>>,
}

impl Default for Starts {
    fn default() -> Starts {
        Starts { blamer: Blamer::new(&[]), known: HashMap::new() }
    }
}

impl Starts {
    /// Counts the frames of start code. `frames` begins with the oldest.
    pub fn count(&mut self, tracebacks: &Tracebacks, frames: &[Frame]) -> usize {
        let mut walk = Walk::Start;
        for (index, frame) in frames.iter().enumerate() {
            walk = self.step(tracebacks, walk, frame, |first| first.unwrap_or(index));
            if let Walk::Others(first) = walk {
                return first;
            }
        }
        match walk {
            Walk::Main(first) => first,
            Walk::Start | Walk::Others(_) => 0,
        }
    }

    /// Returns the traceback without start code.
    pub fn without(&mut self, tracebacks: &mut Tracebacks, id: TracebackId) -> TracebackId {
        let mut unknown = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next.filter(|id| !self.known.contains_key(id)) {
            unknown.push(id);
            next = tracebacks.older(id);
        }
        let mut walk = next.and_then(|id| self.known.get(&id).copied()).unwrap_or(Walk::Start);
        for &whole in unknown.iter().rev() {
            let frame = tracebacks.most_recent(whole);
            let step = self.step(tracebacks, walk, &frame, |older| older);
            walk = match step {
                Walk::Start => Walk::Start,
                Walk::Main(older) => Walk::Main(tracebacks.push(older, frame)),
                Walk::Others(older) => Walk::Others(tracebacks.push(older, frame)),
            };
            self.known.insert(whole, walk);
        }
        match walk {
            Walk::Start => id,
            Walk::Main(kept) | Walk::Others(kept) => kept,
        }
    }

    /// Walks over a frame. `keep` makes the result of a frame that is kept from the result of the
    /// frames kept so far.
    fn step<T: Copy, K>(
        &mut self,
        tracebacks: &Tracebacks,
        walk: Walk<T>,
        frame: &Frame,
        keep: impl FnOnce(Option<T>) -> K,
    ) -> Walk<K> {
        let function = tracebacks.text(frame.function);
        match walk {
            Walk::Others(kept) => Walk::Others(keep(Some(kept))),
            Walk::Main(_) if STARTS_MAIN.iter().any(|name| function.starts_with(name)) => Walk::Start,
            Walk::Main(kept) => Walk::Others(keep(Some(kept))),
            Walk::Start if self.is_nobodys(tracebacks, frame) => Walk::Start,
            Walk::Start if is_doubtful(tracebacks, frame) => Walk::Main(keep(None)),
            Walk::Start => Walk::Others(keep(None)),
        }
    }

    /// Whether a frame belongs to nobody. Code without a module may be anybody's.
    fn is_nobodys(&mut self, tracebacks: &Tracebacks, frame: &Frame) -> bool {
        let module = tracebacks.text(frame.module);
        let is_nobodys = self.blamer.owner(tracebacks, *frame) == Owner::Nobody;
        !module.is_empty() && (patterns::is_c_library(module) || is_nobodys)
    }
}

/// Functions called by code that starts a program: by a `main` that Rust's compiler has made, and
/// by a `_start` without a name.
const STARTS_MAIN: [&str; 2] = ["std::rt::lang_start", "__libc_start_"];

/// Whether a frame may be start code: the next frame tells.
fn is_doubtful(tracebacks: &Tracebacks, frame: &Frame) -> bool {
    tracebacks.text(frame.function) == "main" && frame.is_unlined() || is_nameless(tracebacks, frame)
}

//! From a call of the allocator to the return addresses on the stack of the call, root included,
//! without frame pointers.
//!
//! Only frames of code without unwind tables are left by their frame pointers (`frame_pointer`).
//!
//! The common case needs two registers. The parts:
//!
//! - [`rules`] holds a rule for each return address met so far: the way from a frame to its caller
//!   with nothing but the stack pointer and the base pointer.
//! - [`cfi`] computes such a rule once from `.eh_frame`. Rare stacks need more (signal frames,
//!   expressions, other registers); [`cfi`] walks them step by step.
//! - [`kept`] holds the last stack, and unwinds only the changed part.
//! - [`generated`] says whether an address may be a return address: in code, behind a call.
//!
//! Nothing here trusts the contents of the stack. An address is read only on a page known to be
//! readable ([`memory`]), and a walk only ever goes towards the root.

pub mod cfi;
mod frame_pointer;
pub mod generated;
pub mod kept;
pub mod memory;
pub mod walk;

use crate::fail;
use crate::rules::{self, Rule};
use crate::thread::Thread;
use heapline_shared_format::event::BY_FRAME_POINTER;

/// Where a hook was entered. The walk finds the caller's frame from here.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Entry {
    /// Address of the return address.
    pub slot: usize,
    /// Value of the base pointer at the entry of the hook.
    pub bp: usize,
}

/// Greatest depth reported exactly.
pub const MAX_DEPTH: u32 = 65_535;

/// Smallest return address of code. Coroutine and thread libraries mark the root of a stack with a
/// smaller value.
const NO_CODE: usize = 4096;

/// A traceback of the present call, ready to be looked up or defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Number of frames stored, the most recent frames.
    pub stored: usize,
    /// Number of frames in all, up to [`MAX_DEPTH`].
    pub total: u32,
    /// Whether the walk ended before the root.
    pub truncated: bool,
}

/// Result of a walk that keeps nothing: the most recent frames up to a limit, and the number of all
/// frames.
pub struct Sink<'a> {
    frames: &'a mut [u64],
    total: usize,
}

impl<'a> Sink<'a> {
    /// Returns an empty sink with room for `frames.len()` frames.
    pub fn new(frames: &'a mut [u64]) -> Sink<'a> {
        Sink { frames, total: 0 }
    }

    /// Notes that the walk left the last frame by its frame pointer.
    fn mark_last(&mut self) {
        if let Some(frame) = self.total.checked_sub(1).and_then(|last| self.frames.get_mut(last)) {
            *frame |= BY_FRAME_POINTER;
        }
    }

    /// Adds a frame. Returns false when the stack has reached [`MAX_DEPTH`].
    fn push(&mut self, pc: usize) -> bool {
        if let Some(frame) = self.frames.get_mut(self.total) {
            *frame = pc as u64;
        }
        self.total += 1;
        self.total < MAX_DEPTH as usize
    }

    fn done(self, truncated: bool) -> Walk {
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_DEPTH")]
        let total = self.total as u32;
        Walk { stored: self.total.min(self.frames.len()), total, truncated }
    }
}

/// Returns the frame of a return address, for a STACK record.
fn marked(pc: usize, by_frame_pointer: bool) -> u64 {
    pc as u64 | if by_frame_pointer { BY_FRAME_POINTER } else { 0 }
}

#[inline(always)]
fn rule_of(thread: &mut Thread, table: rules::Table, pc: usize) -> Rule {
    match table.get(pc) {
        Some(rule) => rule,
        None => rule_miss(thread, pc),
    }
}

#[cold]
#[inline(never)]
fn rule_miss(thread: &mut Thread, pc: usize) -> Rule {
    let rule = fail::guard(|| {
        fail::point(fail::Site::Rule);
        cfi::rule_for(thread, pc)
    });
    let rule = rule.unwrap_or(Rule::UNKNOWN);
    thread.rules().insert(pc, rule);
    rule
}

/// Walks a stack that cannot be kept. The frames go into the thread's frame buffer, the most recent
/// frame first.
#[cold]
#[inline(never)]
pub fn walk_by_cfi(thread: &mut Thread, entry: Entry) -> Walk {
    let walk = fail::guard(|| {
        fail::point(fail::Site::Walk);
        cfi::walk(thread, entry)
    });
    walk.unwrap_or(Walk { stored: 0, total: 0, truncated: true })
}

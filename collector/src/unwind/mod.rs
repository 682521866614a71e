//! From a call of the allocator to the return addresses on its stack, root included, without frame pointers.
//!
//! The common case needs two registers. [`rules`] holds, for each return address met so far, how to get from a frame
//! to its caller with nothing but the stack pointer and rbp; [`cfi`] computes such a rule once from `.eh_frame`, and
//! walks the rare stacks that need more (signal frames, expressions, other registers) step by step.
//!
//! Nothing here trusts what it finds on the stack: an address is read only on a page that is known to be readable
//! ([`memory`]), and a walk only ever goes towards the root.

pub mod cfi;
pub mod memory;
pub mod rules;

use crate::fail;
use crate::thread::Thread;
use memory::Window;
use rules::{Kind, Rule};

/// Where a hook was entered: what the caller's frame is found from.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Entry {
    /// Address of the return address.
    pub slot: usize,
    /// rbp at that moment.
    pub rbp: usize,
}

/// Greatest depth that is told exactly.
pub const MAX_DEPTH: u32 = 65_535;

/// Return addresses below this are no code: coroutine and thread libraries mark the root of a stack so.
const NO_CODE: usize = 4096;

/// How a walk went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Frames stored, the most recent ones.
    pub stored: usize,
    /// Frames in all, up to [`MAX_DEPTH`].
    pub total: u32,
    /// The walk ended before the root.
    pub truncated: bool,
}

/// Where a walk puts what it finds: the most recent frames up to a limit, and the number of all.
pub struct Sink<'a> {
    frames: &'a mut [u64],
    total: usize,
}

impl<'a> Sink<'a> {
    /// An empty sink over room for `frames.len()` frames.
    pub fn new(frames: &'a mut [u64]) -> Sink<'a> {
        Sink { frames, total: 0 }
    }

    /// Adds a frame; false when the stack is deeper than anything is told about.
    #[inline(always)]
    fn push(&mut self, pc: usize) -> bool {
        if let Some(frame) = self.frames.get_mut(self.total) {
            *frame = pc as u64;
        }
        self.total += 1;
        self.total < MAX_DEPTH as usize
    }

    #[inline(always)]
    fn done(self, truncated: bool) -> Walk {
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_DEPTH")]
        let total = self.total as u32;
        Walk { stored: self.total.min(self.frames.len()), total, truncated }
    }
}

/// Walks the stack of `entry` into the thread's frame buffer, the most recent frame first.
#[inline]
pub fn walk(thread: &mut Thread, entry: Entry) -> Walk {
    let mut window = thread.window;
    // SAFETY: the thread's own buffer, and this is the only walk on it.
    let sink = Sink::new(unsafe { thread.frames.as_mut() });
    let walk = walk_by_rules(thread, sink, &mut window, entry);
    thread.window = window;
    walk.unwrap_or_else(|| walk_by_cfi(thread, entry))
}

/// The fast walk. None when it meets a frame that only [`cfi`] understands.
#[inline]
fn walk_by_rules(thread: &mut Thread, mut sink: Sink<'_>, window: &mut Window, entry: Entry) -> Option<Walk> {
    let table = thread.rules();
    let Entry { mut slot, rbp: mut bp } = entry;
    window.start_at(slot);
    loop {
        // SAFETY: the first slot is the caller's own, every later one was admitted by the window.
        let pc = unsafe { (slot as *const usize).read() };
        if pc < NO_CODE {
            return Some(sink.done(false));
        }
        let rule = match table.get(pc) {
            Some(rule) => rule,
            None => rule_miss(thread, pc),
        };
        if !sink.push(pc) {
            return Some(sink.done(true));
        }
        let cfa = match rule.kind() {
            Kind::Sp => (slot + 8).wrapping_add(rule.cfa_offset()),
            Kind::Bp => bp.wrapping_add(rule.cfa_offset()),
            Kind::Realigned => {
                let at = bp.wrapping_sub(rule.cfa_offset());
                if !window.admit(slot, at) {
                    return Some(sink.done(true));
                }
                // SAFETY: admitted just now.
                unsafe { (at as *const usize).read() }
            }
            Kind::Root => return Some(sink.done(false)),
            Kind::Unknown => return Some(sink.done(true)),
            Kind::Complex => return None,
        };
        let next = cfa.wrapping_sub(8);
        if !window.admit(slot + 1, next) {
            return Some(sink.done(true));
        }
        if rule.kind() == Kind::Realigned {
            // SAFETY: rbp's own word lies beside the one that was admitted for the CFA.
            bp = if window.admit(slot, bp) { unsafe { (bp as *const usize).read() } } else { 0 };
        } else if rule.bp_offset() != 0 {
            let at = cfa.wrapping_sub(rule.bp_offset());
            // SAFETY: admitted just now; between this frame's slot and the next.
            bp = if window.admit(slot, at) { unsafe { (at as *const usize).read() } } else { 0 };
        }
        slot = next;
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

#[cold]
#[inline(never)]
fn walk_by_cfi(thread: &mut Thread, entry: Entry) -> Walk {
    let walk = fail::guard(|| {
        fail::point(fail::Site::Walk);
        cfi::walk(thread, entry)
    });
    walk.unwrap_or(Walk { stored: 0, total: 0, truncated: true })
}

//! The walk of an event: by rule from the leaf until the walk meets a kept frame, then by
//! comparison ([`super::kept`]).

use super::kept::{Fresh, How, Pair};
use super::{Entry, NO_CODE, frame_pointer, memory::Window, rule_of};
use crate::arch::unwinding;
use crate::rules::{Kind, Rule};
use crate::thread::Thread;

/// Outcome of an incremental walk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The kept stack equals the present stack.
    Kept,
    /// Nothing is kept: a frame needs more than rules, or there was no memory.
    Unfit,
}

/// Makes the thread's kept stack equal to the stack of `entry`. Steps:
///
/// 1. Unwind frames by rule, from the leaf.
/// 2. At a kept frame with equal slot, return address and (where needed) the base pointer, compare
///    all older words.
/// 3. All words equal: stop. A word differs: go on by rule, from the frame of the word.
/// 4. Put the new frames on top of the kept frames.
#[inline(always)]
pub fn walk(thread: &mut Thread, entry: Entry) -> Outcome {
    let table = thread.rules();
    let Entry { mut slot, mut bp } = entry;
    let mut fresh = 0;
    let mut base = None;
    thread.window.start_at(slot);
    loop {
        let kept = &mut thread.kept;
        if !kept.make_room(fresh) {
            kept.forget();
            return Outcome::Unfit;
        }
        // SAFETY: the window admitted every slot but the first, and the first slot is the caller's
        // own.
        let pc = unsafe { (slot as *const usize).read() };
        // SAFETY: `append` below puts the new frames back on top, as `drop_below` demands.
        if let Some(top) = unsafe { kept.drop_below(slot) }
            && top.slot == slot
            && top.pc == pc
            && (!top.needs_bp || top.bp == bp)
        {
            match kept.verify(table, thread.window.high()) {
                Ok(()) => break,
                Err(k) => {
                    // SAFETY: `k` is the index of a kept frame, and `make_room` found room for all
                    // frames.
                    (slot, bp) = unsafe { kept.detach(k, bp, &mut fresh) };
                    continue;
                }
            }
        }
        if pc < NO_CODE {
            kept.forget();
            kept.set_end(false, false);
            base = Some(Pair { address: slot, value: pc });
            break;
        }
        // A new rule may make the thread forget the kept stack. The walk then goes on to the root.
        let rule = rule_of(thread, table, pc);
        let step = Step::new(rule, slot, bp, &mut thread.window);
        let kept = &mut thread.kept;
        // SAFETY: `make_room` found room for one more frame.
        unsafe { kept.push_fresh(&mut fresh, Fresh { slot, pc, bp, saved: step.saved, how: step.how }) };
        if step.next == 0 {
            match beyond_rules(thread, rule, Entry { slot, bp }, fresh) {
                Beyond::Caller(caller) => {
                    Entry { slot, bp } = caller;
                    continue;
                }
                Beyond::End => break,
                Beyond::Unfit => return Outcome::Unfit,
            }
        }
        if let Some(caller_bp) = step.bp {
            bp = caller_bp;
        }
        slot = step.next;
    }
    // SAFETY: `make_room` found room in the loop, and the window admitted every slot.
    unsafe { thread.kept.append(fresh, base) };
    Outcome::Kept
}

/// Result of a walk at a frame that no rule leads on from.
enum Beyond {
    /// The frame pointer leads to a caller.
    Caller(Entry),
    /// The walk ends.
    End,
    /// The stack cannot be kept.
    Unfit,
}

/// Goes on from the last of `fresh` new frames, with the return address and the base pointer of
/// `frame`, where its rule leads nowhere.
#[cold]
#[inline(never)]
fn beyond_rules(thread: &mut Thread, rule: Rule, frame: Entry, fresh: usize) -> Beyond {
    let kind = rule.kind();
    let (is_doubtful, beyond) = match kind {
        Kind::FramePointer => match by_frame_pointer(thread, frame) {
            Some(Beyond::Caller(caller)) => {
                // SAFETY: the last new frame is written.
                unsafe { thread.kept.leave_by_frame_pointer(fresh - 1, frame.bp) };
                return Beyond::Caller(caller);
            }
            Some(other) => (false, other),
            None => (true, Beyond::End),
        },
        Kind::Complex => (false, Beyond::Unfit),
        _ => (false, Beyond::End),
    };
    thread.kept.forget();
    thread.kept.set_end(kind != Kind::Root, is_doubtful);
    beyond
}

/// Finds the caller of a frame of code without unwind tables. `None` where the frame pointer is not
/// plausible ([`frame_pointer`]).
///
/// On a stack of unknown extent the frame pointer may lead to another stack, which may be gone when
/// a kept stack is compared. Such a stack is unfit to be kept.
fn by_frame_pointer(thread: &mut Thread, Entry { slot, bp }: Entry) -> Option<Beyond> {
    if !frame_pointer::is_near(slot, bp) {
        return None;
    }
    let next = bp + unwinding::RETURN_ABOVE_BP;
    match thread.stack_holds(slot, next) {
        None => return Some(Beyond::Unfit),
        Some(true) if thread.window.admit_doubtful(slot, next) => {}
        Some(_) => return None,
    }
    // SAFETY: the window has admitted both words.
    let (caller_bp, caller) = unsafe { ((bp as *const usize).read(), (next as *const usize).read()) };
    let table = thread.rules();
    let is_plausible = frame_pointer::may_be_return_address(caller) && rule_of(thread, table, caller).is_at_call();
    is_plausible.then_some(Beyond::Caller(Entry { slot: next, bp: caller_bp }))
}

/// Result of applying a rule to a frame.
struct Step {
    /// Slot of the caller; 0 when the walk ends here.
    next: usize,
    /// the base pointer of the caller, when the value changes.
    bp: Option<usize>,
    /// Where the frame saved words, as in [`Fresh::saved`].
    saved: usize,
    how: How,
}

impl Step {
    const END: Step = Step { next: 0, bp: None, saved: 0, how: How::Sp };

    #[inline(always)]
    fn new(rule: Rule, slot: usize, bp: usize, window: &mut Window) -> Step {
        if !rule.is_sp() {
            return Step::other(rule, slot, bp, window);
        }
        // A rule from the stack pointer leads towards the root, and the saved the base pointer lies
        // in between ([`Rule::sp`]).
        let next = unwinding::next_by_sp(slot, rule);
        if next >= window.high() && !window.admit(slot + 1, next) {
            return Step::END;
        }
        Step::saving(rule, next, How::Sp)
    }

    /// Returns the step to `next`. All words from the frame's slot to `next` are readable.
    #[inline(always)]
    fn saving(rule: Rule, next: usize, how: How) -> Step {
        match unwinding::saved_bp(next, rule) {
            0 => Step { next, bp: None, saved: 0, how },
            // SAFETY: `saved` lies between two words admitted by the window.
            saved => Step { next, bp: Some(unsafe { (saved as *const usize).read() }), saved, how },
        }
    }

    #[inline(always)]
    fn other(rule: Rule, slot: usize, bp: usize, window: &mut Window) -> Step {
        match rule.kind() {
            Kind::Bp => {
                let next = unwinding::next_by_bp(bp, rule);
                let saved = unwinding::saved_bp(next, rule);
                let is_sound = window.admit(slot + 1, next) && (saved == 0 || (slot..=next).contains(&saved));
                if is_sound { Step::saving(rule, next, How::Bp) } else { Step::END }
            }
            Kind::Realigned => Step::realigned(rule, slot, bp, window),
            Kind::Sp | Kind::Root | Kind::Unknown | Kind::Complex | Kind::FramePointer => Step::END,
        }
    }

    #[inline(never)]
    fn realigned(rule: Rule, slot: usize, bp: usize, window: &mut Window) -> Step {
        let stored = bp.wrapping_sub(rule.cfa_offset());
        if !window.admit(slot, stored) || !window.admit(slot, bp) {
            return Step::END;
        }
        // SAFETY: the window has just admitted both addresses.
        let (cfa, caller_bp) = unsafe { ((stored as *const usize).read(), (bp as *const usize).read()) };
        let next = unwinding::next_by_cfa(cfa);
        if !window.admit(slot + 1, next) || stored > next || bp > next {
            return Step::END;
        }
        Step { next, bp: Some(caller_bp), saved: stored, how: How::Realigned }
    }
}

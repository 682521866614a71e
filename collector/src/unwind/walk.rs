//! The walk of an event: by rule from the leaf until a kept frame is met, then by comparison
//! ([`super::kept`]).

use super::kept::{Fresh, How, Pair};
use super::{Entry, NO_CODE, memory::Window, rule_of};
use crate::rules::{Kind, Rule};
use crate::thread::Thread;

/// How an incremental walk ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The kept stack is the present one.
    Kept,
    /// A frame that rules cannot describe, or no memory: nothing is kept.
    Unfit,
}

/// Makes the thread's kept stack that of `entry`.
#[inline(always)]
pub fn walk(thread: &mut Thread, entry: Entry) -> Outcome {
    let table = thread.rules();
    let Entry { mut slot, rbp: mut bp } = entry;
    let mut fresh = 0;
    let mut base = None;
    thread.window.start_at(slot);
    loop {
        let kept = &mut thread.kept;
        if !kept.make_room(fresh) {
            kept.forget();
            return Outcome::Unfit;
        }
        // SAFETY: slots were admitted by the window, the first is the caller's own.
        let pc = unsafe { (slot as *const usize).read() };
        // SAFETY: the frames go back on top below.
        if let Some(top) = unsafe { kept.drop_below(slot) }
            && top.slot == slot
            && top.pc == pc
            && (!top.needs_bp || top.bp == bp)
        {
            match kept.verify(table, thread.window.high()) {
                Ok(()) => break,
                Err(k) => {
                    // SAFETY: k is a kept frame, and there was room for all.
                    (slot, bp) = unsafe { kept.detach(k, bp, &mut fresh) };
                    continue;
                }
            }
        }
        if pc < NO_CODE {
            kept.forget();
            kept.set_truncated(false);
            base = Some(Pair { address: slot, value: pc });
            break;
        }
        // This may forget what is kept: then the walk just goes on to the root.
        let rule = rule_of(thread, table, pc);
        let step = Step::new(rule, slot, bp, &mut thread.window);
        let kept = &mut thread.kept;
        // SAFETY: there is room.
        unsafe { kept.push_fresh(&mut fresh, Fresh { slot, pc, bp, saved: step.saved, how: step.how }) };
        if step.next == 0 {
            kept.forget();
            if rule.kind() == Kind::Complex {
                return Outcome::Unfit;
            }
            kept.set_truncated(rule.kind() != Kind::Root);
            break;
        }
        if let Some(caller_bp) = step.bp {
            bp = caller_bp;
        }
        slot = step.next;
    }
    // SAFETY: room was made in the loop, and every slot was admitted.
    unsafe { thread.kept.append(fresh, base) };
    Outcome::Kept
}

/// Where a rule leads.
struct Step {
    /// The caller's slot; 0 when the walk ends here.
    next: usize,
    /// The caller's rbp, if it is another.
    bp: Option<usize>,
    /// As in [`Fresh`].
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
        // A rule from the stack pointer leads towards the root and has the saved rbp in between
        // ([`Rule::sp`]).
        let next = slot.wrapping_add(rule.cfa_offset());
        if next >= window.high() && !window.admit(slot + 1, next) {
            return Step::END;
        }
        Step::saving(rule, next, How::Sp)
    }

    /// The step to `next`, which is readable from the frame's slot on.
    #[inline(always)]
    fn saving(rule: Rule, next: usize, how: How) -> Step {
        match rule.bp_offset() {
            0 => Step { next, bp: None, saved: 0, how },
            offset => {
                let saved = next + 8 - offset;
                // SAFETY: between two words that the window has admitted.
                Step { next, bp: Some(unsafe { (saved as *const usize).read() }), saved, how }
            }
        }
    }

    #[inline(always)]
    fn other(rule: Rule, slot: usize, bp: usize, window: &mut Window) -> Step {
        match rule.kind() {
            Kind::Bp => {
                let next = bp.wrapping_add(rule.cfa_offset()).wrapping_sub(8);
                let is_sound = window.admit(slot + 1, next) && (next + 8).saturating_sub(rule.bp_offset()) >= slot;
                if is_sound { Step::saving(rule, next, How::Bp) } else { Step::END }
            }
            Kind::Realigned => Step::realigned(rule, slot, bp, window),
            Kind::Sp | Kind::Root | Kind::Unknown | Kind::Complex => Step::END,
        }
    }

    #[inline(never)]
    fn realigned(rule: Rule, slot: usize, bp: usize, window: &mut Window) -> Step {
        let stored = bp.wrapping_sub(rule.cfa_offset());
        if !window.admit(slot, stored) || !window.admit(slot, bp) {
            return Step::END;
        }
        // SAFETY: admitted just now.
        let (cfa, caller_bp) = unsafe { ((stored as *const usize).read(), (bp as *const usize).read()) };
        let next = cfa.wrapping_sub(8);
        if !window.admit(slot + 1, next) || stored > next || bp > next {
            return Step::END;
        }
        Step { next, bp: Some(caller_bp), saved: stored, how: How::Realigned }
    }
}

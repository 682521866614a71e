//! Incremental unwinding: the last stack is kept, and only what changed of it is unwound again.
//!
//! ```text
//! kept, the oldest frame first:   [0 main][1 run][2 parse][3 grow]        each: slot, return address, rbp
//! a new event, from its leaf:                      [2' eval][...leaf]     unwound by rule ...
//!                                          ^ same slot, same address      ... until a kept frame is met,
//!                          <── verified by plain loads ──                 and from there only compared
//! ```
//!
//! Why it is sound: a rule is a function of the return address that uses only the stack pointer, rbp and memory at
//! places that these determine. If slot and return address of a frame equal the kept ones, and rbp does where it
//! matters from there on, then the next slot is the kept one. So comparing every word that the kept walk was derived
//! from, in the order in which a walk would read them, *is* the walk. The order matters twice: nothing is read that a
//! walk would not read (a kept slot may lie on a stack that is gone), and a difference ends it at the right frame.
//! Stopping the comparison early would not be sound: the same leaf frames can stand over another caller.
//!
//! Signal frames and other stacks that rules cannot describe are never kept. What is kept is forgotten when a module
//! comes or goes.

use super::rules::{Kind, Rule, Table};
use super::{Entry, MAX_DEPTH, NO_CODE, Walk, memory::Window, rule_of};
use crate::process;
use crate::stacks::mix;
use crate::thread::Thread;
use core::ptr;

/// One frame, and where its rule found what.
#[repr(C)]
#[derive(Clone, Copy)]
struct Frame {
    /// Address of the return address, and its value.
    slot: usize,
    pc: usize,
    /// rbp in this frame.
    bp: usize,
    /// Where this frame saved its caller's rbp; 0 when it did not.
    bp_slot: usize,
    /// Where the CFA of a realigned frame is stored; 0 for others.
    cfa_slot: usize,
    /// Whether its rule starts from rbp.
    uses_bp: bool,
    /// Whether rbp in this frame matters here or in any older frame.
    needs_bp: bool,
    /// Pairs of this frame and all older ones.
    pairs: u32,
    /// What the frame adds to the hash.
    mixed: u64,
}

/// A frame that was unwound just now.
#[repr(C)]
#[derive(Clone, Copy)]
struct Fresh {
    slot: usize,
    pc: usize,
    bp: usize,
    bp_slot: usize,
    cfa_slot: usize,
    uses_bp: bool,
}

/// A word that the walk was derived from.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pair {
    address: usize,
    value: usize,
}

/// For pairs[0] of a stack whose oldest frame needs no further word: always as expected.
static ANCHOR: usize = 0;

/// Most pairs of one frame: return address, stored CFA, saved rbp.
const PAIRS_PER_FRAME: usize = 3;
const FIRST_CAPACITY: usize = 64;

/// The kept stack. All zeros are none, without memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Kept {
    /// The oldest first.
    frames: *mut Frame,
    /// Frames that are being unwound, the most recent first.
    fresh: *mut Fresh,
    pairs: *mut Pair,
    /// Whose pair it is: index of the frame.
    owners: *mut u32,
    capacity: usize,
    len: usize,
    /// No pair's address is higher.
    reach: usize,
    hash: u64,
    /// Frames, from the oldest, that are unchanged since the last definition.
    unchanged: usize,
    is_truncated: bool,
}

/// How an incremental walk ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The kept stack is the present one.
    Kept,
    /// A frame that rules cannot describe, or no memory: nothing is kept.
    Unfit,
}

impl Kept {
    /// Nothing, without memory.
    pub const fn empty() -> Kept {
        Kept {
            frames: ptr::null_mut(),
            fresh: ptr::null_mut(),
            pairs: ptr::null_mut(),
            owners: ptr::null_mut(),
            capacity: 0,
            len: 0,
            reach: 0,
            hash: 0,
            unchanged: 0,
            is_truncated: false,
        }
    }

    /// Forgets the stack after a walk that was left for good in the middle, and the memory too if that is not whole.
    pub fn recover(&mut self) {
        let arrays = [self.frames.is_null(), self.fresh.is_null(), self.pairs.is_null(), self.owners.is_null()];
        if self.capacity == 0 || arrays.contains(&true) {
            *self = Kept::empty();
        }
        self.forget();
    }

    /// What there is to tell.
    #[inline(always)]
    pub fn walk(&self) -> Walk {
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_DEPTH")]
        let total = self.len.min(MAX_DEPTH as usize) as u32;
        Walk { stored: self.len, total, truncated: self.is_truncated }
    }

    /// Sum over all frames of their mixed address and position.
    #[inline(always)]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Frames, from the oldest, that are the same as when this was last [`Kept::defined`].
    pub fn unchanged(&self) -> usize {
        self.unchanged
    }

    /// Notes that the stack is now the last one defined.
    pub fn defined(&mut self) {
        self.unchanged = self.len;
    }

    /// Forgets the stack, keeps the memory.
    pub fn forget(&mut self) {
        self.len = 0;
        self.reach = 0;
        self.hash = 0;
        self.unchanged = 0;
    }

    /// Return addresses from frame `from`, the oldest first.
    pub fn addresses(&self, from: usize) -> impl Iterator<Item = u64> {
        let frames = self.frames;
        // SAFETY: below len, all frames are written.
        (from..self.len).map(move |i| unsafe { (*frames.add(i)).pc as u64 })
    }

    /// # Safety
    /// `i < len`, or `i` is what is about to be written, below the capacity.
    #[inline(always)]
    unsafe fn frame(&mut self, i: usize) -> &mut Frame {
        // SAFETY: the caller's promise.
        unsafe { &mut *self.frames.add(i) }
    }

    #[inline(always)]
    fn pop(&mut self) {
        self.len -= 1;
        // SAFETY: was below len.
        let mixed = unsafe { self.frame(self.len).mixed };
        self.hash = self.hash.wrapping_sub(mixed);
        self.unchanged = self.unchanged.min(self.len);
    }

    /// Makes room for more frames; false at the depth limit or without memory.
    #[cold]
    fn grow(&mut self, fresh: usize) -> bool {
        let capacity = (self.capacity * 4).max(FIRST_CAPACITY);
        if self.capacity > MAX_DEPTH as usize {
            return false;
        }
        let frame_bytes = capacity * size_of::<Frame>();
        let Some(memory) = process::map_own(Kept::bytes(capacity)) else { return false };
        // SAFETY: two arrays of frames, pairs and their owners, inside the new memory; the old ones hold what is copied.
        unsafe {
            let fresh_frames: *mut Fresh = memory.add(frame_bytes).cast();
            let pairs: *mut Pair = fresh_frames.add(capacity).cast();
            let new = Kept {
                frames: memory.cast(),
                fresh: fresh_frames,
                pairs,
                owners: pairs.add(Kept::pairs(capacity)).cast(),
                capacity,
                ..*self
            };
            if self.capacity > 0 {
                ptr::copy_nonoverlapping(self.frames, new.frames, self.len);
                ptr::copy_nonoverlapping(self.fresh, new.fresh, fresh);
                let pairs = if self.len == 0 { 1 } else { self.frame(self.len - 1).pairs as usize };
                ptr::copy_nonoverlapping(self.pairs, new.pairs, pairs);
                ptr::copy_nonoverlapping(self.owners, new.owners, pairs);
                process::unmap_own(self.frames.cast(), Kept::bytes(self.capacity));
            }
            *self = new;
        }
        true
    }

    /// Pairs that belong to so many frames at most.
    const fn pairs(capacity: usize) -> usize {
        capacity * PAIRS_PER_FRAME + 1
    }

    const fn bytes(capacity: usize) -> usize {
        capacity * (size_of::<Frame>() + size_of::<Fresh>())
            + Kept::pairs(capacity) * (size_of::<Pair>() + size_of::<u32>())
    }

    /// # Safety
    /// `fresh` frames are written, and `fresh < capacity`.
    #[inline(always)]
    unsafe fn push_fresh(&mut self, fresh: &mut usize, frame: Fresh) {
        // SAFETY: the caller's promise.
        unsafe { self.fresh.add(*fresh).write(frame) };
        *fresh += 1;
    }

    /// Compares all that the frames below the topmost were derived from. `Err` is the frame to unwind again.
    /// `is_readable`: up to the root, so that it does no harm to read a little ahead of the comparison.
    #[inline(always)]
    fn verify(&mut self, table: Table, is_readable: bool) -> Result<(), usize> {
        // SAFETY: called with a frame kept.
        let mut p = unsafe { self.frame(self.len - 1).pairs as usize } - 1;
        loop {
            // SAFETY: pairs below that of a kept frame are written; each address is one that a walk of the present
            // stack reads next, since everything leafward of it is as it was (see the module).
            unsafe {
                while is_readable && p >= 4 {
                    let four = &*self.pairs.add(p - 4).cast::<[Pair; 4]>();
                    let differs = |pair: &Pair| (pair.address as *const usize).read() ^ pair.value;
                    if differs(&four[0]) | differs(&four[1]) | differs(&four[2]) | differs(&four[3]) != 0 {
                        break;
                    }
                    p -= 4;
                }
                while p > 0 {
                    let Pair { address, value } = *self.pairs.add(p - 1);
                    if (address as *const usize).read() != value {
                        break;
                    }
                    p -= 1;
                }
            }
            if p == 0 {
                return Ok(());
            }
            // SAFETY: as above.
            let k = unsafe { *self.owners.add(p - 1) } as usize;
            if !self.patch(k, p - 1, table) {
                return Err(k);
            }
            p -= 1;
        }
    }

    /// Exchanges a return address whose frame is as large as the one before, which is what a loop that calls from
    /// several places leaves: all older frames stay where they are.
    #[inline(always)]
    fn patch(&mut self, k: usize, pair: usize, table: Table) -> bool {
        if k == 0 {
            return false;
        }
        // SAFETY: 0 < k < len; the slot is as far as the walk has come.
        unsafe {
            let caller = self.frame(k - 1);
            let (next, needs_bp) = (caller.slot, caller.needs_bp);
            let frame = &mut *self.frames.add(k);
            if pair + 1 != frame.pairs as usize || frame.uses_bp || needs_bp {
                return false;
            }
            let pc = (frame.slot as *const usize).read();
            let Some(rule) = table.get(pc) else { return false };
            if rule.kind() != Kind::Sp || frame.slot.wrapping_add(rule.cfa_offset()) != next {
                return false;
            }
            frame.bp_slot = if rule.bp_offset() == 0 { 0 } else { (next + 8).wrapping_sub(rule.bp_offset()) };
            frame.pc = pc;
            let mixed = mix(pc as u64, k as u64);
            self.hash = self.hash.wrapping_sub(frame.mixed).wrapping_add(mixed);
            frame.mixed = mixed;
            (*self.pairs.add(pair)).value = pc;
        }
        self.unchanged = self.unchanged.min(k);
        true
    }

    /// Moves the frames above `k`, which are verified, behind the fresh ones and drops `k`; returns rbp in frame `k`.
    ///
    /// # Safety
    /// `k < len`, and `fresh + len <= capacity`.
    unsafe fn detach(&mut self, k: usize, mut bp: usize, fresh: &mut usize) -> usize {
        while self.len > k + 1 {
            // SAFETY: below len; the saved rbp of a verified frame lies on the present stack.
            unsafe {
                let Frame { slot, pc, bp_slot, cfa_slot, uses_bp, .. } = *self.frame(self.len - 1);
                self.push_fresh(fresh, Fresh { slot, pc, bp, bp_slot, cfa_slot, uses_bp });
                if bp_slot != 0 {
                    bp = (bp_slot as *const usize).read();
                }
            }
            self.pop();
        }
        self.pop();
        bp
    }

    /// Puts the fresh frames on top of the kept ones.
    ///
    /// # Safety
    /// `fresh` frames are written, and `len + fresh <= capacity`. All their slots lie on the present stack.
    #[inline(always)]
    unsafe fn append(&mut self, mut fresh: usize, base: Pair) {
        // SAFETY: the caller's promises; pairs have room for three a frame.
        unsafe {
            let (mut needs, mut pairs) = match self.len {
                0 => {
                    self.reach = if base.value == ANCHOR { 0 } else { base.address };
                    self.pairs.write(base);
                    self.owners.write(0);
                    (false, 1)
                }
                n => (self.frame(n - 1).needs_bp, self.frame(n - 1).pairs),
            };
            while fresh > 0 {
                fresh -= 1;
                let Fresh { slot, pc, bp, bp_slot, cfa_slot, uses_bp } = self.fresh(fresh);
                #[expect(clippy::cast_possible_truncation, reason = "at most MAX_DEPTH")]
                let owner = self.len as u32;
                let mut add = |address: usize| {
                    let value = (address as *const usize).read();
                    self.pairs.add(pairs as usize).write(Pair { address, value });
                    self.owners.add(pairs as usize).write(owner);
                    pairs += 1;
                };
                // A walk reads them in the opposite order.
                if bp_slot != 0 && needs {
                    add(bp_slot);
                }
                if cfa_slot != 0 {
                    add(cfa_slot);
                }
                add(slot);
                needs = uses_bp || needs && bp_slot == 0;
                let mixed = mix(pc as u64, self.len as u64);
                self.hash = self.hash.wrapping_add(mixed);
                self.reach = self.reach.max(slot).max(bp_slot).max(cfa_slot);
                let frame = Frame { slot, pc, bp, bp_slot, cfa_slot, uses_bp, needs_bp: needs, pairs, mixed };
                *self.frame(self.len) = frame;
                self.len += 1;
            }
        }
    }

    /// Field by field: the stores are too recent for a wider load to be served from the store buffer, and it would
    /// wait for them.
    ///
    /// # Safety
    /// The fresh frame is written.
    #[inline(always)]
    unsafe fn fresh(&self, i: usize) -> Fresh {
        // SAFETY: the caller's promise.
        unsafe {
            let fresh = self.fresh.add(i);
            Fresh {
                slot: (&raw const (*fresh).slot).read_volatile(),
                pc: (&raw const (*fresh).pc).read_volatile(),
                bp: (&raw const (*fresh).bp).read_volatile(),
                bp_slot: (&raw const (*fresh).bp_slot).read_volatile(),
                cfa_slot: (&raw const (*fresh).cfa_slot).read_volatile(),
                uses_bp: (&raw const (*fresh).uses_bp).read_volatile(),
            }
        }
    }
}

/// Makes the thread's kept stack that of `entry`.
#[inline(always)]
pub fn walk(thread: &mut Thread, entry: Entry) -> Outcome {
    let table = thread.rules();
    let Entry { mut slot, rbp: mut bp } = entry;
    let mut fresh = 0;
    let mut base = Pair { address: (&raw const ANCHOR).addr(), value: ANCHOR };
    thread.window.start_at(slot);
    loop {
        let kept = &mut thread.kept;
        if fresh + kept.len >= kept.capacity && !grow(kept, fresh) {
            kept.forget();
            return Outcome::Unfit;
        }
        // SAFETY: indices are below len; slots were admitted by the window, the first is the caller's own.
        unsafe {
            while kept.len > 0 && kept.frame(kept.len - 1).slot < slot {
                kept.pop();
            }
            let pc = (slot as *const usize).read();
            if kept.len > 0 {
                let top = kept.frame(kept.len - 1);
                if top.slot == slot && top.pc == pc && (!top.needs_bp || top.bp == bp) {
                    let is_readable = kept.reach < thread.window.high();
                    match kept.verify(table, is_readable) {
                        Ok(()) => break,
                        Err(k) => {
                            slot = kept.frame(k).slot;
                            bp = kept.detach(k, bp, &mut fresh);
                            continue;
                        }
                    }
                }
            }
            if pc < NO_CODE {
                kept.forget();
                base = Pair { address: slot, value: pc };
                kept.is_truncated = false;
                break;
            }
            // This may forget what is kept: then the walk just goes on to the root.
            let rule = rule_of(thread, table, pc);
            let step = Step::new(rule, slot, bp, &mut thread.window);
            let frame = Fresh {
                slot,
                pc,
                bp,
                bp_slot: step.bp_slot,
                cfa_slot: step.cfa_slot,
                uses_bp: matches!(rule.kind(), Kind::Bp | Kind::Realigned),
            };
            let kept = &mut thread.kept;
            kept.push_fresh(&mut fresh, frame);
            if step.next == 0 {
                kept.forget();
                if rule.kind() == Kind::Complex {
                    return Outcome::Unfit;
                }
                kept.is_truncated = rule.kind() != Kind::Root;
                break;
            }
            if step.bp_slot != 0 {
                bp = (step.bp_slot as *const usize).read();
            }
            slot = step.next;
        }
    }
    // SAFETY: room was made in the loop, and every slot was admitted.
    unsafe { thread.kept.append(fresh, base) };
    Outcome::Kept
}

/// Makes room. Until that is done the thread holds no memory that a jump out of it could leave dangling.
#[cold]
#[inline(never)]
fn grow(kept: &mut Kept, fresh: usize) -> bool {
    let mut larger = core::mem::replace(kept, Kept::empty());
    let grown = larger.grow(fresh);
    *kept = larger;
    grown
}

/// Where a rule leads.
struct Step {
    /// The caller's slot; 0 when the walk ends here.
    next: usize,
    bp_slot: usize,
    cfa_slot: usize,
}

impl Step {
    #[inline(always)]
    fn new(rule: Rule, slot: usize, bp: usize, window: &mut Window) -> Step {
        let end = Step { next: 0, bp_slot: 0, cfa_slot: 0 };
        let mut cfa_slot = 0;
        let cfa = match rule.kind() {
            Kind::Sp => (slot + 8).wrapping_add(rule.cfa_offset()),
            Kind::Bp => bp.wrapping_add(rule.cfa_offset()),
            Kind::Realigned => {
                cfa_slot = bp.wrapping_sub(rule.cfa_offset());
                if !window.admit(slot, cfa_slot) {
                    return end;
                }
                // SAFETY: admitted just now.
                unsafe { (cfa_slot as *const usize).read() }
            }
            Kind::Root | Kind::Unknown | Kind::Complex => return end,
        };
        let next = cfa.wrapping_sub(8);
        let bp_slot = match rule.kind() {
            Kind::Realigned => bp,
            _ if rule.bp_offset() != 0 => cfa.wrapping_sub(rule.bp_offset()),
            _ => 0,
        };
        if !window.admit(slot + 1, next) || bp_slot != 0 && !window.admit(slot, bp_slot) {
            return end;
        }
        Step { next, bp_slot, cfa_slot }
    }
}

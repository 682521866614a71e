//! Incremental unwinding: the last stack is kept, and only what changed of it is unwound again.
//!
//! ```text
//! kept, the oldest frame first:   [0 main][1 run][2 parse][3 grow]        each: slot, return address, rbp
//! a new event, from its leaf:                      [2' eval][...leaf]     unwound by rule ...
//!                                          ^ same slot, same address      ... until a kept frame is met,
//!                          <── verified by plain loads ──                 and from there only compared
//! ```
//!
//! Why it is sound: a rule is a function of the return address that uses only the stack pointer,
//! rbp and memory at places that these determine. If slot and return address of a frame equal the
//! kept ones, and rbp does where it matters from there on, then the next slot is the kept one. So
//! comparing every word that the kept walk was derived from, in the order in which a walk would
//! read them, *is* the walk. The order matters twice: nothing is read that a walk would not read (a
//! kept slot may lie on a stack that is gone), and a difference ends it at the right frame.
//! Stopping the comparison early would not be sound: the same leaf frames can stand over another
//! caller.
//!
//! Signal frames and other stacks that rules cannot describe are never kept. What is kept is
//! forgotten when a module comes or goes.

use super::{MAX_DEPTH, Walk};
use crate::process;
use crate::rules::{Kind, Table};
use crate::stacks::mix;
use core::ptr;

/// A frame as it was unwound: where its rule found what.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Fresh {
    /// Address of the return address, and its value.
    pub slot: usize,
    pub pc: usize,
    /// rbp in this frame.
    pub bp: usize,
    /// Where the frame saved its caller's rbp; 0 when it did not. A realigned frame did that at its
    /// own rbp: there it is where its CFA is stored.
    pub saved: usize,
    pub how: How,
}

/// What a frame's rule starts from.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// The stack pointer.
    Sp,
    /// rbp.
    Bp,
    /// rbp, where the CFA is stored.
    Realigned,
}

impl Fresh {
    /// Where the caller's rbp is; 0 when it is still in the register.
    #[inline(always)]
    fn bp_slot(&self) -> usize {
        if self.how == How::Realigned { self.bp } else { self.saved }
    }
}

/// A frame that is kept.
#[repr(C)]
#[derive(Clone, Copy)]
struct Frame {
    of: Fresh,
    /// Whether rbp in this frame matters here or in any older frame.
    needs_bp: bool,
    /// Pairs of this frame and all older ones.
    pairs: u32,
    /// What the frame adds to the hash.
    mixed: u64,
}

/// A word that the walk was derived from.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Pair {
    pub address: usize,
    pub value: usize,
}

impl Pair {
    /// The base of a stack whose oldest frame needs no further word: always as expected.
    fn anchor() -> Pair {
        static ANCHOR: usize = 0;
        Pair { address: (&raw const ANCHOR).addr(), value: 0 }
    }

    /// Whether the word has changed.
    ///
    /// # Safety
    /// The address is readable.
    #[inline(always)]
    unsafe fn difference(&self) -> usize {
        // SAFETY: the caller's promise.
        unsafe { (self.address as *const usize).read() ^ self.value }
    }
}

/// The topmost kept frame.
pub(super) struct Top {
    pub slot: usize,
    pub pc: usize,
    pub bp: usize,
    pub needs_bp: bool,
}

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
    /// The highest address of a pair: that of the oldest frame's return address, or of what ended
    /// the walk there.
    reach: usize,
    hash: u64,
    /// Frames, from the oldest, that are unchanged since the last definition.
    unchanged: usize,
    is_truncated: bool,
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

    /// Forgets the stack after a walk that was left for good in the middle, and the memory too if
    /// that is not whole.
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

    /// The stack ends before the root.
    pub(super) fn set_truncated(&mut self, is_truncated: bool) {
        self.is_truncated = is_truncated;
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
        (from..self.len).map(move |i| unsafe { (*frames.add(i)).of.pc as u64 })
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
    }

    /// Drops the frames leafward of `slot`. Returns the topmost that is left.
    ///
    /// # Safety
    /// To be followed by [`Kept::append`].
    #[inline(always)]
    pub(super) unsafe fn drop_below(&mut self, slot: usize) -> Option<Top> {
        while self.len > 0 {
            // SAFETY: below len.
            let Frame { of: Fresh { slot: top, pc, bp, .. }, needs_bp, .. } = *unsafe { self.frame(self.len - 1) };
            if top >= slot {
                return Some(Top { slot: top, pc, bp, needs_bp });
            }
            self.pop();
        }
        None
    }

    /// Makes room for one more frame besides those that are kept and `fresh` ones. False when there
    /// is none.
    #[inline(always)]
    pub(super) fn make_room(&mut self, fresh: usize) -> bool {
        fresh + self.len < self.capacity || self.grow_whole(fresh)
    }

    /// Until it is done the thread holds no memory that a jump out of it could leave dangling.
    #[cold]
    #[inline(never)]
    fn grow_whole(&mut self, fresh: usize) -> bool {
        let mut larger = core::mem::replace(self, Kept::empty());
        let grown = larger.grow(fresh);
        *self = larger;
        grown
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
        // SAFETY: two arrays of frames, pairs and their owners, inside the new memory; the old ones
        // hold what is copied.
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

    /// Gives the memory back.
    ///
    /// # Safety
    /// The stack is not used any more.
    pub unsafe fn unmap(&mut self) {
        if self.capacity > 0 {
            // SAFETY: the caller's promise; `grow` mapped so many bytes.
            unsafe { process::unmap_own(self.frames.cast(), Kept::bytes(self.capacity)) };
            self.capacity = 0;
        }
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
    pub(super) unsafe fn push_fresh(&mut self, fresh: &mut usize, frame: Fresh) {
        // SAFETY: the caller's promise.
        unsafe { self.fresh.add(*fresh).write(frame) };
        *fresh += 1;
    }

    /// Compares all that the frames below the topmost were derived from. `Err` is the frame to
    /// unwind again. Words below `readable` may be read ahead of the comparison.
    #[inline(always)]
    pub(super) fn verify(&mut self, table: Table, readable: usize) -> Result<(), usize> {
        let is_readable = self.reach < readable;
        // SAFETY: called with a frame kept.
        let mut p = unsafe { self.frame(self.len - 1).pairs as usize } - 1;
        loop {
            // SAFETY: pairs below that of a kept frame are written; each address is one that a walk
            // of the present stack reads next, since everything leafward of it is as it was (see
            // the module).
            p = unsafe { if is_readable { self.changed_by_fours(p) } else { self.changed(p) } };
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

    /// Below the first `p` pairs, the number up to and with the topmost that has changed; 0 when
    /// none has.
    ///
    /// # Safety
    /// The pairs are written, and their addresses readable at least until one has changed.
    #[inline(always)]
    unsafe fn changed(&self, mut p: usize) -> usize {
        // SAFETY: the caller's promise.
        while p > 0 && unsafe { (*self.pairs.add(p - 1)).difference() } == 0 {
            p -= 1;
        }
        p
    }

    /// Like [`Kept::changed`], four at a time.
    ///
    /// # Safety
    /// All of the pairs' addresses are readable.
    #[inline(always)]
    unsafe fn changed_by_fours(&self, mut p: usize) -> usize {
        // SAFETY: the caller's promise.
        unsafe {
            while p >= 4 {
                let four = &*self.pairs.add(p - 4).cast::<[Pair; 4]>();
                let (d, c, b, a) =
                    (four[3].difference(), four[2].difference(), four[1].difference(), four[0].difference());
                if a | b | c | d != 0 {
                    return match (d, c, b) {
                        (0, 0, 0) => p - 3,
                        (0, 0, _) => p - 2,
                        (0, _, _) => p - 1,
                        _ => p,
                    };
                }
                p -= 4;
            }
            self.changed(p)
        }
    }

    /// Exchanges a return address whose frame is as large as the one before, which is what a loop
    /// that calls from several places leaves: all older frames stay where they are.
    #[inline(always)]
    fn patch(&mut self, k: usize, pair: usize, table: Table) -> bool {
        if k == 0 {
            return false;
        }
        // SAFETY: 0 < k < len; the slot is as far as the walk has come.
        unsafe {
            let caller = self.frame(k - 1);
            let (next, needs_bp) = (caller.of.slot, caller.needs_bp);
            let frame = &mut *self.frames.add(k);
            if pair + 1 != frame.pairs as usize || frame.of.how != How::Sp || needs_bp {
                return false;
            }
            let pc = (frame.of.slot as *const usize).read();
            let Some(rule) = table.get(pc) else { return false };
            if rule.kind() != Kind::Sp || frame.of.slot.wrapping_add(rule.cfa_offset()) != next {
                return false;
            }
            frame.of.saved = if rule.bp_offset() == 0 { 0 } else { (next + 8).wrapping_sub(rule.bp_offset()) };
            frame.of.pc = pc;
            let mixed = mix(pc as u64, k as u64);
            self.hash = self.hash.wrapping_sub(frame.mixed).wrapping_add(mixed);
            frame.mixed = mixed;
            (*self.pairs.add(pair)).value = pc;
        }
        self.unchanged = self.unchanged.min(k);
        true
    }

    /// Moves the frames above `k`, which are verified, behind the fresh ones and drops `k`; returns
    /// its slot and rbp.
    ///
    /// # Safety
    /// `k < len`, and `fresh + len <= capacity`. To be followed by [`Kept::append`].
    pub(super) unsafe fn detach(&mut self, k: usize, mut bp: usize, fresh: &mut usize) -> (usize, usize) {
        while self.len > k + 1 {
            // SAFETY: below len; the saved rbp of a verified frame lies on the present stack.
            unsafe {
                let frame = Fresh { bp, ..self.frame(self.len - 1).of };
                self.push_fresh(fresh, frame);
                if frame.bp_slot() != 0 {
                    bp = (frame.bp_slot() as *const usize).read();
                }
            }
            self.pop();
        }
        self.pop();
        // SAFETY: was below len just now.
        (unsafe { self.frame(k) }.of.slot, bp)
    }

    /// Puts the fresh frames on top of the kept ones. `base` is the word that ended the walk at the
    /// root, if one did.
    ///
    /// # Safety
    /// `fresh` frames are written, and `len + fresh <= capacity`. All their slots lie on the
    /// present stack.
    #[inline(always)]
    pub(super) unsafe fn append(&mut self, mut fresh: usize, base: Option<Pair>) {
        self.unchanged = self.unchanged.min(self.len);
        // SAFETY: the caller's promises; pairs have room for three a frame.
        unsafe {
            let (mut needs, mut pairs) = match self.len {
                0 => {
                    let oldest = if fresh > 0 { self.fresh(fresh - 1).slot } else { 0 };
                    self.reach = base.map_or(oldest, |base| base.address);
                    self.pairs.write(base.unwrap_or_else(Pair::anchor));
                    self.owners.write(0);
                    (false, 1)
                }
                n => (self.frame(n - 1).needs_bp, self.frame(n - 1).pairs),
            };
            while fresh > 0 {
                fresh -= 1;
                let of = self.fresh(fresh);
                #[expect(clippy::cast_possible_truncation, reason = "at most MAX_DEPTH")]
                let owner = self.len as u32;
                let mut add = |address: usize, value: usize| {
                    self.pairs.add(pairs as usize).write(Pair { address, value });
                    self.owners.add(pairs as usize).write(owner);
                    pairs += 1;
                };
                if needs || of.how != How::Sp {
                    let word = |address: usize| (address as *const usize).read();
                    // A walk reads them in the opposite order.
                    if needs && of.bp_slot() != 0 {
                        add(of.bp_slot(), word(of.bp_slot()));
                    }
                    if of.how == How::Realigned {
                        add(of.saved, word(of.saved));
                    }
                    needs = of.how != How::Sp || of.saved == 0;
                }
                add(of.slot, of.pc);
                let mixed = mix(of.pc as u64, self.len as u64);
                self.hash = self.hash.wrapping_add(mixed);
                *self.frame(self.len) = Frame { of, needs_bp: needs, pairs, mixed };
                self.len += 1;
            }
        }
    }

    /// Field by field: the stores are too recent for a wider load to be served from the store
    /// buffer, and it would wait for them.
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
                saved: (&raw const (*fresh).saved).read_volatile(),
                how: (&raw const (*fresh).how).read_volatile(),
            }
        }
    }
}

//! Incremental unwinding: the last stack is kept, and only the changed part is unwound again.
//!
//! ```text
//! kept, the oldest frame first:   [0 main][1 run][2 parse][3 grow]
//! a new event, from the leaf:                    [2' eval][...leaf]
//!                                 <─ compared ──><──── unwound ────>
//!
//! each frame: slot, return address, the base pointer
//! unwound:    by rule, from the leaf, until the walk meets a kept frame (same slot, same address)
//! compared:   every older word, verified by plain loads
//! ```
//!
//! Why the comparison is sound: a rule is a function of the return address. A rule uses only the
//! stack pointer, the base pointer, and memory at places determined by these two. Suppose slot and
//! return address of a frame equal the kept values, and the base pointer does where the base
//! pointer matters from there on. Then the next slot is the kept slot. Comparing every word read by
//! the kept walk, in the order of a walk, therefore *is* the walk.
//!
//! The order matters for two reasons:
//!
//! 1. Only words of the present walk are read. A kept slot may lie on a stack already unmapped.
//! 2. A difference ends the comparison at the right frame.
//!
//! Stopping the comparison early would not be sound: equal leaf frames can stand over another
//! caller.
//!
//! Signal frames and other stacks beyond rules are never kept. The kept stack is forgotten when a
//! module is loaded or unloaded.

use super::{MAX_DEPTH, Walk, marked};
use crate::arch::unwinding;
use crate::process;
use crate::rules::{Kind, Table};
use crate::stacks::mix;
use core::ptr;

/// A frame as unwound, with the places where the rule found its values.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Fresh {
    /// Slot: address of the return address. `pc` is the return address.
    pub slot: usize,
    pub pc: usize,
    /// the base pointer in this frame.
    pub bp: usize,
    /// Where the frame saved the caller's the base pointer; 0 without a saved the base pointer. In
    /// a realigned frame: where the CFA is stored, because such a frame saves the caller's the base
    /// pointer at its own the base pointer.
    pub saved: usize,
    pub how: How,
}

/// Starting point of a frame's rule.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// The stack pointer.
    Sp,
    /// the base pointer.
    Bp,
    /// the base pointer, where the CFA is stored.
    Realigned,
    /// the base pointer, without unwind tables.
    FramePointer,
}

impl Fresh {
    /// Returns where the caller's the base pointer is saved; 0 when still in the register.
    #[inline(always)]
    fn bp_slot(&self) -> usize {
        if self.how == How::Realigned { self.bp } else { self.saved }
    }

    /// Reads a frame field by field. The stores are too recent for the store buffer to serve a
    /// wider load, and a wider load would wait for the stores.
    ///
    /// # Safety
    /// The frame is written.
    #[inline(always)]
    unsafe fn recent(frame: *const Fresh) -> Fresh {
        // SAFETY: the caller guarantees that the frame is written.
        unsafe {
            Fresh {
                slot: (&raw const (*frame).slot).read_volatile(),
                pc: (&raw const (*frame).pc).read_volatile(),
                bp: (&raw const (*frame).bp).read_volatile(),
                saved: (&raw const (*frame).saved).read_volatile(),
                how: (&raw const (*frame).how).read_volatile(),
            }
        }
    }
}

/// A kept frame.
#[repr(C)]
#[derive(Clone, Copy)]
struct Frame {
    of: Fresh,
    /// Whether the base pointer in this frame matters here or in any older frame.
    needs_bp: bool,
    /// Number of pairs of this frame and all older frames.
    pairs: u32,
    /// Contribution of the frame to the hash.
    mixed: u64,
}

/// A word read by the kept walk: address and value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Pair {
    pub address: usize,
    pub value: usize,
}

impl Pair {
    /// Returns a pair for a stack whose oldest frame needs no further word. The pair never differs,
    /// or always, where the oldest frame has to be looked at each time.
    fn anchor(is_doubtful: bool) -> Pair {
        static ANCHOR: usize = 0;
        Pair { address: (&raw const ANCHOR).addr(), value: usize::from(is_doubtful) }
    }

    /// Returns the difference between the word now and the kept value; 0 when equal.
    ///
    /// # Safety
    /// The address is readable.
    #[inline(always)]
    unsafe fn difference(&self) -> usize {
        // SAFETY: the caller guarantees that the address is readable.
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

/// Greatest number of pairs of one frame: return address, stored CFA, saved the base pointer.
const PAIRS_PER_FRAME: usize = 3;
const FIRST_CAPACITY: usize = 64;

/// The kept stack. All zeros are an empty stack without memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Kept {
    /// Kept frames, the oldest first.
    frames: *mut Frame,
    /// Frames being unwound, the most recent first.
    fresh: *mut Fresh,
    pairs: *mut Pair,
    /// Index of the frame to unwind again when a pair has changed: the frame of the pair. A return
    /// address belongs to the callee of its frame, if the callee was left by its frame pointer: the
    /// frame pointer is trusted only with the caller that it led to. The owner of such a pair stays
    /// when another callee takes the place, and is then unwound again for nothing.
    owners: *mut u32,
    capacity: usize,
    len: usize,
    /// Highest address of a pair: the address of the oldest frame's return address, or of the word
    /// that ended the walk.
    reach: usize,
    hash: u64,
    /// Number of frames, from the oldest, unchanged since the last definition.
    unchanged: usize,
    is_truncated: bool,
    /// Whether the frame pointer of the oldest frame was rejected. The words that led to the
    /// rejection are not kept.
    is_doubtful: bool,
}

impl Kept {
    /// Returns an empty kept stack without memory.
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
            is_doubtful: false,
        }
    }

    /// Forgets the stack after a walk was abandoned in the middle. Drops the memory too when the
    /// arrays are incomplete.
    pub fn recover(&mut self) {
        let arrays = [self.frames.is_null(), self.fresh.is_null(), self.pairs.is_null(), self.owners.is_null()];
        if self.capacity == 0 || arrays.contains(&true) {
            *self = Kept::empty();
        }
        self.forget();
    }

    /// Returns the size of the kept stack, as a walk.
    #[inline(always)]
    pub fn walk(&self) -> Walk {
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_DEPTH")]
        let total = self.len.min(MAX_DEPTH as usize) as u32;
        Walk { stored: self.len, total, truncated: self.is_truncated }
    }

    /// Returns the sum over all frames of the mixed address and position.
    #[inline(always)]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Returns the number of frames, from the oldest, unchanged since the last [`Kept::defined`].
    pub fn unchanged(&self) -> usize {
        self.unchanged
    }

    /// Notes whether the stack ends before the root, and whether at a rejected frame pointer.
    pub(super) fn set_end(&mut self, is_truncated: bool, is_doubtful: bool) {
        (self.is_truncated, self.is_doubtful) = (is_truncated, is_doubtful);
    }

    /// Notes that the stack is now the last stack defined.
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

    /// Returns the frames from frame `from` on, the oldest first, for a STACK record.
    pub fn addresses(&self, from: usize) -> impl Iterator<Item = u64> {
        let frames = self.frames;
        (from..self.len).map(move |i| {
            // SAFETY: all frames below `len` are written.
            let Fresh { pc, how, .. } = unsafe { (*frames.add(i)).of };
            marked(pc, how == How::FramePointer)
        })
    }

    /// Returns frame `i`.
    ///
    /// # Safety
    /// `i < len`, or `i` is below the capacity and about to be written.
    #[inline(always)]
    unsafe fn frame(&mut self, i: usize) -> &mut Frame {
        // SAFETY: the caller guarantees that `i` is a written frame, or about to be written.
        unsafe { &mut *self.frames.add(i) }
    }

    #[inline(always)]
    fn pop(&mut self) {
        self.len -= 1;
        // SAFETY: the frame was below `len` before the subtraction.
        let mixed = unsafe { self.frame(self.len).mixed };
        self.hash = self.hash.wrapping_sub(mixed);
    }

    /// Drops the frames leafward of `slot`. Returns the topmost frame left.
    ///
    /// # Safety
    /// A call of [`Kept::append`] follows.
    #[inline(always)]
    pub(super) unsafe fn drop_below(&mut self, slot: usize) -> Option<Top> {
        while self.len > 0 {
            // SAFETY: `len - 1` is below `len`.
            let Frame { of: Fresh { slot: top, pc, bp, .. }, needs_bp, .. } = *unsafe { self.frame(self.len - 1) };
            if top >= slot {
                return Some(Top { slot: top, pc, bp, needs_bp });
            }
            self.pop();
        }
        None
    }

    /// Makes room for one more frame besides the kept frames and `fresh` new frames. Returns false
    /// when there is no room.
    #[inline(always)]
    pub(super) fn make_room(&mut self, fresh: usize) -> bool {
        fresh + self.len < self.capacity || self.grow_whole(fresh)
    }

    /// Grows the arrays. Until the growth is done the thread holds no memory, so a jump out of the
    /// growth leaves no dangling pointer.
    #[cold]
    #[inline(never)]
    fn grow_whole(&mut self, fresh: usize) -> bool {
        let mut larger = core::mem::replace(self, Kept::empty());
        let grown = larger.grow(fresh);
        *self = larger;
        grown
    }

    /// Makes room for more frames. Returns false at the depth limit or without memory.
    #[cold]
    fn grow(&mut self, fresh: usize) -> bool {
        let capacity = (self.capacity * 4).max(FIRST_CAPACITY);
        if self.capacity > MAX_DEPTH as usize {
            return false;
        }
        let frame_bytes = capacity * size_of::<Frame>();
        let Some(memory) = process::map_own(Kept::bytes(capacity)) else { return false };
        // SAFETY: the arrays of kept frames, fresh frames, pairs and owners lie inside the new
        // memory. The old arrays hold at least the copied number of elements.
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

    /// Unmaps the memory.
    ///
    /// # Safety
    /// The stack is not used any more.
    pub unsafe fn unmap(&mut self) {
        if self.capacity > 0 {
            // SAFETY: the caller guarantees that the stack is unused, and `grow` mapped the same
            // number of bytes.
            unsafe { process::unmap_own(self.frames.cast(), Kept::bytes(self.capacity)) };
            self.capacity = 0;
        }
    }

    /// Returns the greatest number of pairs of `capacity` frames.
    const fn pairs(capacity: usize) -> usize {
        capacity * PAIRS_PER_FRAME + 1
    }

    const fn bytes(capacity: usize) -> usize {
        capacity * (size_of::<Frame>() + size_of::<Fresh>())
            + Kept::pairs(capacity) * (size_of::<Pair>() + size_of::<u32>())
    }

    /// Stores a new frame behind the `fresh` new frames, and counts the frame.
    ///
    /// # Safety
    /// `fresh` frames are written, and `fresh < capacity`.
    #[inline(always)]
    pub(super) unsafe fn push_fresh(&mut self, fresh: &mut usize, frame: Fresh) {
        // SAFETY: the caller guarantees `fresh < capacity`.
        unsafe { self.fresh.add(*fresh).write(frame) };
        *fresh += 1;
    }

    /// Notes that fresh frame `i` was left by its frame pointer.
    ///
    /// # Safety
    /// Fresh frame `i` is written.
    pub(super) unsafe fn leave_by_frame_pointer(&mut self, i: usize, frame_pointer: usize) {
        // SAFETY: the caller guarantees that fresh frame `i` is written.
        let fresh = unsafe { &mut *self.fresh.add(i) };
        (fresh.saved, fresh.how) = (frame_pointer, How::FramePointer);
    }

    /// Compares all words that the frames below the topmost frame were derived from. `Err` is the
    /// index of the frame to unwind again. Words below `readable` may be read ahead of the
    /// comparison.
    #[inline(always)]
    pub(super) fn verify(&mut self, table: Table, readable: usize) -> Result<(), usize> {
        let is_readable = self.reach < readable;
        // SAFETY: the caller has found a kept frame, so `len - 1` is below `len`.
        let mut p = unsafe { self.frame(self.len - 1).pairs as usize } - 1;
        loop {
            // SAFETY: the pairs of all kept frames are written. Each address is the next address
            // read by a walk of the present stack, because all words leafward of the address are
            // unchanged (see the module's header).
            p = unsafe { if is_readable { self.changed_by_fours(p) } else { self.changed(p) } };
            if p == 0 {
                return Ok(());
            }
            // SAFETY: `p - 1` is the index of a written pair, and each pair has an owner.
            let k = unsafe { *self.owners.add(p - 1) } as usize;
            if !self.patch(k, p - 1, table, is_readable) {
                return Err(k);
            }
            p -= 1;
        }
    }

    /// Finds the topmost changed pair among the first `p` pairs. Returns the number of pairs up to
    /// and including the changed pair; 0 when no pair has changed.
    ///
    /// # Safety
    /// 1. The pairs are written.
    /// 2. The addresses of the pairs are readable, at least until a changed pair.
    #[inline(always)]
    unsafe fn changed(&self, mut p: usize) -> usize {
        // SAFETY: the caller guarantees that pairs are written and readable until a changed pair.
        while p > 0 && unsafe { (*self.pairs.add(p - 1)).difference() } == 0 {
            p -= 1;
        }
        p
    }

    /// Finds the topmost changed pair as [`Kept::changed`] does, four pairs at a time.
    ///
    /// # Safety
    /// 1. The pairs are written.
    /// 2. The addresses of all pairs are readable.
    #[inline(always)]
    unsafe fn changed_by_fours(&self, mut p: usize) -> usize {
        // SAFETY: the caller guarantees that all `p` pairs are written and their addresses
        // readable.
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

    /// Exchanges a return address for another return address whose rule leads to the same caller,
    /// as left by a loop with calls from several places. All other frames stay in place. Returns
    /// whether the exchange was possible.
    ///
    /// The the base pointer of a frame that starts from the base pointer is certain: the walk has
    /// compared the words that gave the frame its the base pointer. the base pointer may lead to
    /// another stack, so the words there must be known to be readable. Where the caller needs its
    /// own the base pointer, both rules must find the caller's the base pointer in the same place.
    /// The word there is the next word to be compared.
    #[inline(always)]
    fn patch(&mut self, k: usize, pair: usize, table: Table, is_readable: bool) -> bool {
        if k == 0 {
            return false;
        }
        // SAFETY: `0 < k < len`, and the walk has come as far as the slot of frame `k`.
        unsafe {
            let caller = self.frame(k - 1);
            let (next, caller_needs_bp) = (caller.of.slot, caller.needs_bp);
            let frame = &mut *self.frames.add(k);
            if pair + 1 != frame.pairs as usize {
                return false;
            }
            let pc = (frame.of.slot as *const usize).read();
            let Some(rule) = table.get(pc) else { return false };
            let leads_to = match (rule.kind(), frame.of.how) {
                (Kind::Sp, How::Sp) => unwinding::next_by_sp(frame.of.slot, rule),
                (Kind::Bp, How::Bp) if is_readable => unwinding::next_by_bp(frame.of.bp, rule),
                _ => return false,
            };
            let saved = unwinding::saved_bp(next, rule);
            if leads_to != next || caller_needs_bp && saved != frame.of.saved || saved != 0 && saved < frame.of.slot {
                return false;
            }
            frame.of.saved = saved;
            frame.of.pc = pc;
            let mixed = mix(pc as u64, k as u64);
            self.hash = self.hash.wrapping_sub(frame.mixed).wrapping_add(mixed);
            frame.mixed = mixed;
            (*self.pairs.add(pair)).value = pc;
        }
        self.unchanged = self.unchanged.min(k);
        true
    }

    /// Moves the verified frames above `k` behind the fresh frames, and drops frame `k`. Returns
    /// slot and the base pointer of frame `k`.
    ///
    /// # Safety
    /// 1. `k < len`.
    /// 2. `fresh + len <= capacity`.
    /// 3. A call of [`Kept::append`] follows.
    pub(super) unsafe fn detach(&mut self, k: usize, mut bp: usize, fresh: &mut usize) -> (usize, usize) {
        while self.len > k + 1 {
            // SAFETY: `len - 1` is below `len`, and the saved the base pointer of a verified frame
            // lies on the present stack.
            unsafe {
                let frame = Fresh { bp, ..Fresh::recent(&raw const (*self.frames.add(self.len - 1)).of) };
                self.push_fresh(fresh, frame);
                if frame.bp_slot() != 0 {
                    bp = (frame.bp_slot() as *const usize).read();
                }
            }
            self.pop();
        }
        self.pop();
        // SAFETY: frame `k` was below `len` before the last `pop`, and `pop` leaves frames written.
        (unsafe { self.frame(k) }.of.slot, bp)
    }

    /// Puts the fresh frames on top of the kept frames. `base` is the word that ended the walk at
    /// the root, if any.
    ///
    /// # Safety
    /// 1. `fresh` frames are written.
    /// 2. `len + fresh <= capacity`.
    /// 3. All slots of the fresh frames lie on the present stack.
    #[inline(always)]
    pub(super) unsafe fn append(&mut self, mut fresh: usize, base: Option<Pair>) {
        self.unchanged = self.unchanged.min(self.len);
        // SAFETY: the caller guarantees written frames and enough capacity; pairs have room for
        // three a frame.
        unsafe {
            let (mut needs, mut pairs) = match self.len {
                0 => {
                    let oldest = if fresh > 0 { (*self.fresh.add(fresh - 1)).slot } else { 0 };
                    self.reach = base.map_or(oldest, |base| base.address);
                    self.pairs.write(base.unwrap_or_else(|| Pair::anchor(self.is_doubtful)));
                    self.owners.write(0);
                    (false, 1)
                }
                n => (self.frame(n - 1).needs_bp, self.frame(n - 1).pairs),
            };
            while fresh > 0 {
                fresh -= 1;
                let of = Fresh::recent(self.fresh.add(fresh));
                #[expect(clippy::cast_possible_truncation, reason = "at most MAX_DEPTH")]
                let owner = self.len as u32;
                let mut add = |address: usize, value: usize| {
                    self.pairs.add(pairs as usize).write(Pair { address, value });
                    self.owners.add(pairs as usize).write(owner);
                    pairs += 1;
                };
                if needs || of.how != How::Sp {
                    if of.how == How::FramePointer {
                        self.trust_with_caller();
                    }
                    let word = |address: usize| (address as *const usize).read();
                    // A walk reads the words in the opposite order.
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

    /// Gives the return address of the topmost frame to the next frame, which was left by its frame
    /// pointer.
    #[cold]
    #[inline(never)]
    fn trust_with_caller(&self) {
        let Some(caller) = self.len.checked_sub(1) else { return };
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_DEPTH")]
        // SAFETY: the caller is below `len`, and has a pair.
        unsafe {
            let pairs = (*self.frames.add(caller)).pairs as usize;
            self.owners.add(pairs - 1).write(self.len as u32);
        }
    }
}

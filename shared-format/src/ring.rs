//! One thread's ring: a chain of segments from the arena's pool, written by one thread, read by the aggregator.
//!
//! ```text
//!             segment a            segment b                 segment c
//!          [ r r r r r pad ] --> [ r r r r r r r ] --> [ r r r . . . . . ]
//!                                      ^ position             ^ head = cursor
//!            given back                (consumer)              (producer, published)
//! ```
//!
//! `head` counts bytes since the slot was taken, whole segments included, so that both sides know from it alone where
//! a segment ends. The producer links a new segment before it publishes anything in it; the consumer gives a segment
//! back only once `head` lies beyond it. Publication is one Release store per record: nothing is stranded when the
//! process dies, and nothing is ever read that was not written whole.
//!
//! Neither side waits here. [`Producer::room`] tells the thread that it needs a segment; where that comes from, and
//! what to do when there is none, is the collector's business.

use crate::arena::{Arena, Calls, SEGMENT_BYTES, SEGMENT_WORDS, Slot};
use crate::event;
use crate::sync::{AtomicU64, Ordering};
use core::ptr;

/// The writing end.
///
/// All zero bytes are a valid value: a closed ring without room. The collector relies on it, since its thread state
/// lies in memory that the kernel wipes on fork.
#[repr(C)]
pub struct Producer {
    /// Where the next record goes.
    cursor: *const AtomicU64,
    /// Words left from there to the end of the segment.
    room: usize,
    /// What `slot.head` holds.
    head: u64,
    slot: *const Slot,
    /// The present segment, and above it the number of segments before it: one word, so that a signal handler that
    /// never returns finds either the old or the new.
    place: u64,
}

impl Producer {
    /// A closed ring.
    pub const fn closed() -> Producer {
        Producer { cursor: ptr::null(), room: 0, head: 0, slot: ptr::null(), place: 0 }
    }

    /// Opens a ring on a slot and a first segment that were just taken from the free lists. The caller publishes the
    /// slot afterwards ([`Slot::state`]).
    ///
    /// # Safety
    /// 1. The arena stays mapped for as long as the producer is used.
    /// 2. No other producer uses the slot or the segment.
    ///
    /// Returns none when an index lies outside of the arena.
    pub unsafe fn open(arena: &Arena, slot: u32, segment: u32) -> Option<Producer> {
        let slot = arena.slot(slot)?;
        let words = arena.segment(segment)?;
        slot.head.store(0, Ordering::Relaxed);
        slot.first_segment.store(segment, Ordering::Relaxed);
        Some(Producer { cursor: words.as_ptr(), room: SEGMENT_WORDS, head: 0, slot, place: u64::from(segment) })
    }

    /// Whether the ring was never opened, or wiped by fork.
    #[inline(always)]
    pub fn is_closed(&self) -> bool {
        self.slot.is_null()
    }

    /// What the thread has done in a domain.
    ///
    /// The ring is open.
    #[inline(always)]
    pub fn calls(&self, domain: u8) -> &Calls {
        debug_assert!(!self.is_closed());
        // SAFETY: an open ring's slot is mapped; a closed one is not asked.
        unsafe { &(*self.slot).calls[usize::from(domain) % crate::event::domain::COUNT] }
    }

    /// Words that fit without another segment.
    #[inline(always)]
    pub fn room(&self) -> usize {
        self.room
    }

    /// Marks the thread in flight: from here to [`Producer::settle`] it may hold a stamp that is not yet published.
    ///
    /// # Safety
    /// The ring is open.
    #[inline(always)]
    pub unsafe fn take_off(&self) {
        // SAFETY: an open ring's slot is mapped.
        unsafe { (*self.slot).in_flight.store(1, Ordering::Relaxed) };
        // The aggregator's membarrier is the other half: only the compiler must keep the order here.
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
    }

    /// Ends what [`Producer::take_off`] began.
    ///
    /// # Safety
    /// The ring is open.
    #[inline(always)]
    pub unsafe fn settle(&self) {
        // SAFETY: an open ring's slot is mapped. Release: the publication comes first.
        unsafe { (*self.slot).in_flight.store(0, Ordering::Release) };
    }

    /// Writes a record of fixed size and publishes it.
    ///
    /// # Safety
    /// `room() >= N`.
    #[inline(always)]
    pub unsafe fn write<const N: usize>(&mut self, words: [u64; N]) {
        let mut i = 0;
        while i < N {
            // SAFETY: N words are left in the segment.
            unsafe { (*self.cursor.add(i)).store(words[i], Ordering::Relaxed) };
            i += 1;
        }
        // SAFETY: as above.
        unsafe { self.publish(N) };
    }

    /// Writes a record of two parts and publishes it.
    ///
    /// # Safety
    /// `room() >= head.len() + n`, where `n` is what `tail` yields.
    pub unsafe fn write_parts(&mut self, head: &[u64], tail: impl Iterator<Item = u64>) {
        let mut n = 0;
        for word in head.iter().copied().chain(tail) {
            // SAFETY: the caller's promise.
            unsafe { (*self.cursor.add(n)).store(word, Ordering::Relaxed) };
            n += 1;
        }
        // SAFETY: as above.
        unsafe { self.publish(n) };
    }

    /// The last `N` words of the present segment, where that many were written.
    pub fn last<const N: usize>(&self) -> Option<[u64; N]> {
        if self.is_closed() || SEGMENT_WORDS - self.room < N {
            return None;
        }
        // SAFETY: an open ring's segment is mapped, and N words of it lie before the cursor.
        Some(core::array::from_fn(|i| unsafe { (*self.cursor.sub(N - i)).load(Ordering::Relaxed) }))
    }

    /// # Safety
    /// `n` words were written at the cursor, and `room() >= n`.
    #[inline(always)]
    unsafe fn publish(&mut self, n: usize) {
        // SAFETY: the cursor stays inside the segment, or one past its end.
        self.cursor = unsafe { self.cursor.add(n) };
        self.room -= n;
        self.head += n as u64 * 8;
        // SAFETY: an open ring's slot is mapped. Release pairs with the Acquire load in `Consumer::drain`.
        unsafe { (*self.slot).head.store(self.head, Ordering::Release) };
    }

    /// Goes on in another segment, which the caller has just taken from the free list; the rest of the present one is
    /// padded. False, and nothing done, when the index lies outside of the arena.
    ///
    /// # Safety
    /// 1. The ring is open on this arena.
    /// 2. No other producer uses the segment.
    pub unsafe fn extend(&mut self, arena: &Arena, segment: u32) -> bool {
        #[expect(clippy::cast_possible_truncation, reason = "the low half")]
        let (Some(link), Some(words)) = (arena.segment_link(self.place as u32), arena.segment(segment)) else {
            return false;
        };
        if self.room > 0 {
            // SAFETY: at least one word is left.
            unsafe { (*self.cursor).store(event::pad(self.room), Ordering::Relaxed) };
        }
        // Published by the Release of the next record's head.
        link.store(segment, Ordering::Relaxed);
        self.head += self.room as u64 * 8;
        self.cursor = words.as_ptr();
        self.room = SEGMENT_WORDS;
        self.place = (self.head / SEGMENT_BYTES as u64) << 32 | u64::from(segment);
        true
    }

    /// Finds the way back after a write that was left for good in the middle (by a signal handler's `siglongjmp`): what
    /// was published counts, the rest is written over. False when the slot does not hold what this producer left there.
    ///
    /// # Safety
    /// The ring is open on this arena.
    pub unsafe fn recover(&mut self, arena: &Arena) -> bool {
        // SAFETY: an open ring's slot is mapped.
        let published = unsafe { (*self.slot).head.load(Ordering::Relaxed) };
        let begin = (self.place >> 32) * SEGMENT_BYTES as u64;
        // A segment may have been linked in that nothing was published in yet.
        let head = published.max(begin);
        #[expect(clippy::cast_possible_truncation, reason = "the low half; an offset in a segment")]
        let (segment, offset) = (self.place as u32, (head - begin) as usize / 8);
        let Some(words) = arena.segment(segment).filter(|_| offset <= SEGMENT_WORDS) else { return false };
        self.head = head;
        self.room = SEGMENT_WORDS - offset;
        self.cursor = words[offset..].as_ptr();
        true
    }
}

/// Who owns which segment, as the aggregator knows it without asking the target.
pub trait Ledger {
    /// The ring has come to `segment`. False when it cannot be the ring's: outside of the pool, or another's.
    fn enter(&mut self, segment: u32) -> bool;
    /// The ring is done with `segment`.
    fn leave(&mut self, segment: u32);
}

/// What a producer wrote that no producer writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

impl core::fmt::Display for Corrupt {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a ring's state in the arena contradicts itself")
    }
}

impl core::error::Error for Corrupt {}

/// What a visit to a ring has brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Bytes consumed.
    pub bytes: u64,
    /// Whether more was published.
    pub is_cut: bool,
}

/// The reading end.
#[derive(Debug)]
pub struct Consumer {
    position: u64,
    segment: u32,
}

impl Consumer {
    /// A consumer for a slot that was just taken.
    pub fn open(slot: &Slot, ledger: &mut impl Ledger) -> Result<Consumer, Corrupt> {
        let segment = slot.first_segment.load(Ordering::Relaxed);
        if ledger.enter(segment) { Ok(Consumer { position: 0, segment }) } else { Err(Corrupt) }
    }

    /// Bytes consumed so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Hands everything that is published to `copy`, segment by segment, and gives finished segments back.
    ///
    /// The words are still in shared memory: `copy` reads each once. Returns the number of bytes consumed.
    pub fn drain(
        &mut self,
        arena: &Arena,
        slot: &Slot,
        ledger: &mut impl Ledger,
        copy: impl FnMut(&[AtomicU64]),
    ) -> Result<u64, Corrupt> {
        self.drain_some(arena, slot, ledger, u64::MAX, copy).map(|drained| drained.bytes)
    }

    /// Like [`Consumer::drain`], but begins no further segment once `most` bytes were consumed.
    pub fn drain_some(
        &mut self,
        arena: &Arena,
        slot: &Slot,
        ledger: &mut impl Ledger,
        most: u64,
        mut copy: impl FnMut(&[AtomicU64]),
    ) -> Result<Drained, Corrupt> {
        // Acquire pairs with the Release in `Producer::publish`.
        let head = slot.head.load(Ordering::Acquire);
        let start = self.position;
        let pool_bytes = arena.geometry().segments as u64 * SEGMENT_BYTES as u64;
        let behind = head.checked_sub(start).ok_or(Corrupt)?;
        if !head.is_multiple_of(8) || behind > pool_bytes {
            return Err(Corrupt);
        }
        while self.position < head {
            #[expect(clippy::cast_possible_truncation, reason = "less than a segment")]
            let offset = (self.position % SEGMENT_BYTES as u64) as usize;
            if offset == 0 && self.position - start >= most {
                break;
            }
            if offset == 0 && self.position > 0 {
                let next = arena.segment_link(self.segment).ok_or(Corrupt)?.load(Ordering::Relaxed);
                if !ledger.enter(next) {
                    return Err(Corrupt);
                }
                ledger.leave(self.segment);
                self.segment = next;
            }
            let bytes = (SEGMENT_BYTES as u64 - offset as u64).min(head - self.position);
            let words = arena.segment(self.segment).ok_or(Corrupt)?;
            copy(&words[offset / 8..][..(bytes / 8) as usize]);
            self.position += bytes;
        }
        Ok(Drained { bytes: self.position - start, is_cut: self.position < head })
    }

    /// Gives the last segment back. The producer is gone.
    pub fn close(self, ledger: &mut impl Ledger) {
        ledger.leave(self.segment);
    }
}

//! The ring of a thread: a chain of segments from the arena's pool. The thread writes, the
//! aggregator reads.
//!
//! ```text
//!             segment a            segment b                 segment c
//!          [ r r r r r pad ] --> [ r r r r r r r ] --> [ r r r . . . . . ]
//!                                      ^ position             ^ head = cursor
//!            given back                (consumer)              (producer, published)
//! ```
//!
//! `head` counts all bytes since the slot was taken, whole segments included. From `head` alone
//! both sides know where a segment ends.
//!
//! 1. The producer links a new segment before publishing anything in the segment.
//! 2. Publication is a Release store of `head` for each record. A dying process strands no record,
//!    and the consumer never reads a half-written record.
//! 3. The consumer gives a segment back only when `head` lies beyond the segment.
//!
//! Neither side waits in this module. [`Producer::room`] tells the thread when a new segment is
//! needed. The collector decides where to get the segment, and what to do when there is none.

use crate::arena::{Arena, Calls, SEGMENT_BYTES, SEGMENT_WORDS, Slot};
use crate::event;
use crate::sync::{AtomicU64, Ordering};
use core::ptr;

/// The writing end of a ring.
///
/// All zero bytes are a valid value: a closed ring without room. The collector relies on this,
/// because its thread state lies in memory wiped by the kernel on fork.
#[repr(C)]
pub struct Producer {
    /// Place of the next record.
    cursor: *const AtomicU64,
    /// Words left from the cursor to the end of the segment.
    room: usize,
    /// Number of bytes in the ring so far, padding included. Equal to `slot.head`, except between
    /// [`Producer::extend`] and the next record.
    head: u64,
    slot: *const Slot,
    /// Low half: the present segment. High half: the number of segments before the present segment.
    /// Both share a word, so that a signal handler that never returns finds either the old pair or
    /// the new pair.
    place: u64,
}

impl Producer {
    /// Returns a closed ring.
    pub const fn closed() -> Producer {
        Producer { cursor: ptr::null(), room: 0, head: 0, slot: ptr::null(), place: 0 }
    }

    /// Opens a ring on a slot and a first segment, both just taken from the free lists. Afterwards
    /// the caller publishes the slot ([`Slot::state`]).
    ///
    /// Returns none when an index lies outside of the arena.
    ///
    /// # Safety
    /// 1. The arena stays mapped for as long as the producer is used.
    /// 2. No other producer uses the slot or the segment.
    pub unsafe fn open(arena: &Arena, slot: u32, segment: u32) -> Option<Producer> {
        let slot = arena.slot(slot)?;
        let words = arena.segment(segment)?;
        slot.head.store(0, Ordering::Relaxed);
        slot.first_segment.store(segment, Ordering::Relaxed);
        Some(Producer { cursor: words.as_ptr(), room: SEGMENT_WORDS, head: 0, slot, place: u64::from(segment) })
    }

    /// Whether the ring was never opened, or was wiped by fork.
    #[inline(always)]
    pub fn is_closed(&self) -> bool {
        self.slot.is_null()
    }

    /// Counters of the thread's calls in a domain. The ring must be open.
    #[inline(always)]
    pub fn calls(&self, domain: u8) -> &Calls {
        debug_assert!(!self.is_closed());
        // SAFETY: the slot of an open ring is mapped, and callers ask only an open ring.
        unsafe { &(*self.slot).calls[usize::from(domain) % crate::word::domain::COUNT] }
    }

    /// Number of words that fit without another segment.
    #[inline(always)]
    pub fn room(&self) -> usize {
        self.room
    }

    /// Marks the thread in flight: until [`Producer::settle`] the thread may hold an unpublished
    /// stamp.
    ///
    /// # Safety
    /// The ring is open.
    #[inline(always)]
    pub unsafe fn take_off(&self) {
        // SAFETY: the caller guarantees that the ring is open, and the slot of an open ring is
        // mapped.
        unsafe { (*self.slot).in_flight.store(1, Ordering::Relaxed) };
        // The aggregator's membarrier is the other half of this fence, so only the compiler must
        // keep the order.
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
    }

    /// Ends the in-flight mark set by [`Producer::take_off`].
    ///
    /// # Safety
    /// The ring is open.
    #[inline(always)]
    pub unsafe fn settle(&self) {
        // SAFETY: the caller guarantees that the ring is open, and the slot of an open ring is
        // mapped. Release: the publication comes before the end of the mark.
        unsafe { (*self.slot).in_flight.store(0, Ordering::Release) };
    }

    /// Writes a record of fixed size and publishes the record.
    ///
    /// # Safety
    /// `room() >= N`.
    #[inline(always)]
    pub unsafe fn write<const N: usize>(&mut self, words: [u64; N]) {
        let mut i = 0;
        while i < N {
            // SAFETY: the caller guarantees that N words are left in the segment.
            unsafe { (*self.cursor.add(i)).store(words[i], Ordering::Relaxed) };
            i += 1;
        }
        // SAFETY: the loop wrote N words, and the caller guarantees `room() >= N`.
        unsafe { self.publish(N) };
    }

    /// Writes a record of two parts and publishes the record.
    ///
    /// # Safety
    /// `room() >= head.len() + n`, where `n` is the number of words in `tail`.
    pub unsafe fn write_parts(&mut self, head: &[u64], tail: impl Iterator<Item = u64>) {
        let mut n = 0;
        for word in head.iter().copied().chain(tail) {
            // SAFETY: the caller guarantees room for all words of `head` and `tail`.
            unsafe { (*self.cursor.add(n)).store(word, Ordering::Relaxed) };
            n += 1;
        }
        // SAFETY: the loop wrote `n` words, and the caller guarantees `room() >= n`.
        unsafe { self.publish(n) };
    }

    /// Last `N` words of the present segment. None when the segment holds fewer words.
    pub fn last<const N: usize>(&self) -> Option<[u64; N]> {
        if self.is_closed() || SEGMENT_WORDS - self.room < N {
            return None;
        }
        // SAFETY: the segment of an open ring is mapped, and N of its words lie before the cursor.
        Some(core::array::from_fn(|i| unsafe { (*self.cursor.sub(N - i)).load(Ordering::Relaxed) }))
    }

    /// Moves the cursor over `n` words and stores the new `head`.
    ///
    /// # Safety
    /// `n` words were written at the cursor, and `room() >= n`.
    #[inline(always)]
    unsafe fn publish(&mut self, n: usize) {
        // SAFETY: the cursor stays inside the segment, or ends just behind the last word.
        self.cursor = unsafe { self.cursor.add(n) };
        self.room -= n;
        self.head += n as u64 * 8;
        // SAFETY: the slot of an open ring is mapped. Release pairs with the Acquire load in
        // `Consumer::drain_some`.
        unsafe { (*self.slot).head.store(self.head, Ordering::Release) };
    }

    /// Continues the ring in another segment, just taken by the caller from the free list. The rest
    /// of the present segment is padded.
    ///
    /// Returns false, and changes nothing, when the index lies outside of the arena.
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
            // SAFETY: at least one word is left in the segment.
            unsafe { (*self.cursor).store(event::pad(self.room), Ordering::Relaxed) };
        }
        // The Release store of the next record's head publishes the link.
        link.store(segment, Ordering::Relaxed);
        self.head += self.room as u64 * 8;
        self.cursor = words.as_ptr();
        self.room = SEGMENT_WORDS;
        self.place = (self.head / SEGMENT_BYTES as u64) << 32 | u64::from(segment);
        true
    }

    /// Repairs the producer after an unfinished write, left by the `siglongjmp` of a signal
    /// handler. Published words count; later words are written over.
    ///
    /// Returns false when the slot contradicts the producer's state.
    ///
    /// # Safety
    /// The ring is open on this arena.
    pub unsafe fn recover(&mut self, arena: &Arena) -> bool {
        // SAFETY: the caller guarantees that the ring is open, and the slot of an open ring is
        // mapped.
        let published = unsafe { (*self.slot).head.load(Ordering::Relaxed) };
        let begin = (self.place >> 32) * SEGMENT_BYTES as u64;
        // The present segment may be linked in, but without a published record.
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

/// The aggregator's record of segment owners, kept without asking the target.
pub trait Ledger {
    /// Notes that the ring has come to `segment`. Returns false when the ring cannot own `segment`:
    /// outside of the pool, or owned by another ring.
    fn enter(&mut self, segment: u32) -> bool;
    /// Notes that the ring is done with `segment`.
    fn leave(&mut self, segment: u32);
}

/// Error: the ring's state in the arena is impossible for a correct producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

impl core::fmt::Display for Corrupt {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a ring's state in the arena contradicts itself")
    }
}

impl core::error::Error for Corrupt {}

/// Result of a visit to a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Bytes consumed.
    pub bytes: u64,
    /// Whether more was published than consumed.
    pub is_cut: bool,
}

/// The reading end of a ring.
#[derive(Debug)]
pub struct Consumer {
    position: u64,
    segment: u32,
}

impl Consumer {
    /// Opens a consumer for a slot that was just taken.
    pub fn open(slot: &Slot, ledger: &mut impl Ledger) -> Result<Consumer, Corrupt> {
        let segment = slot.first_segment.load(Ordering::Relaxed);
        if ledger.enter(segment) { Ok(Consumer { position: 0, segment }) } else { Err(Corrupt) }
    }

    /// Bytes consumed so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Hands all published words to `copy`, segment by segment, and gives finished segments back.
    /// Returns the number of bytes consumed.
    ///
    /// The words are still in shared memory: `copy` must read each word once.
    pub fn drain(
        &mut self,
        arena: &Arena,
        slot: &Slot,
        ledger: &mut impl Ledger,
        copy: impl FnMut(&[AtomicU64]),
    ) -> Result<u64, Corrupt> {
        self.drain_some(arena, slot, ledger, u64::MAX, copy).map(|drained| drained.bytes)
    }

    /// Drains like [`Consumer::drain`], but begins no further segment once `most` bytes are
    /// consumed.
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

    /// Gives the last segment back. The producer must be gone.
    pub fn close(self, ledger: &mut impl Ledger) {
        ledger.leave(self.segment);
    }
}

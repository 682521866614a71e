//! Merges the rings of all threads into one sequence, in the order of stamps.
//!
//! Each poll of the drain ends with a [`Mark`] with a time:
//!
//! | Ring at the mark | Complete up to |
//! | --- | --- |
//! | not flagged | the time of the mark |
//! | flagged | the last record taken |
//!
//! A ring is flagged if the thread is in the middle of an event, or if more is in the ring than was
//! taken.
//!
//! Records at or below the least of these stamps are final and are applied. Later records wait
//! here. A definition of a stack has no stamp and goes with the next stamped record of the ring.
//!
//! The merge uses no clock and no memory of other components. Input may be any words: a ring with
//! invalid records is given up, without effect on other rings.

use crate::table::contradiction::Contradiction;
use heapline_shared_format::event::{self, DecodeError, Event};
use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

/// Longest time that a thread in the middle of an event holds up the other threads. The time is
/// longer than any scheduling delay of a machine in use. Without the limit, a thread stopped by a
/// debugger would hold the table for ever.
const STUCK_AFTER: Duration = Duration::from_secs(2);
/// Most words waiting here (256 MiB), besides the contents of the arena. Beyond the limit nothing
/// is held back any more. The drain stops long before.
const MAX_WAITING_WORDS: usize = 1 << 25;
/// Most words of definitions before one stamped record. No collector writes more.
const MAX_UNSTAMPED_WORDS: usize = 1 << 21;

/// Error of a ring with invalid records. The ring is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

impl From<DecodeError> for Corrupt {
    fn from(error: DecodeError) -> Corrupt {
        tracing::warn!(%error, "ring given up");
        Corrupt
    }
}

/// Receiver of the merged sequence.
pub trait Sink {
    /// State kept for each ring.
    type Ring;
    /// Applies the next record of the sequence.
    fn apply(&mut self, ring: &mut Self::Ring, event: Event<'_>) -> Result<(), Corrupt>;
    /// Ends a ring. The ring's last record has been applied.
    fn close(&mut self, ring: Self::Ring);
    /// Ends a run of final records: the sums may be read now.
    fn catch_up(&mut self) {}
    /// Counts a contradiction resolved by rule.
    fn contradiction(&mut self, kind: Contradiction);
}

/// The end of a poll.
#[derive(Clone, Debug, Default)]
pub struct Mark {
    /// Rings that are not flagged are complete up to this stamp.
    pub time: u64,
    /// Wall time of the poll, on the clock of all polls of the aggregator.
    pub wall: Duration,
    /// Flagged slots with a thread in the middle of an event.
    pub in_flight: Vec<u32>,
    /// Flagged slots with more words in the ring than were taken.
    pub unread: Vec<u32>,
}

/// Rings of one image, and the records that wait to be merged.
pub struct Order<R> {
    rings: Vec<Option<Ring<R>>>,
    unused: Vec<usize>,
    /// Index of the open ring on each slot. A closed ring stays without a slot until the last
    /// record is applied.
    by_slot: HashMap<u32, usize>,
    /// Time of the last mark.
    marked: u64,
    /// All records up to this stamp have been applied.
    watermark: u64,
    waiting_words: usize,
    max_waiting_words: usize,
    spent: Vec<Vec<u64>>,
}

struct Ring<R> {
    state: R,
    batches: VecDeque<Vec<u64>>,
    /// Position of the next record to apply.
    at: Cursor,
    /// Position where the search for the next stamp continues.
    ahead: Cursor,
    unstamped_words: usize,
    /// Stamp of the next stamped record.
    front: Option<u64>,
    /// Stamp of the last applied record.
    last: u64,
    /// No older record can still come, whatever the flag says.
    complete_to: u64,
    flag: Option<Flag>,
    open: bool,
    corrupt: bool,
    words_in: u64,
    words_left: usize,
}

/// Position of a record. Batches are counted from the first batch still held.
#[derive(Clone, Copy, Default)]
struct Cursor {
    batch: usize,
    word: usize,
}

#[derive(Clone, Copy)]
struct Flag {
    since: Duration,
    words_in: u64,
    released: bool,
}

impl<R> Default for Order<R> {
    fn default() -> Order<R> {
        Order {
            rings: Vec::new(),
            unused: Vec::new(),
            by_slot: HashMap::new(),
            marked: 0,
            watermark: 0,
            waiting_words: 0,
            max_waiting_words: MAX_WAITING_WORDS,
            spent: Vec::new(),
        }
    }
}

impl<R> Order<R> {
    /// Returns an order for an arena with a pool of `words` words. At the end, all of the pool may
    /// come at once.
    pub fn of_pool(words: usize) -> Order<R> {
        Order { max_waiting_words: MAX_WAITING_WORDS.saturating_add(words), ..Order::default() }
    }

    /// Number of words waiting to be merged.
    pub fn waiting_words(&self) -> usize {
        self.waiting_words
    }

    /// Slots with open rings, and whether records of the ring wait.
    pub fn waiting(&self) -> impl Iterator<Item = (u32, bool)> {
        self.by_slot
            .iter()
            .map(|(&slot, &key)| (slot, self.rings[key].as_ref().is_some_and(|ring| ring.front.is_some())))
    }

    /// Opens a ring on a slot taken by a thread. Closes the previous ring of the slot.
    pub fn open(&mut self, slot: u32, state: R) {
        self.close(slot);
        let ring = Ring {
            state,
            batches: VecDeque::new(),
            at: Cursor::default(),
            ahead: Cursor::default(),
            unstamped_words: 0,
            front: None,
            last: 0,
            complete_to: self.marked,
            flag: None,
            open: true,
            corrupt: false,
            words_in: 0,
            words_left: 0,
        };
        let key = self.unused.pop().unwrap_or_else(|| {
            self.rings.push(None);
            self.rings.len() - 1
        });
        self.rings[key] = Some(ring);
        self.by_slot.insert(slot, key);
    }

    /// Adds whole records of a slot's ring, in the order of writing.
    pub fn push(&mut self, slot: u32, words: Vec<u64>, sink: &mut impl Sink<Ring = R>) {
        let ring = self.by_slot.get(&slot).and_then(|&key| self.rings[key].as_mut());
        let Some(ring) = ring.filter(|ring| !ring.corrupt && !words.is_empty()) else {
            self.spent.push(words);
            return;
        };
        self.waiting_words += words.len();
        ring.words_in += words.len() as u64;
        ring.words_left += words.len();
        ring.batches.push_back(words);
        if ring.front.is_none() && ring.find_front(self.watermark, sink).is_err() {
            self.waiting_words -= ring.give_up(&mut self.spent);
        }
    }

    /// Gives up the ring of a slot. The drain has found invalid state of the slot in the arena.
    pub fn give_up(&mut self, slot: u32, sink: &mut impl Sink<Ring = R>) {
        sink.contradiction(Contradiction::Corrupt);
        if let Some(ring) = self.by_slot.get(&slot).and_then(|&key| self.rings[key].as_mut()) {
            self.waiting_words -= ring.give_up(&mut self.spent);
        }
    }

    /// Closes the ring of a slot. The thread is gone, and all its records have been pushed.
    pub fn close(&mut self, slot: u32) {
        if let Some(ring) = self.by_slot.remove(&slot).and_then(|key| self.rings[key].as_mut()) {
            ring.open = false;
        }
    }

    /// Ends a poll: applies all final records. Returns the watermark.
    pub fn advance(&mut self, mark: &Mark, sink: &mut impl Sink<Ring = R>) -> u64 {
        self.marked = self.marked.max(mark.time);
        let hold = self.waiting_words <= self.max_waiting_words;
        self.set_flags(mark);
        let limit = self.rings.iter().flatten().filter_map(|ring| ring.hold(hold)).min().unwrap_or(u64::MAX);
        self.merge(limit.min(self.marked), hold, sink);
        self.watermark
    }

    /// Ends the input: applies all records and closes all rings.
    pub fn finish(&mut self, sink: &mut impl Sink<Ring = R>) {
        for ring in self.rings.iter_mut().flatten() {
            ring.open = false;
            ring.flag = None;
        }
        self.by_slot.clear();
        let watermark = self.watermark;
        self.merge(u64::MAX, false, sink);
        // The next image continues with the stamps of the same clock.
        self.watermark = watermark.max(self.marked);
    }

    /// Empty buffers for further records.
    pub fn spent(&mut self) -> impl Iterator<Item = Vec<u64>> + '_ {
        self.spent.drain(..)
    }

    fn set_flags(&mut self, mark: &Mark) {
        let keys = |slots: &[u32]| {
            let mut keys: Vec<usize> = slots.iter().filter_map(|slot| self.by_slot.get(slot).copied()).collect();
            keys.sort_unstable();
            keys
        };
        let (in_flight, unread) = (keys(&mark.in_flight), keys(&mark.unread));
        for (key, ring) in self.rings.iter_mut().enumerate() {
            let Some(ring) = ring else { continue };
            let is_unread = unread.binary_search(&key).is_ok();
            if !is_unread && in_flight.binary_search(&key).is_err() {
                ring.flag = None;
                ring.complete_to = ring.complete_to.max(mark.time);
                continue;
            }
            let words_in = ring.words_in;
            let flag = ring.flag.get_or_insert(Flag { since: mark.wall, words_in, released: false });
            if is_unread || flag.words_in != words_in {
                *flag = Flag { since: mark.wall, words_in, released: false };
            } else if mark.wall.saturating_sub(flag.since) > STUCK_AFTER {
                flag.released = true;
            }
        }
    }

    fn merge(&mut self, mut limit: u64, hold: bool, sink: &mut impl Sink<Ring = R>) {
        let fronts = self.rings.iter().enumerate().filter_map(|(key, ring)| {
            let front = ring.as_ref()?.front?;
            (front <= limit).then_some(Reverse((front, key)))
        });
        let mut heap: BinaryHeap<Reverse<(u64, usize)>> = fronts.collect();
        while let Some(&Reverse((stamp, key))) = heap.peek()
            && stamp <= limit
        {
            // The least of the other stamps is among the two entries below the top of the heap.
            let others = heap.as_slice().iter().skip(1).take(2).map(|&Reverse((front, _))| front);
            let bound = others.fold(limit, u64::min);
            let front = self.run(key, bound, sink);
            if let Some(mut top) = heap.peek_mut() {
                match front {
                    Some(front) => *top = Reverse((front, key)),
                    None => {
                        PeekMut::pop(top);
                        let held = self.rings[key].as_ref().and_then(|ring| ring.hold(hold));
                        limit = held.map_or(limit, |held| held.min(limit));
                    }
                }
            }
        }
        self.watermark = self.watermark.max(limit);
        self.drop_closed(sink);
        sink.catch_up();
    }

    /// Applies the records of one ring up to `bound`. Returns the stamp of the next record.
    #[inline]
    fn run(&mut self, key: usize, bound: u64, sink: &mut impl Sink<Ring = R>) -> Option<u64> {
        let ring = self.rings[key].as_mut()?;
        let before = ring.words_left;
        match ring.run(bound, self.watermark, sink, &mut self.spent) {
            Ok(()) => self.waiting_words -= before - ring.words_left,
            Err(Corrupt) => {
                self.waiting_words -= before;
                ring.give_up(&mut self.spent);
            }
        }
        ring.front
    }

    fn drop_closed(&mut self, sink: &mut impl Sink<Ring = R>) {
        for (key, place) in self.rings.iter_mut().enumerate() {
            if let Some(mut ring) = place.take_if(|ring| !ring.open && ring.front.is_none()) {
                self.waiting_words -= ring.give_up(&mut self.spent);
                self.unused.push(key);
                sink.close(ring.state);
            }
        }
    }
}

impl<R> Ring<R> {
    /// Latest stamp up to which the merge may go because of this ring. None if the ring sets no
    /// limit.
    fn hold(&self, hold: bool) -> Option<u64> {
        let flag = self.flag?;
        (hold && !flag.released && self.open && !self.corrupt && self.front.is_none())
            .then(|| self.last.max(self.complete_to))
    }

    /// Forgets the remaining records of a ring. Returns the number of forgotten words.
    fn give_up(&mut self, spent: &mut Vec<Vec<u64>>) -> usize {
        let left = std::mem::take(&mut self.words_left);
        self.corrupt = true;
        self.front = None;
        self.at = Cursor::default();
        spent.extend(self.batches.drain(..));
        left
    }

    /// Looks for the next stamped record.
    fn find_front<S: Sink<Ring = R>>(&mut self, watermark: u64, sink: &mut S) -> Result<(), Corrupt> {
        self.front = None;
        while let Some(batch) = self.batches.get(self.ahead.batch) {
            if self.ahead.word == batch.len() {
                self.ahead = Cursor { batch: self.ahead.batch + 1, word: 0 };
                continue;
            }
            let Some(stamp) = event::stamp(batch[self.ahead.word]) else {
                let decoded = event::decode(&batch[self.ahead.word..]).map_err(Corrupt::from);
                let (_, n) = decoded.inspect_err(|_| sink.contradiction(Contradiction::Corrupt))?;
                self.ahead.word += n;
                self.unstamped_words += n;
                if self.unstamped_words > MAX_UNSTAMPED_WORDS {
                    sink.contradiction(Contradiction::Corrupt);
                    return Err(Corrupt);
                }
                continue;
            };
            if stamp < self.last {
                sink.contradiction(Contradiction::Clock);
            } else if stamp < watermark {
                sink.contradiction(Contradiction::Late);
            }
            self.front = Some(stamp.max(self.last).max(watermark));
            return Ok(());
        }
        Ok(())
    }

    /// Applies the records up to `bound`.
    fn run<S: Sink<Ring = R>>(
        &mut self,
        bound: u64,
        watermark: u64,
        sink: &mut S,
        spent: &mut Vec<Vec<u64>>,
    ) -> Result<(), Corrupt> {
        while let Some(front) = self.front.filter(|&front| front <= bound) {
            let left = self.words_left;
            let next = self.apply_in_batch(bound, watermark, sink)?;
            if self.words_left == left {
                self.apply_through_front(sink, spent)?;
                self.last = front;
            }
            self.leave_batch(spent);
            self.ahead = self.at;
            self.front = next;
            if next.is_none() {
                self.find_front(watermark, sink)?;
            }
        }
        Ok(())
    }

    /// The inner loop: applies records of the present batch while each has a stamp, in order, up to
    /// `bound`. Returns the stamp of the first record beyond `bound`, if the loop ends there.
    #[inline(always)]
    fn apply_in_batch<S: Sink<Ring = R>>(
        &mut self,
        bound: u64,
        watermark: u64,
        sink: &mut S,
    ) -> Result<Option<u64>, Corrupt> {
        let Some(batch) = self.batches.front() else { return Ok(None) };
        let mut word = self.at.word;
        let mut least = self.last.max(watermark);
        let applied = loop {
            let Some(stamp) = batch.get(word).and_then(|&first| event::stamp(first)).filter(|&stamp| stamp >= least)
            else {
                break Ok(None);
            };
            if stamp > bound {
                break Ok(Some(stamp));
            }
            // No adapters in this place: the event must stay in registers.
            match event::decode(&batch[word..]) {
                Ok((event, n)) => {
                    if sink.apply(&mut self.state, event).is_err() {
                        break Err(Corrupt);
                    }
                    word += n;
                }
                Err(error) => break Err(error.into()),
            }
            least = stamp;
            self.last = stamp;
        };
        self.words_left -= word - self.at.word;
        self.at.word = word;
        applied.inspect_err(|_| sink.contradiction(Contradiction::Corrupt))
    }

    /// Applies records up to and including the first stamped record.
    fn apply_through_front<S: Sink<Ring = R>>(
        &mut self,
        sink: &mut S,
        spent: &mut Vec<Vec<u64>>,
    ) -> Result<(), Corrupt> {
        loop {
            let batch = self.batches.front().ok_or(Corrupt)?;
            let decoded = event::decode(&batch[self.at.word..]).map_err(Corrupt::from);
            let stamped = event::stamp(batch[self.at.word]).is_some();
            let applied = decoded.and_then(|(event, n)| sink.apply(&mut self.state, event).map(|()| n));
            let n = applied.inspect_err(|_| sink.contradiction(Contradiction::Corrupt))?;
            self.at.word += n;
            self.words_left -= n;
            self.leave_batch(spent);
            if stamped {
                self.unstamped_words = 0;
                return Ok(());
            }
        }
    }

    /// Continues with the next batch if the present batch is done.
    fn leave_batch(&mut self, spent: &mut Vec<Vec<u64>>) {
        if self.batches.front().is_some_and(|batch| batch.len() == self.at.word) {
            spent.extend(self.batches.pop_front());
            self.at.word = 0;
        }
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own making")]
mod tests;

//! Threads for finding the block of each event, on several cores.
//!
//! ```text
//!                 +--> resolver 0: its part of the addresses --+
//! batch (shared) -+                                            +--> changes, in the batch's order
//!                 +--> resolver 1: the other part -------------+
//! ```
//!
//! A lookup is a cache miss if many blocks are live; the rest of the table's work is not. Each
//! resolver reads the whole batch, and resolves the events at the addresses of its part. The
//! results are merged in the order of the batch. So all sums, and the peak, are the same as with a
//! single thread.

use super::blocks::{Blocks, Change, Move};
use super::live::part_of;
use crate::base::queue::{Receiver, Sender, queue};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Events of a batch: tens of microseconds of work, enough to pay for waking a thread.
pub const BATCH: usize = 4096;
/// A shorter batch at the end of a poll is resolved by the calling thread.
const SHORT: usize = 512;
/// Most batches in flight. More batches would only leave the caches.
const IN_FLIGHT: usize = 4;
/// Number of events prefetched together by a resolver.
const AHEAD: usize = 64;

/// Resolver threads, and the batches in flight.
pub struct Resolvers {
    lanes: Vec<Lane>,
    in_flight: VecDeque<Arc<Vec<Move>>>,
    /// Empty buffers for batches.
    spare: Vec<Vec<Move>>,
}

/// A part of the addresses, and the resolver thread of the part.
struct Lane {
    /// Blocks of the part. Locked by the resolver during a batch, by other threads between batches.
    blocks: Arc<Mutex<Blocks>>,
    /// Queue of batches. None ends the thread.
    work: Sender<Option<Work>>,
    done: Receiver<Found>,
    /// Empty buffers for results.
    spare: Vec<Found>,
}

/// Changes by the events of a part, each with the event's place in the batch.
type Found = Vec<(u32, Change)>;

struct Work {
    batch: Arc<Vec<Move>>,
    found: Found,
}

impl Resolvers {
    /// Starts `threads` resolvers. None if `threads` is 0, or if the system refuses any of the
    /// threads.
    pub fn start(threads: usize) -> Option<Resolvers> {
        let mut lanes: Vec<Lane> = Vec::new();
        for part in 0..threads {
            let (work, orders) = queue(IN_FLIGHT + 1);
            let (results, done) = queue(IN_FLIGHT + 1);
            let blocks = Arc::new(Mutex::new(Blocks::default()));
            let resolver = Resolver { part, parts: threads, blocks: Arc::clone(&blocks), results };
            let builder = thread::Builder::new().name(format!("resolver {part}"));
            if let Err(error) = builder.spawn(move || resolver.run(orders)) {
                tracing::warn!(%error, "blocks are looked up by one thread");
                lanes.into_iter().for_each(Lane::end);
                return None;
            }
            lanes.push(Lane { blocks, work, done, spare: Vec::new() });
        }
        (!lanes.is_empty()).then(|| Resolvers { lanes, in_flight: VecDeque::new(), spare: Vec::new() })
    }

    /// Hands a full batch over, and empties `batch`. `book` receives changes of batches handed over
    /// before.
    pub fn dispatch(&mut self, batch: &mut Vec<Move>, book: impl FnMut(&Change)) {
        let next = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(BATCH));
        let full = Arc::new(std::mem::replace(batch, next));
        for lane in &mut self.lanes {
            lane.send(&full);
        }
        self.in_flight.push_back(full);
        if self.in_flight.len() == IN_FLIGHT {
            self.collect(book);
        }
    }

    /// Resolves all batches handed over, and then `batch`, which becomes empty.
    pub fn finish(&mut self, batch: &mut Vec<Move>, mut book: impl FnMut(&Change)) {
        if batch.len() >= SHORT {
            self.dispatch(batch, &mut book);
        }
        while !self.in_flight.is_empty() {
            self.collect(&mut book);
        }
        let mut parts: Vec<_> = self.lanes.iter().map(Lane::blocks).collect();
        for event in batch.drain(..) {
            let part = part_of(event.address(), parts.len());
            parts[part].resolve(event, |change| book(&change));
        }
    }

    /// Waits for the results of the oldest batch in flight.
    fn collect(&mut self, mut book: impl FnMut(&Change)) {
        let Some(batch) = self.in_flight.pop_front() else { return };
        let found: Vec<Found> = self.lanes.iter_mut().map(Lane::receive).collect();
        let mut parts: Vec<_> = found.iter().map(|found| found.iter().peekable()).collect();
        for (place, event) in (0..).zip(batch.iter()) {
            let part = part_of(event.address(), parts.len());
            while let Some((_, change)) = parts[part].next_if(|(of, _)| *of == place) {
                book(change);
            }
        }
        drop(parts);
        for (lane, mut found) in self.lanes.iter_mut().zip(found) {
            found.clear();
            lane.spare.push(found);
        }
        // The resolvers have dropped the batch before they sent their results.
        if let Some(mut batch) = Arc::into_inner(batch) {
            batch.clear();
            self.spare.push(batch);
        }
    }

    /// All parts. No batch may be in flight.
    pub fn parts(&self) -> impl Iterator<Item = MutexGuard<'_, Blocks>> {
        self.lanes.iter().map(Lane::blocks)
    }

    /// The part of an address.
    pub fn part(&self, address: u64) -> MutexGuard<'_, Blocks> {
        self.lanes[part_of(address, self.lanes.len())].blocks()
    }
}

impl Drop for Resolvers {
    fn drop(&mut self) {
        self.lanes.drain(..).for_each(Lane::end);
    }
}

impl Lane {
    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&mut self, batch: &Arc<Vec<Move>>) {
        let work = Work { batch: Arc::clone(batch), found: self.spare.pop().unwrap_or_default() };
        // The queue has room for all batches in flight. A resolver that has panicked is noticed at
        // the next receive.
        let _ = self.work.send(Some(work), |_| ());
    }

    fn receive(&mut self) -> Found {
        loop {
            if let Some(found) = self.done.try_recv() {
                return found;
            }
            assert!(!self.done.is_finished(), "a resolver is gone");
            self.done.wait();
        }
    }

    fn end(mut self) {
        // A resolver that has panicked needs no end.
        let _ = self.work.send(None, |_| ());
    }
}

struct Resolver {
    part: usize,
    parts: usize,
    blocks: Arc<Mutex<Blocks>>,
    results: Sender<Found>,
}

impl Resolver {
    fn run(mut self, mut orders: Receiver<Option<Work>>) {
        loop {
            match orders.try_recv() {
                Some(Some(work)) => {
                    let found = self.resolve(work);
                    if self.results.send(found, |_| ()).is_err() {
                        return;
                    }
                }
                Some(None) => return,
                None => orders.wait(),
            }
        }
    }

    fn resolve(&self, work: Work) -> Found {
        let Work { batch, mut found } = work;
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = |(_, event): &(u32, &Move)| part_of(event.address(), self.parts) == self.part;
        let mut ours = (0..).zip(batch.iter()).filter(ours).peekable();
        let mut some = Vec::with_capacity(AHEAD);
        while ours.peek().is_some() {
            some.extend(ours.by_ref().take(AHEAD).inspect(|(_, event)| blocks.prefetch(event.address())));
            for (place, event) in some.drain(..) {
                blocks.resolve(*event, |change| found.push((place, change)));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use crate::table::contradiction::Contradiction;
    use crate::table::heap::Heap;
    use crate::table::shared::Shared;
    use crate::table::stream::{ADDRESSES, Stream};
    use proptest::prelude::*;

    fn everything(heap: &Heap) -> impl PartialEq + std::fmt::Debug + use<> {
        let mut live = heap.live();
        live.sort_by_key(|block| block.address);
        let totals = heap.totals();
        let sums = (totals.current(), totals.peak(), totals.total(), totals.frees());
        let lookups: Vec<_> = (1..=ADDRESSES).map(|i| heap.block(16 * i)).collect();
        // Each part remembers as many frees as a single part for all addresses does: several parts
        // recognise more double frees.
        let contradictions = heap.contradictions();
        let double_frees = contradictions.of(Contradiction::DoubleFree);
        let unknown_frees = heap.untracked_frees() + double_frees;
        let odd = (heap.in_realloc(), unknown_frees, contradictions.total() - double_frees);
        (live, sums, totals.stacks().collect::<Vec<_>>(), lookups, odd)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn several_cores_find_what_one_finds(seed in any::<u64>(), resolvers in 1..5usize, looks in prop::collection::vec(1..20_000u32, 1..6)) {
            let run = |resolvers: usize| {
                let (mut heap, mut shared) = (Heap::new(resolvers), Shared::default());
                shared.threads.open(1, false);
                let mut stream = Stream::new(seed);
                looks.iter().map(|&events| {
                    for _ in 0..events {
                        stream.step(&mut heap, &mut shared);
                    }
                    heap.catch_up(&mut shared);
                    if stream.next(3) == 0 {
                        heap.reset_peak(&mut shared);
                    }
                    if stream.next(3) == 0 {
                        heap.leave_program(&mut shared);
                        shared.program.clear();
                    }
                    (everything(&heap), shared.program.sums())
                }).collect::<Vec<_>>()
            };
            prop_assert_eq!(run(resolvers), run(0));
        }
    }
}

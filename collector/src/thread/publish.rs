//! Records into the ring, all written by [`Thread::publish`], and the definitions of stacks.

use super::Thread;
use crate::platform::clock;
use crate::process::Process;
use crate::unwind::{Entry, Walk, walk};
use crate::{fail, process, python, stacks, unwind};
use core::ops::Range;
use core::sync::atomic::Ordering;
use heapline_shared_format::arch::counter;
use heapline_shared_format::arena::{Loss, TICK_PENDING};
use heapline_shared_format::event::{self, ModuleFlags, domain};
use heapline_shared_format::query;
use heapline_shared_format::ring::Producer;

/// Outcome of publishing a record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// The record is in the ring.
    Yes,
    /// The thread's knowledge of stacks and code is out of date. The caller has to build the record
    /// again.
    Renewed,
    /// The thread is not traced any more.
    Over,
}

impl Thread {
    /// Publishes a record of at most `words` words. `write` writes the words, and gets the stamp of
    /// the record. Steps:
    ///
    /// 1. Make room in the ring. Only this step may wait.
    /// 2. Set the in-flight mark.
    /// 3. Compare the epoch: another epoch ends the attempt before any byte is written.
    /// 4. Take the stamp, write the record, and take the mark off.
    #[inline(always)]
    pub fn publish(&mut self, words: usize, write: impl FnOnce(&mut Producer, u64)) -> Published {
        if self.ring.room() < words && !self.make_room() {
            return self.renew();
        }
        // SAFETY: the ring is open, because `enter` returns only threads with an open ring.
        unsafe { self.ring.take_off() };
        if self.header().session.epoch.load(Ordering::Acquire) != self.epoch {
            return self.renew();
        }
        let stamp = self.stamp();
        write(&mut self.ring, stamp);
        // SAFETY: the ring is open, because `enter` returns only threads with an open ring.
        unsafe { self.ring.settle() };
        Published::Yes
    }

    /// Returns the stamp of an event that happens now. To be called inside the in-flight mark.
    ///
    /// Reading the clock is the most expensive part of an event. A thread without concurrent events
    /// of other threads is therefore lent the time of the aggregator's last poll, the tick
    /// (docs/ordering.md, The tick). Any other thread with an event takes the tick back first.
    #[inline(always)]
    fn stamp(&mut self) -> u64 {
        let session = &self.header().session;
        // The program's own load of a pointer comes first: another thread may have taken the tick
        // back before it gave the pointer away.
        counter::order_loads();
        let tick = session.tick.load(Ordering::Acquire);
        if tick > TICK_PENDING && session.tick_owner.load(Ordering::Relaxed) == self.slot {
            // The thread's own last reading of the clock may be younger than the poll.
            return tick.max(self.last_read);
        }
        if tick != 0 && session.tick_owner.load(Ordering::Relaxed) != self.slot {
            session.tick.store(0, Ordering::SeqCst);
        }
        self.last_read = clock::now(self.clock);
        self.last_read
    }

    /// Brings the thread up to the present epoch, or closes the ring if tracing of this session has
    /// ended.
    #[cold]
    pub fn renew(&mut self) -> Published {
        if self.ring.is_closed() {
            // An earlier record of the same hook has closed the ring.
            return Published::Over;
        }
        // SAFETY: the ring is open, as checked above.
        unsafe { self.ring.settle() };
        let session = &self.header().session;
        let epoch = session.epoch.load(Ordering::Acquire);
        let goes_on =
            process::get().is_some_and(Process::is_traced) && session.number.load(Ordering::Acquire) == self.session;
        if !goes_on {
            self.ring = Producer::closed();
            return Published::Over;
        }
        self.epoch = epoch;
        self.stacks.clear();
        self.kept.forget();
        self.python.forget();
        Published::Renewed
    }

    /// Takes another segment. Returns false when the thread needs [`Thread::renew`] instead.
    #[cold]
    #[inline(never)]
    fn make_room(&mut self) -> bool {
        if self.ring.is_closed() {
            return false;
        }
        let extended = fail::guard(|| {
            fail::point(fail::Site::Segment);
            self.extend(process::get()?)
        });
        extended.flatten().is_some()
    }

    fn extend(&mut self, process: &'static Process) -> Option<()> {
        let arena = process.arena();
        let session = &self.header().session;
        let segment = process.take(&arena.free_segments(), self.epoch, Loss::Ended)?;
        // The segment is linked in like a record is written: under the in-flight mark, and only in
        // the epoch in which the segment was taken.
        // SAFETY: the ring is open, and the segment came from the free list.
        unsafe {
            self.ring.take_off();
            let linked = session.epoch.load(Ordering::Acquire) == self.epoch && self.ring.extend(arena, segment);
            if !linked && process.is_traced() && session.number.load(Ordering::Acquire) == self.session {
                // Only a module was unloaded: the segment still belongs to this session, and no
                // other session begins while the mark is set.
                arena.free_segments().push(segment);
            }
            self.ring.settle();
            linked.then_some(())
        }
    }

    /// Returns the id of the stack from which the hook was called. Defines a new stack first. `Err`
    /// when the definition could not be published.
    #[inline(always)]
    pub fn stack(&mut self, entry: Entry) -> Result<u32, Published> {
        if walk::walk(self, entry) == walk::Outcome::Unfit {
            return self.stack_by_cfi(entry);
        }
        if self.verifies {
            self.verify(entry);
        }
        let walk = self.kept.walk();
        let key = stacks::key(self.kept.hash(), walk);
        match self.stacks.get(key) {
            Some(id) => Ok(id),
            None => {
                let kept = self.kept;
                let id = self.define_stack(walk, key, kept.unchanged(), domain::NATIVE, |from| kept.addresses(from))?;
                self.kept.defined();
                Ok(id)
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn stack_by_cfi(&mut self, entry: Entry) -> Result<u32, Published> {
        let walk = unwind::walk_by_cfi(self, entry);
        // SAFETY: the walk is over, and no other walk starts below while `frames` is alive.
        let frames = &unsafe { self.frames.as_mut() }[..walk.stored];
        let key = stacks::key(stacks::frames_hash(frames), walk);
        match self.stacks.get(key) {
            Some(id) => Ok(id),
            None => self.define_stack(walk, key, 0, domain::NATIVE, |from| frames.iter().rev().copied().skip(from)),
        }
    }

    /// Compares the kept stack with an independent walk (`HEAPLINE_VERIFY=1`).
    #[cold]
    #[inline(never)]
    fn verify(&mut self, entry: Entry) {
        let walk = unwind::walk_by_cfi(self, entry);
        // SAFETY: the walk is over, and no other walk starts below while `fresh` is alive.
        let fresh = &unsafe { self.frames.as_mut() }[..walk.stored];
        let kept = self.kept.walk();
        let same = (walk.total, walk.truncated) == (kept.total, kept.truncated)
            && fresh.iter().rev().copied().eq(self.kept.addresses(kept.stored - walk.stored.min(kept.stored)));
        let target = &self.header().target;
        target.verified.fetch_add(1, Ordering::Relaxed);
        if !same {
            target.verify_failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the id of a stack defined before.
    #[inline(always)]
    pub fn stack_id(&self, key: u64) -> Option<u32> {
        self.stacks.get(key)
    }

    /// Gives the stack the next id. The oldest `keep` frames equal the frames in this ring's last
    /// definition for the domain. `frames` yields the frames from a position on, the oldest first.
    #[cold]
    #[inline(never)]
    pub fn define_stack<I: Iterator<Item = u64>>(
        &mut self,
        walk: Walk,
        key: u64,
        keep: usize,
        domain: u8,
        frames: impl Fn(usize) -> I,
    ) -> Result<u32, Published> {
        self.define(key, |thread, id| thread.publish_stack(walk, id, keep, domain, frames))
    }

    /// Gives a mixed stack, the native stack of a thread that runs Python, the next id.
    #[cold]
    #[inline(never)]
    pub fn define_mixed_stack(&mut self, key: u64, native: u32, python: u32) -> Result<u32, Published> {
        self.define(key, |thread, id| {
            let record = event::mixed(id, native, python);
            Some(thread.publish(record.len(), |ring, _| {
                // SAFETY: `publish` made room for the record.
                unsafe { ring.write(record) }
            }))
        })
    }

    /// Gives the stack defined by `publish` the next id, and stores the id under `key`.
    fn define(
        &mut self,
        key: u64,
        publish: impl FnOnce(&mut Thread, u32) -> Option<Published>,
    ) -> Result<u32, Published> {
        let defined = fail::guard(|| {
            fail::point(fail::Site::Stack);
            let id = self.next_stack;
            let published = publish(self, id)?;
            if published == Published::Yes {
                self.next_stack = id.checked_add(1)?;
                // Without memory for the table the stack is defined again next time: more records,
                // but no wrong number.
                self.stacks.insert(key, id);
            }
            Some((published, id))
        });
        match defined.flatten() {
            Some((Published::Yes, id)) => Ok(id),
            Some((other, _)) => {
                self.kept.forget();
                Err(other)
            }
            None => Err(self.renew()),
        }
    }

    /// Writes the definition of a stack, in as many records as needed.
    fn publish_stack<I: Iterator<Item = u64>>(
        &mut self,
        walk: Walk,
        id: u32,
        mut keep: usize,
        domain: u8,
        frames: impl Fn(usize) -> I,
    ) -> Option<Published> {
        loop {
            let n = (walk.stored - keep).min(event::MAX_STACK_FRAMES);
            let more = keep + n < walk.stored;
            let head = event::stack_head(n, u32::try_from(keep).ok()?, id, walk.total, walk.truncated, more);
            let head = event::stack_of_domain(head, domain);
            let published = self.publish(head.len() + n, |ring, _| {
                // SAFETY: `publish` made room for the head and the frames.
                unsafe { ring.write_parts(&head, frames(keep).take(n)) }
            });
            if published != Published::Yes || !more {
                return Some(published);
            }
            keep += n;
        }
    }

    /// Publishes a record with the stamp and, as the last part, the stack of `entry`.
    ///
    /// The loop of [`Thread::publish_while_renewed`] is written out: the walk in a closure of that
    /// loop costs 31 instructions for each pair of malloc and free.
    #[inline(always)]
    pub fn publish_with_stack<const N: usize>(
        &mut self,
        entry: Entry,
        record: impl Fn(u64, u32) -> [u64; N],
    ) -> Published {
        loop {
            let epoch = self.epoch;
            let stack = match self.stack(entry) {
                Ok(native) if python::is_running() => self.mixed_stack(native),
                other => other,
            };
            let published = match stack {
                // The walk itself met a module in the place of another module, so the frames kept
                // before the walk are not certain.
                Ok(_) if self.epoch != epoch => Published::Renewed,
                Ok(stack) => self.publish(N, |ring, stamp| {
                    // SAFETY: `publish` made room for the record.
                    unsafe { ring.write(record(stamp, stack)) }
                }),
                Err(published) => published,
            };
            if published != Published::Renewed {
                return published;
            }
        }
    }

    /// Publishes a record with the stamp and, as the last part, the id that `stack` gives.
    #[inline(always)]
    pub fn publish_with<const N: usize>(
        &mut self,
        stack: impl Fn(&mut Thread) -> Result<u32, Published>,
        record: impl Fn(u64, u32) -> [u64; N],
    ) -> Published {
        self.publish_while_renewed(|thread| match stack(thread) {
            Ok(stack) => thread.publish(N, |ring, stamp| {
                // SAFETY: `publish` made room for the record.
                unsafe { ring.write(record(stamp, stack)) }
            }),
            Err(published) => published,
        })
    }

    /// Publishes a record built from only the stamp.
    #[inline(always)]
    pub fn publish_plain<const N: usize>(&mut self, record: impl Fn(u64) -> [u64; N]) -> Published {
        self.publish_while_renewed(|thread| {
            thread.publish(N, |ring, stamp| {
                // SAFETY: `publish` made room for the record.
                unsafe { ring.write(record(stamp)) }
            })
        })
    }

    /// Publishes until nothing that the record rests on was renewed meanwhile.
    #[inline(always)]
    fn publish_while_renewed(&mut self, publish: impl Fn(&mut Thread) -> Published) -> Published {
        loop {
            let published = publish(self);
            if published != Published::Renewed {
                return published;
            }
        }
    }

    /// Tells the reader of the ring the sampling interval of the samples that follow.
    pub fn tell_interval(&mut self, interval: u64) -> Published {
        if self.told == interval {
            return Published::Yes;
        }
        let published = self.publish_plain(|stamp| event::query(stamp, 0, query::INTERVAL, [interval, 0]));
        if published == Published::Yes {
            self.told = interval;
        }
        published
    }

    /// Announces a module. The path is in two parts.
    pub fn publish_module(
        &mut self,
        range: Range<u64>,
        bias: u64,
        flags: ModuleFlags,
        build_id: &[u8],
        path: [&[u8]; 2],
    ) {
        let path_bytes = path[0].len() + path[1].len();
        let (head, words) = event::module_head(0, range.clone(), bias, flags, build_id.len(), path_bytes);
        let text = || build_id.iter().chain(path[0]).chain(path[1]).copied();
        // Announcing a module in the place of another has just renewed the thread's epoch.
        self.publish_while_renewed(|thread| {
            thread.publish(head.len() + words, |ring, stamp| {
                let (head, _) = event::module_head(stamp, range.clone(), bias, flags, build_id.len(), path_bytes);
                let mut text = text();
                let words = (0..words).map(|_| u64::from_le_bytes(core::array::from_fn(|_| text.next().unwrap_or(0))));
                // SAFETY: `publish` made room for the head and the text.
                unsafe { ring.write_parts(&head, words) }
            })
        });
    }

    /// Tells the reader of the ring about the unload of the module that began at `start`.
    pub fn publish_unload(&mut self, start: u64) {
        self.publish_plain(|stamp| event::unload(stamp, start));
    }
}

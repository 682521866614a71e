//! One thread's state, and how records get from it into its ring.
//!
//! The state lies in memory that fork wipes, so a child finds a closed ring and takes the slow path. It belongs to
//! the slot: when a thread has ended and the aggregator has freed its slot, the next thread on the slot takes the
//! state over, so memory follows the number of threads at one time.
//!
//! Every record is published by [`Thread::publish`]: room first (the only place that may wait), then the in-flight
//! mark, then the epoch, then the stamp. Whoever ended or renewed the session meanwhile is seen there, before a byte
//! is written to memory that may have a new owner.

use crate::process::{self, Process};
use crate::stacks::{self, StackTable};
use crate::unwind::kept::{self, Kept};
use crate::unwind::memory::Window;
use crate::unwind::{self, Entry, Walk, cfi, rules};
use crate::{clock, fail, sys, tls};
use core::mem::MaybeUninit;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::Ordering;
use heapline_shared_format::arena::{Header, Loss, slot_state};
use heapline_shared_format::event;
use heapline_shared_format::ring::Producer;

/// A buffer of frames, as many as a traceback keeps.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Frames {
    start: *mut u64,
    capacity: usize,
}

impl Frames {
    /// # Safety
    /// No other reference to the buffer is alive.
    pub unsafe fn as_mut<'a>(self) -> &'a mut [u64] {
        // SAFETY: mapped for `capacity` frames for as long as the process lives; the caller promises uniqueness.
        unsafe { core::slice::from_raw_parts_mut(self.start, self.capacity) }
    }
}

/// The state. All zeros, as fork leaves it, are a thread with a closed ring.
#[repr(C)]
pub struct Thread {
    ring: Producer,
    header: *const Header,
    epoch: u32,
    clock: u32,
    session: u32,
    next_stack: u32,
    rules: MaybeUninit<rules::Table>,
    /// Which pages of the stack are known to be readable.
    pub window: Window,
    /// The last stack, for the next walk.
    pub kept: Kept,
    stacks: StackTable,
    /// `HEAPLINE_VERIFY=1`.
    verifies: bool,
    /// Where a walk that keeps nothing puts its frames, the most recent first.
    pub frames: Frames,
    /// Stack pointer of the hook that is being run; 0 outside of hooks.
    busy: usize,
    /// For a signal handler that interrupts a hook.
    side: *mut Thread,
    context: MaybeUninit<cfi::Context>,
}

/// What became of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It is in the ring.
    Yes,
    /// What the thread knew of stacks and code is no longer true: build the record anew.
    Renewed,
    /// This thread is not traced any more.
    Over,
}

/// The thread's state for one hook, or none when nothing shall be recorded.
///
/// A signal handler may come between any two instructions here. `active` is taken first and given back first, so that
/// a handler finds either a free state or none; null without a note in `busy` means that a hook is just beginning.
#[inline(always)]
pub fn enter() -> Option<&'static mut Thread> {
    let sp = stack_pointer();
    // SAFETY: `active` points to this thread's state, and is null inside hooks, so nobody else uses it now.
    if let Some(thread) = unsafe { tls::active().as_mut() }
        && !thread.ring.is_closed()
    {
        tls::set_active(ptr::null_mut());
        thread.busy = sp;
        return Some(thread);
    }
    enter_slowly(sp)
}

/// Ends what [`enter`] began.
#[inline(always)]
pub fn leave(thread: &mut Thread) {
    let this: *mut Thread = thread;
    if tls::own() == this {
        tls::set_active(this);
    }
    thread.busy = 0;
}

/// Whether what noted this stack pointer will never be resumed, because a signal handler jumped out of it: the hook
/// that asks runs at the same place or nearer the root, on the same stack. A handler that will resume it runs
/// further from the root, or on a signal stack, which may lie anywhere.
fn was_abandoned(noted: usize, sp: usize) -> bool {
    sp >= noted && !sys::on_signal_stack()
}

/// The stack pointer, about.
#[inline(always)]
pub fn stack_pointer() -> usize {
    let sp: usize;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rsp", out(reg) sp, options(nomem, nostack, preserves_flags)) };
    sp
}

/// First events, events while tracing is off, forked children, and signal handlers that interrupted a hook.
#[cold]
#[inline(never)]
fn enter_slowly(sp: usize) -> Option<&'static mut Thread> {
    let starting = tls::starting();
    if starting != 0 {
        if !was_abandoned(starting, sp) {
            // A look-up or the start itself allocates, or a signal handler has interrupted it.
            process::get().filter(|process| process.is_traced())?.count_loss(Loss::Reentrant);
            return None;
        }
        tls::set_starting(0);
        tls::set_recovery(0);
    }
    let process = process::get_or_start(sp)?;
    if !process.is_traced() {
        return None;
    }
    let session = process.header().session.number.load(Ordering::Acquire);
    // SAFETY: `own` points to this thread's state; whether a hook is using it is asked first.
    let own = unsafe { tls::own().as_mut() };
    match own {
        Some(own) if own.session == session && !own.ring.is_closed() => {
            if own.busy == 0 || !was_abandoned(own.busy, sp) {
                return own.side(process, sp);
            }
            // Half-done state is not mended but left: the aggregator sees a second slot of this thread and lets the
            // first one go.
            // SAFETY: the ring is open.
            unsafe { own.ring.settle() };
            tls::set_recovery(0);
        }
        _ => {}
    }
    start_thread(process, sp, false)
}

/// Gives the calling thread a slot, a ring and a state, taken for the hook at `sp`.
#[expect(clippy::mut_from_ref, reason = "the state is found through a slot that only this thread has")]
fn start_thread(process: &'static Process, sp: usize, side: bool) -> Option<&'static mut Thread> {
    tls::set_starting(sp);
    let started = fail::guard(|| {
        fail::point(fail::Site::Thread);
        claim(process, side)
    });
    // SAFETY: a state that was claimed for this thread just now.
    let thread = started.flatten().map(|thread| unsafe { &mut *thread });
    if let Some(thread) = &thread
        && !side
    {
        tls::set_active(ptr::null_mut());
        tls::set_own(&raw const **thread as *mut Thread);
    }
    tls::set_starting(0);
    let thread = thread?;
    thread.busy = sp;
    let name = sys::thread_name();
    thread.publish_plain(|stamp| event::thread(stamp, name));
    Some(thread)
}

fn claim(process: &'static Process, side: bool) -> Option<*mut Thread> {
    let header = process.header();
    let epoch = header.session.epoch.load(Ordering::Acquire);
    let session = header.session.number.load(Ordering::Relaxed);
    let arena = process.arena();
    let index = process.take(&arena.free_slots(), epoch, Loss::Slots)?;
    let slot = arena.slot(index)?;
    let give_up = || {
        arena.free_slots().push(index);
        None
    };
    let Some(segment) = process.take(&arena.free_segments(), epoch, Loss::Slots) else { return give_up() };
    let nframe = header.session.nframe.load(Ordering::Relaxed).clamp(1, unwind::MAX_DEPTH) as usize;
    let Some(state) = process.state_for_slot(index, nframe) else {
        arena.free_segments().push(segment);
        process.count_loss(Loss::Memory);
        return give_up();
    };
    // From here the slot is in flight, so that a session that begins meanwhile leaves it alone.
    slot.in_flight.store(1, Ordering::Relaxed);
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    if header.session.epoch.load(Ordering::Acquire) != epoch {
        slot.in_flight.store(0, Ordering::Release);
        return None;
    }
    // SAFETY: the arena is never unmapped; slot and segment came from the free lists.
    let ring = unsafe { Producer::open(arena, index, segment) }?;
    slot.tid.store(sys::gettid(), Ordering::Relaxed);
    slot.image.store(process.image(), Ordering::Relaxed);
    slot.session.store(session, Ordering::Relaxed);
    slot.side.store(u32::from(side), Ordering::Relaxed);
    header.target.slots_high.fetch_max(index + 1, Ordering::Relaxed);
    let generation = slot.state.0.load(Ordering::Relaxed) >> 32;
    slot.state.0.store(generation << 32 | u64::from(slot_state::ACTIVE), Ordering::Release);
    slot.in_flight.store(0, Ordering::Release);
    // SAFETY: the state belongs to the slot, which is ours now.
    unsafe { (*state).begin(ring, process, epoch, session) };
    Some(state)
}

impl Thread {
    /// Bytes of one thread's state with buffers for `nframe` frames.
    pub const fn bytes(nframe: usize) -> usize {
        size_of::<Thread>() + nframe * size_of::<u64>()
    }

    /// Lays a state over fresh memory.
    ///
    /// # Safety
    /// `memory` holds [`Thread::bytes`] zero bytes and is never unmapped.
    pub unsafe fn lay_out(memory: *mut u8, nframe: usize) -> *mut Thread {
        let thread = memory.cast::<Thread>();
        // SAFETY: the buffer lies behind the state, inside the memory.
        unsafe {
            (*thread).frames = Frames { start: memory.add(size_of::<Thread>()).cast(), capacity: nframe };
        }
        thread
    }

    /// Frames that a traceback can keep here.
    pub fn nframe(&self) -> usize {
        self.frames.capacity
    }

    fn begin(&mut self, ring: Producer, process: &'static Process, epoch: u32, session: u32) {
        self.header = process.header();
        self.epoch = epoch;
        self.session = session;
        self.clock = process.header().session.clock.load(Ordering::Relaxed);
        self.next_stack = 1;
        self.rules = MaybeUninit::new(process.rules_for_session(session));
        self.window = Window::default();
        self.kept.forget();
        self.stacks.clear();
        self.verifies = process.verifies();
        self.busy = 0;
        self.side = ptr::null_mut();
        self.context = MaybeUninit::new(cfi::Context::new_in());
        self.ring = ring;
    }

    /// The session that the thread records for.
    pub fn session(&self) -> u32 {
        self.session
    }

    /// The process's rule table.
    #[inline(always)]
    pub fn rules(&self) -> rules::Table {
        // SAFETY: set by `begin`, before the ring was opened.
        unsafe { self.rules.assume_init() }
    }

    /// gimli's scratch memory.
    pub fn unwind_context(&mut self) -> &mut cfi::Context {
        // SAFETY: set by `begin`, before the ring was opened.
        unsafe { self.context.assume_init_mut() }
    }

    /// The state for a signal handler that interrupted a hook.
    #[expect(clippy::mut_from_ref, reason = "only this thread knows its side state")]
    fn side(&mut self, process: &'static Process, sp: usize) -> Option<&'static mut Thread> {
        // SAFETY: only this thread knows its side state.
        match unsafe { self.side.as_mut() } {
            None => {
                let side = start_thread(process, sp, true)?;
                self.side = side;
                Some(side)
            }
            Some(side) if side.ring.is_closed() || side.busy != 0 && !was_abandoned(side.busy, sp) => {
                process.count_loss(Loss::Reentrant);
                None
            }
            Some(side) => {
                side.busy = sp;
                Some(side)
            }
        }
    }

    #[inline(always)]
    fn header(&self) -> &'static Header {
        // SAFETY: an open ring's arena is mapped for as long as the process lives.
        unsafe { &*self.header }
    }

    /// Publishes a record of at most `words` words, which `write` writes with the stamp that it is given.
    #[inline(always)]
    pub fn publish(&mut self, words: usize, write: impl FnOnce(&mut Producer, u64)) -> Published {
        if self.ring.room() < words && !self.make_room() {
            return self.renew();
        }
        // SAFETY: the ring is open: `enter` gives out no other.
        unsafe { self.ring.take_off() };
        if self.header().session.epoch.load(Ordering::Acquire) != self.epoch {
            return self.renew();
        }
        let stamp = clock::now(self.clock);
        write(&mut self.ring, stamp);
        // SAFETY: as above.
        unsafe { self.ring.settle() };
        Published::Yes
    }

    #[cold]
    fn renew(&mut self) -> Published {
        // SAFETY: the ring is open.
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
        Published::Renewed
    }

    /// Takes another segment; false when what the thread knows is no longer true ([`Thread::renew`]).
    #[cold]
    #[inline(never)]
    fn make_room(&mut self) -> bool {
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
        // Linked in under the in-flight mark and only in the epoch that it was taken in, as records are written.
        // SAFETY: the ring is open, and the segment came from the free list.
        let linked = unsafe {
            self.ring.take_off();
            let linked = session.epoch.load(Ordering::Acquire) == self.epoch && self.ring.extend(arena, segment);
            self.ring.settle();
            linked
        };
        if !linked && process.is_traced() && session.number.load(Ordering::Acquire) == self.session {
            // Only a module went: the segment is still this session's.
            arena.free_segments().push(segment);
        }
        linked.then_some(())
    }

    /// The id of the stack that the hook was called from; defines it when it is new. `Err` when the definition could
    /// not be published.
    #[inline(always)]
    pub fn stack(&mut self, entry: Entry) -> Result<u32, Published> {
        if kept::walk(self, entry) == kept::Outcome::Unfit {
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
                let id = self.define_stack(walk, key, kept.unchanged(), |from| kept.addresses(from))?;
                self.kept.defined();
                Ok(id)
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn stack_by_cfi(&mut self, entry: Entry) -> Result<u32, Published> {
        let walk = unwind::walk_by_cfi(self, entry);
        // SAFETY: the walk is over, and nothing below starts another.
        let frames = &unsafe { self.frames.as_mut() }[..walk.stored];
        let key = stacks::key(stacks::frames_hash(frames), walk);
        match self.stacks.get(key) {
            Some(id) => Ok(id),
            None => self.define_stack(walk, key, 0, |from| frames.iter().rev().copied().skip(from)),
        }
    }

    /// `HEAPLINE_VERIFY=1`: compares the kept stack with a walk that shares nothing with it.
    #[cold]
    #[inline(never)]
    fn verify(&mut self, entry: Entry) {
        let walk = unwind::walk_by_cfi(self, entry);
        // SAFETY: the walk is over.
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

    /// Gives the stack the next id. `keep` frames, from the oldest, are as in this ring's last definition; `frames`
    /// yields them from a position on, the oldest first.
    #[cold]
    #[inline(never)]
    fn define_stack<I: Iterator<Item = u64>>(
        &mut self,
        walk: Walk,
        key: u64,
        keep: usize,
        frames: impl Fn(usize) -> I,
    ) -> Result<u32, Published> {
        let defined = fail::guard(|| {
            fail::point(fail::Site::Stack);
            let id = self.next_stack;
            let published = self.publish_stack(walk, id, keep, frames)?;
            if published == Published::Yes {
                self.next_stack = id.checked_add(1)?;
                // Without memory for the table the stack is defined again next time: more records, no wrong number.
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

    /// Writes a definition, in as many records as it takes.
    fn publish_stack<I: Iterator<Item = u64>>(
        &mut self,
        walk: Walk,
        id: u32,
        mut keep: usize,
        frames: impl Fn(usize) -> I,
    ) -> Option<Published> {
        loop {
            let n = (walk.stored - keep).min(event::MAX_STACK_FRAMES);
            let more = keep + n < walk.stored;
            let head = event::stack_head(n, u32::try_from(keep).ok()?, id, walk.total, walk.truncated, more);
            let published = self.publish(head.len() + n, |ring, _| {
                // SAFETY: publish made room for head and frames.
                unsafe { ring.write_parts(&head, frames(keep).take(n)) }
            });
            if published != Published::Yes || !more {
                return Some(published);
            }
            keep += n;
        }
    }

    /// Publishes a record whose words need the stamp and, as their last part, the stack of `entry`.
    #[inline(always)]
    pub fn publish_with_stack<const N: usize>(&mut self, entry: Entry, record: impl Fn(u64, u32) -> [u64; N]) {
        loop {
            let epoch = self.epoch;
            let published = match self.stack(entry) {
                // The walk itself met a module that took another's place: what it had kept before is not sure.
                Ok(_) if self.epoch != epoch => Published::Renewed,
                Ok(stack) => self.publish(N, |ring, stamp| {
                    // SAFETY: publish made room for the record.
                    unsafe { ring.write(record(stamp, stack)) }
                }),
                Err(published) => published,
            };
            if published != Published::Renewed {
                return;
            }
        }
    }

    /// Publishes a record that needs only the stamp.
    #[inline(always)]
    pub fn publish_plain<const N: usize>(&mut self, record: impl Fn(u64) -> [u64; N]) {
        while self.publish(N, |ring, stamp| {
            // SAFETY: publish made room for the record.
            unsafe { ring.write(record(stamp)) }
        }) == Published::Renewed
        {}
    }

    /// Announces a module; the path is in two parts.
    pub fn publish_module(&mut self, range: Range<u64>, bias: u64, build_id: &[u8], path: [&[u8]; 2]) {
        let path_bytes = path[0].len() + path[1].len();
        let (head, words) = event::module_head(0, range.clone(), bias, build_id.len(), path_bytes);
        let text = || build_id.iter().chain(path[0]).chain(path[1]).copied();
        self.publish(head.len() + words, |ring, stamp| {
            let (head, _) = event::module_head(stamp, range, bias, build_id.len(), path_bytes);
            let mut text = text();
            let words = (0..words).map(|_| u64::from_le_bytes(core::array::from_fn(|_| text.next().unwrap_or(0))));
            // SAFETY: publish made room for head and text.
            unsafe { ring.write_parts(&head, words) }
        });
    }

    /// Tells that the module that began at `start` is gone.
    pub fn publish_unload(&mut self, start: u64) {
        self.publish_plain(|stamp| event::unload(stamp, start));
    }
}

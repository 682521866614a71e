//! One thread's state, and how records get from it into its ring.
//!
//! The state lies in memory that fork wipes, so a child finds a closed ring and takes the slow path. It belongs to
//! the slot: when a thread has ended and the aggregator has freed its slot, the next thread on the slot takes the
//! state over, so memory follows the number of threads at one time.
//!
//! Every record is published by [`Thread::publish`]: room first (the only place that may wait), then the in-flight
//! mark, then the epoch, then the stamp. Whoever ended or renewed the session meanwhile is seen there, before a byte
//! is written to memory that may have a new owner.

mod enter;
mod publish;
pub mod record;
mod room;

pub use enter::{
    enter, enter_allocator, enter_at_once, in_allocator, leave, leave_allocator, out_of_allocator, stack_pointer,
    was_abandoned,
};
pub use publish::Published;
pub use room::{forget as forget_room, release as release_room, with_room};

use crate::platform::tls;
use crate::process::Process;
use crate::python::PythonStack;
use crate::rules;
use crate::sampling::sampler::Sampler;
use crate::stacks::StackTable;
use crate::unwind::cfi;
use crate::unwind::kept::Kept;
use crate::unwind::memory::Window;
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};
use heapline_shared_format::arena::Header;
use heapline_shared_format::event::domain;
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
    /// Index of the thread's slot.
    slot: u32,
    /// Where the hook that is being run was entered; 0 outside of hooks.
    busy: usize,
    /// Where its hooks may record.
    room: room::Stacks,
    /// While samples are recorded: where they lie, by domain.
    samplers: [MaybeUninit<Sampler>; domain::COUNT],
    /// The interval that the ring was told.
    told: u64,
    /// Native blocks that were counted when that was asked last ([`Thread::has_counted`]).
    asked: u64,
    /// What the clock said when it was last read.
    last_read: u64,
    next_stack: u32,
    rules: MaybeUninit<rules::Table>,
    /// Which pages of the stack are known to be readable.
    pub window: Window,
    /// The last stack, for the next walk.
    pub kept: Kept,
    stacks: StackTable,
    /// The last Python stack.
    pub python: PythonStack,
    /// `HEAPLINE_VERIFY=1`.
    verifies: bool,
    /// Where a walk that keeps nothing puts its frames, the most recent first.
    pub frames: Frames,
    /// For a signal handler that interrupts a hook.
    side: *mut Thread,
    context: MaybeUninit<cfi::Context>,
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

    /// Gives back what the state has mapped besides itself.
    ///
    /// # Safety
    /// The state is not used any more.
    pub unsafe fn release(&mut self) {
        // SAFETY: the caller's promise.
        unsafe {
            self.room.unmap();
            self.kept.unmap();
            self.python.unmap();
            self.stacks.unmap();
        }
    }

    /// Frames that a traceback can keep here.
    pub fn nframe(&self) -> usize {
        self.frames.capacity
    }

    /// The last words that the thread has written.
    fn last_words<const N: usize>(&self) -> Option<[u64; N]> {
        self.ring.last()
    }

    /// `side` is the state for its signal handlers, of an earlier session.
    fn begin(
        &mut self,
        ring: Producer,
        slot: u32,
        process: &'static Process,
        (epoch, session): (u32, u32),
        side: *mut Thread,
    ) {
        self.room = self.room_of_next();
        self.header = process.header();
        self.epoch = epoch;
        self.session = session;
        self.slot = slot;
        self.last_read = 0;
        self.clock = process.header().session.clock.load(Ordering::Relaxed);
        let session_fields = &process.header().session;
        let (seed, interval) =
            (session_fields.seed.load(Ordering::Relaxed), session_fields.sample.load(Ordering::Relaxed));
        for (domain, sampler) in (0..).zip(&mut self.samplers) {
            *sampler = MaybeUninit::new(Sampler::begin(seed ^ u64::from(slot) << 8 ^ domain, interval));
        }
        self.told = 0;
        self.asked = 0;
        self.next_stack = 1;
        self.rules = MaybeUninit::new(process.rules_for_session(session));
        self.window = Window::default();
        self.kept.forget();
        self.python.forget();
        self.stacks.clear();
        self.verifies = process.verifies();
        self.busy = 0;
        self.side = side;
        self.context = MaybeUninit::new(cfi::Context::new_in());
        self.ring = ring;
    }

    /// Whether no hook is using the state, and its ring was opened.
    #[inline(always)]
    pub fn is_at_rest(&self) -> bool {
        self.busy == 0 && !self.ring.is_closed()
    }

    /// Whether what it knows is of the present epoch.
    #[inline(always)]
    pub fn is_current(&self) -> bool {
        self.header().session.epoch.load(Ordering::Acquire) == self.epoch
    }

    /// Where the samples of a domain lie.
    #[inline(always)]
    pub fn sampler(&mut self, domain: u8) -> &mut Sampler {
        // SAFETY: set by `begin`, before the ring was opened.
        unsafe { self.samplers[usize::from(domain) % domain::COUNT].assume_init_mut() }
    }

    /// Counts a block that is allocated. Whether it is a sample.
    #[inline(always)]
    pub fn counts(&mut self, size: usize, domain: u8) -> bool {
        let calls = self.ring.calls(domain);
        add(&calls.allocs, 1);
        add(&calls.bytes, size as u64);
        self.sampler(domain).passes(size)
    }

    /// There was no memory for a block that was counted, and would have been a sample.
    #[cold]
    pub fn uncounts(&mut self, size: usize, domain: u8) {
        let calls = self.ring.calls(domain);
        add(&calls.allocs, 1_u64.wrapping_neg());
        add(&calls.bytes, (size as u64).wrapping_neg());
        self.sampler(domain).goes_back();
    }

    /// Counts a block that is freed.
    #[inline(always)]
    pub fn count_free(&mut self, domain: u8) {
        add(&self.ring.calls(domain).frees, 1);
    }

    /// Whether native blocks were counted since that was asked last. As far as one can tell: a closed ring counts nothing.
    fn has_counted(&mut self) -> bool {
        if self.ring.is_closed() {
            return true;
        }
        let now = self.ring.calls(domain::NATIVE).allocs.load(Ordering::Relaxed);
        core::mem::replace(&mut self.asked, now) != now
    }

    /// Whether it is the thread's own state, and not the one for its signal handlers.
    #[inline(always)]
    pub fn is_own(&self) -> bool {
        ptr::eq(self, thread_state())
    }

    /// The epoch that what the thread knows belongs to.
    #[inline(always)]
    pub fn epoch(&self) -> u32 {
        self.epoch
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

    #[inline(always)]
    fn header(&self) -> &'static Header {
        // SAFETY: an open ring's arena is mapped for as long as the process lives.
        unsafe { &*self.header }
    }
}

/// Adds to a counter that only this thread writes: a handler that comes between load and store may cost a count.
#[inline(always)]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// Whether the calling thread has counted native blocks since it asked last, outside of a hook.
pub fn has_counted() -> bool {
    // SAFETY: the word points to this thread's state, which no hook is using.
    unsafe { thread_state().as_mut() }.is_none_or(Thread::has_counted)
}

/// The last words that the calling thread has recorded, outside of a hook.
pub fn last_record<const N: usize>() -> Option<[u64; N]> {
    // SAFETY: the word points to this thread's state, which nobody else writes to.
    unsafe { thread_state().as_ref() }?.last_words()
}

/// The calling thread's state; null before the thread's first event and where nothing is traced.
#[inline(always)]
pub(crate) fn thread_state() -> *mut Thread {
    tls::thread().cast()
}

//! The state of one thread, and the way of records from the thread into the thread's ring.
//!
//! The state lies in memory wiped by fork, so a forked child finds a closed ring and takes the slow
//! path. The state belongs to the slot. When a thread has ended and the aggregator has freed the
//! slot, the next thread on the slot takes the state over. Memory therefore follows the number of
//! threads alive at one time.
//!
//! [`Thread::publish`] publishes every record, in this order:
//!
//! 1. Room in the ring: the only step that may wait.
//! 2. In-flight mark.
//! 3. Epoch: the end or the renewal of the session shows here, before a byte is written to memory
//!    that may have a new owner.
//! 4. Stamp.

mod enter;
mod name;
mod publish;
pub mod record;
mod room;

pub use crate::arch::stack::pointer as stack_pointer;
pub use enter::{
    enter, enter_allocator, enter_at_once, in_allocator, leave, leave_allocator, out_of_allocator, was_abandoned,
};
pub use name::give_up as give_up_key;
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

/// A buffer of frames, with as many frames as a traceback keeps.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Frames {
    start: *mut u64,
    capacity: usize,
}

impl Frames {
    /// Returns the buffer as a slice.
    ///
    /// # Safety
    /// No other reference to the buffer is alive.
    pub unsafe fn as_mut<'a>(self) -> &'a mut [u64] {
        // SAFETY: `capacity` frames are mapped for as long as the process lives, and the caller
        // guarantees that no other reference is alive.
        unsafe { core::slice::from_raw_parts_mut(self.start, self.capacity) }
    }
}

/// The state of a thread. All zeros, the state after fork, are a thread with a closed ring.
#[repr(C)]
pub struct Thread {
    ring: Producer,
    header: *const Header,
    epoch: u32,
    clock: u32,
    session: u32,
    /// Index of the thread's slot.
    slot: u32,
    /// Slot of the running hook: where the hook was entered. 0 outside of hooks.
    busy: usize,
    /// Where the thread's hooks may record.
    room: room::Stacks,
    /// Samplers, by domain: positions of the samples, while samples are recorded.
    samplers: [MaybeUninit<Sampler>; domain::COUNT],
    /// Sampling interval last told to the reader of the ring.
    told: u64,
    /// Count of native blocks at the last call of [`Thread::has_counted`].
    counted_at_last_look: u64,
    /// Value of the clock at the thread's last reading.
    last_read: u64,
    next_stack: u32,
    /// Name last told to the reader of the ring.
    name: [u8; 16],
    rules: MaybeUninit<rules::Table>,
    /// Pages of the stack known to be readable.
    pub window: Window,
    /// The last native stack, for the next walk.
    pub kept: Kept,
    stacks: StackTable,
    /// The last Python stack.
    pub python: PythonStack,
    /// Whether `HEAPLINE_VERIFY=1` is set.
    verifies: bool,
    /// Buffer for the frames of a walk that keeps nothing, the most recent first.
    pub frames: Frames,
    /// State for a signal handler that interrupts a hook.
    side: *mut Thread,
    context: MaybeUninit<cfi::Context>,
}

/// Epoch and session in which a thread begins.
#[derive(Clone, Copy)]
struct Moment {
    epoch: u32,
    session: u32,
}

impl Thread {
    /// Returns the bytes of one thread's state with buffers for `nframe` frames.
    pub const fn bytes(nframe: usize) -> usize {
        size_of::<Thread>() + nframe * size_of::<u64>()
    }

    /// Lays a state over fresh memory.
    ///
    /// # Safety
    /// `memory` holds [`Thread::bytes`] zero bytes, and is unmapped only together with the state.
    pub unsafe fn lay_out(memory: *mut u8, nframe: usize) -> *mut Thread {
        let thread = memory.cast::<Thread>();
        // SAFETY: the caller guarantees [`Thread::bytes`] bytes: the state, and behind the state
        // the buffer.
        unsafe {
            (*thread).frames = Frames { start: memory.add(size_of::<Thread>()).cast(), capacity: nframe };
        }
        thread
    }

    /// Unmaps all memory mapped by the state, except for the state's own memory.
    ///
    /// # Safety
    /// The state is not used any more.
    pub unsafe fn release(&mut self) {
        // SAFETY: the caller guarantees that the state is not used any more.
        unsafe {
            self.room.unmap();
            self.kept.unmap();
            self.python.unmap();
            self.stacks.unmap();
        }
    }

    /// Returns the number of frames that a traceback of this thread can keep.
    pub fn nframe(&self) -> usize {
        self.frames.capacity
    }

    /// Returns the last words written by the thread.
    fn last_words<const N: usize>(&self) -> Option<[u64; N]> {
        self.ring.last()
    }

    /// Begins a session in the state. `side` is the state for the thread's signal handlers, from an
    /// earlier session, or null.
    fn begin(&mut self, ring: Producer, slot: u32, process: &'static Process, moment: Moment, side: *mut Thread) {
        let Moment { epoch, session } = moment;
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
        self.forget_name();
        self.counted_at_last_look = 0;
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

    /// Returns whether no hook is using the state, and the ring is open.
    #[inline(always)]
    pub fn is_at_rest(&self) -> bool {
        self.busy == 0 && !self.ring.is_closed()
    }

    /// Returns whether the thread's knowledge of stacks and code is of the present epoch.
    #[inline(always)]
    pub fn is_current(&self) -> bool {
        self.header().session.epoch.load(Ordering::Acquire) == self.epoch
    }

    /// Returns the sampler of a domain: the positions of the samples.
    #[inline(always)]
    pub fn sampler(&mut self, domain: u8) -> &mut Sampler {
        // SAFETY: `begin` set the samplers before opening the ring.
        unsafe { self.samplers[usize::from(domain) % domain::COUNT].assume_init_mut() }
    }

    /// Counts an allocated block. Returns whether the block is a sample.
    #[inline(always)]
    pub fn counts(&mut self, size: usize, domain: u8) -> bool {
        let calls = self.ring.calls(domain);
        add(&calls.allocs, 1);
        add(&calls.bytes, size as u64);
        self.sampler(domain).passes(size)
    }

    /// Takes the count of a sampled block back, after a failure to find memory for the block.
    #[cold]
    pub fn uncounts(&mut self, size: usize, domain: u8) {
        let calls = self.ring.calls(domain);
        add(&calls.allocs, 1_u64.wrapping_neg());
        add(&calls.bytes, (size as u64).wrapping_neg());
        self.sampler(domain).goes_back();
    }

    /// Counts a freed block.
    #[inline(always)]
    pub fn count_free(&mut self, domain: u8) {
        add(&self.ring.calls(domain).frees, 1);
    }

    /// Returns whether native blocks were counted since the last call of this function. A closed
    /// ring counts nothing, so the answer is then true to be careful.
    fn has_counted(&mut self) -> bool {
        if self.ring.is_closed() {
            return true;
        }
        let now = self.ring.calls(domain::NATIVE).allocs.load(Ordering::Relaxed);
        core::mem::replace(&mut self.counted_at_last_look, now) != now
    }

    /// Returns whether the state is the thread's main state, not the state for signal handlers.
    #[inline(always)]
    pub fn is_own(&self) -> bool {
        ptr::eq(self, thread_state())
    }

    /// Returns the epoch of the thread's knowledge of stacks and code.
    #[inline(always)]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Returns the session for which the thread records.
    pub fn session(&self) -> u32 {
        self.session
    }

    /// Returns whether every stack is to be compared with a fresh walk.
    #[inline(always)]
    pub fn verifies(&self) -> bool {
        self.verifies
    }

    /// Returns whether the stack around `from` has the word at `to`, nearer the root; `None` where
    /// the extent of the stack is not known.
    pub fn stack_holds(&self, from: usize, to: usize) -> Option<bool> {
        let known = self.room.known;
        known.has(from).then(|| to >= from && to < known.end())
    }

    /// Returns the rule table of the process.
    #[inline(always)]
    pub fn rules(&self) -> rules::Table {
        // SAFETY: `begin` set the rule table before opening the ring.
        unsafe { self.rules.assume_init() }
    }

    /// Returns the scratch memory for gimli.
    pub fn unwind_context(&mut self) -> &mut cfi::Context {
        // SAFETY: `begin` set the scratch memory before opening the ring.
        unsafe { self.context.assume_init_mut() }
    }

    #[inline(always)]
    pub fn header(&self) -> &'static Header {
        // SAFETY: the arena of an open ring is mapped for as long as the process lives.
        unsafe { &*self.header }
    }
}

/// Adds to a counter written only by this thread. A signal handler between load and store may cost
/// a count.
#[inline(always)]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// Returns whether the calling thread has counted native blocks since the last call. To be called
/// outside of hooks.
pub fn has_counted() -> bool {
    // SAFETY: the word points to the state of the calling thread, and no hook is using the state.
    unsafe { thread_state().as_mut() }.is_none_or(Thread::has_counted)
}

/// Returns the last words recorded by the calling thread. To be called outside of hooks.
pub fn last_record<const N: usize>() -> Option<[u64; N]> {
    // SAFETY: the word points to the state of the calling thread, and no other thread writes the
    // state.
    unsafe { thread_state().as_ref() }?.last_words()
}

/// Returns the state of the calling thread; null before the thread's first event and where nothing
/// is traced.
#[inline(always)]
pub(crate) fn thread_state() -> *mut Thread {
    tls::thread().cast()
}

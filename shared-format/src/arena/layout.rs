//! Layout of the arena's header and of a slot.

#[cfg(not(loom))]
use super::{PAGE_BYTES, SEGMENT_BYTES};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::word::domain;

/// Values of [`Session::state`]: the collector's task.
pub mod state {
    /// Record nothing. An aggregator may take the arena over.
    pub const IDLE: u32 = 0;
    /// Record everything.
    pub const TRACING: u32 = 1;
    /// Record samples: one sample in [`Session::sample`](super::Session::sample) bytes.
    pub const SAMPLING: u32 = 2;
}

/// Values of [`Target::end_cause`]: why the target itself stopped tracing. 0 while tracing goes on.
pub mod end_cause {
    /// The aggregator made no progress for a second while a thread waited for room.
    pub const STALLED: u32 = 1;
    /// The aggregator died.
    pub const ORPHANED: u32 = 2;
    /// A panic in the collector.
    pub const PANIC: u32 = 3;
    /// The program switched off the time-stamp counter (`PR_SET_TSC`).
    pub const CLOCK: u32 = 4;
}

/// Values of [`Session::clock`]: the clock of the stamps.
pub mod clock {
    /// The invariant time-stamp counter, read by `rdtscp`.
    pub const TSC: u32 = 0;
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub const MONOTONIC: u32 = 1;
}

/// Value of [`Session::owner`]: the aggregator is not there yet, and will come.
pub const UNCLAIMED: u32 = 0x3fff_ffff;

/// Value of [`Session::tick`]: the tick is about to be given to [`Session::tick_owner`], who must
/// not use it yet.
pub const TICK_PENDING: u64 = 1;

/// Bits of [`Target::flags`].
pub mod target_flag {
    /// The target has registered for `MEMBARRIER_CMD_GLOBAL_EXPEDITED`.
    pub const MEMBARRIER: u32 = 1;
    /// The C library does not say where its objects are (no glibc): the collector stays passive.
    pub const NO_OBJECTS: u32 = 2;
    /// The collector does not know the structures of this CPython: CPython's own blocks are not
    /// recorded.
    pub const UNKNOWN_PYTHON: u32 = 4;
    /// CPython reuses kept blocks for new objects, unseen by the collector: such blocks stay with
    /// their first line.
    pub const UNSEEN_REUSE: u32 = 8;
    /// An injected collector waits for the interpreter's lock, to hook or unhook the interpreter's
    /// allocators.
    pub const PYTHON_WAITS: u32 = 16;
    /// The interpreter's allocators are hooked.
    pub const PYTHON_HOOKED: u32 = 32;
    /// CPython was already running when the collector first saw the interpreter: CPython's own
    /// blocks are not recorded.
    pub const LATE_PYTHON: u32 = 64;
    /// A second CPython has begun beside the recorded interpreter: blocks of the second are not
    /// recorded.
    pub const OTHER_PYTHON: u32 = 128;
    /// Place of the unknown CPython's minor version, a byte; 0 if the version could not be read.
    pub const UNKNOWN_MINOR: u32 = 24;
}

/// Why an event is missing. Used as the index into [`Header::lost`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Loss {
    /// A signal handler interrupted a hook and allocated, nested more deeply than there are side
    /// rings.
    Reentrant = 0,
    /// No slot: more than [`super::MAX_SLOTS`] threads at the same time.
    Slots = 1,
    /// The collector could not get memory for itself (`RLIMIT_AS`, no memory).
    Memory = 2,
    /// The thread had events after the target stopped tracing (stalled, orphaned, panic).
    Ended = 3,
}

impl Loss {
    /// All causes, in the order of the counters.
    pub const ALL: [Loss; 4] = [Loss::Reentrant, Loss::Slots, Loss::Memory, Loss::Ended];

    /// Name of the cause in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Loss::Reentrant => "reentrant",
            Loss::Slots => "slots",
            Loss::Memory => "memory",
            Loss::Ended => "ended",
        }
    }
}

/// The header of the arena. Each group of fields written by the same side has separate cache lines.
#[repr(C, align(4096))]
pub struct Header {
    /// Identity and geometry, written once by the creator before the file is handed on.
    pub identity: Identity,
    /// Written by the aggregator, read by every thread of the target at every event.
    pub session: Session,
    /// Written by the aggregator while it drains.
    pub progress: Progress,
    /// Written by the target, rarely.
    pub target: Target,
    /// Numbers of missing events, by [`Loss`]; written by the target.
    pub lost: Line<[AtomicU64; 8]>,
    /// Top of the list of free slots: (tag << 32 | index + 1). The low half is 0 when the list is
    /// empty.
    pub free_slots: Line<AtomicU64>,
    /// Top of the list of free segments, in the format of `free_slots`.
    pub free_segments: Line<AtomicU64>,
    /// Answers to the target's questions; written by the aggregator.
    pub mail: Mail,
    /// Address for the reports of child processes.
    pub tree: Tree,
}

/// A value on separate cache lines (two lines, because the hardware fetches lines in pairs).
#[repr(C, align(128))]
pub struct Line<T>(pub T);

/// Identity and geometry of an arena; part of the [`Header`].
#[repr(C, align(128))]
pub struct Identity {
    /// [`super::MAGIC`], stored last.
    pub magic: AtomicU64,
    /// [`super::VERSION`].
    pub version: AtomicU32,
    /// Number of slots.
    pub slots: AtomicU32,
    /// Number of segments.
    pub segments: AtomicU32,
    /// Unused: 0.
    pub reserved: AtomicU32,
    /// Size of the file, in bytes.
    pub bytes: AtomicU64,
}

/// State of the present session; part of the [`Header`].
#[repr(C, align(128))]
pub struct Session {
    /// Changes whenever a thread's cached knowledge becomes invalid: a session began or ended, or a
    /// module was unloaded. Each thread compares the epoch with a copy at every event, inside the
    /// in-flight mark.
    pub epoch: AtomicU32,
    /// Task of the collector: a value of [`state`].
    pub state: AtomicU32,
    /// Number of the session, from 1. Each attach gets a new number.
    pub number: AtomicU32,
    /// Clock of the stamps: a value of [`clock`].
    pub clock: AtomicU32,
    /// Frames kept per traceback.
    pub nframe: AtomicU32,
    /// Thread id of the aggregator, as a robust futex: the kernel sets `FUTEX_OWNER_DIED` when the
    /// aggregator dies. 0 without an aggregator; [`UNCLAIMED`] in a session begun by the target
    /// itself.
    pub owner: AtomicU32,
    /// Process id of the aggregator, for messages.
    pub owner_pid: AtomicU32,
    /// Slot of the thread that may stamp events with [`Session::tick`].
    pub tick_owner: AtomicU32,
    /// Time of the aggregator's last poll, while only a single thread has events. 0 or
    /// [`TICK_PENDING`] when all threads read the clock. Another thread stores 0 before its own
    /// event.
    pub tick: AtomicU64,
    /// Mean distance of samples, in bytes; a thread uses it for its next sample. 0 in a session
    /// that records everything.
    pub sample: AtomicU64,
    /// Seed of the random distances between samples.
    pub seed: AtomicU64,
}

/// Progress of the aggregator, and waiting threads; part of the [`Header`].
#[repr(C, align(128))]
pub struct Progress {
    /// Increases whenever segments or slots are given back. Futex: producers without room wait on
    /// it.
    pub given_back: AtomicU32,
    /// Number of threads waiting on `given_back` now; written by the target.
    pub waiters: AtomicU32,
    /// How often a thread had to wait for room; written by the target.
    pub waits: AtomicU64,
    /// Futex woken by the target when the pool runs low.
    pub wake: AtomicU32,
    /// Not 0 while the aggregator sleeps on `wake`.
    pub sleeping: AtomicU32,
}

/// Part of [`Mail::asking`]: a thread whose answer takes long.
pub const ASKS_LONG: u32 = 1 << 8;
/// Part of [`Mail::asking`]: a thread sleeping on [`Mail::answered`].
pub const SLEEPS: u32 = 1 << 16;

/// Answers to the target's queries; part of the [`Header`].
#[repr(C, align(128))]
pub struct Mail {
    /// Number of the query answered last. Futex: the target waits on it. The aggregator stores it
    /// with Release, after the answer.
    pub answered: AtomicU32,
    /// Sum over the waiting threads; written by the target. A thread may die while waiting.
    ///
    /// - 1 for each thread with a short question.
    /// - [`ASKS_LONG`] for each thread with a long question.
    /// - In addition [`SLEEPS`] for each sleeping thread.
    pub asking: AtomicU32,
    /// Length of the answer's text in bytes. [`super::Arena::mail`] holds the next piece of the
    /// text.
    pub bytes: AtomicU64,
    /// The answer, when the answer consists of numbers.
    pub numbers: [AtomicU64; 2],
}

/// Data for child processes ([`crate::tree`]); part of the [`Header`].
#[repr(C, align(128))]
pub struct Tree {
    /// Not 0 while child processes are followed. Stored with Release, after the other fields.
    pub follows: AtomicU32,
    /// Number of segments in a child's pool.
    pub segments: AtomicU32,
    /// Name of the aggregator's socket.
    pub name: [AtomicU64; 2],
    /// Secret token of the aggregator: a message to the socket must contain it.
    pub token: [AtomicU64; 2],
    /// Key of this process in the tree.
    pub key: AtomicU64,
    /// Number of forks of this process so far; written by the target.
    pub forks: AtomicU32,
    /// Number of children without a report: a child failed to report, or was not allowed to.
    /// Written by the children and by the target.
    pub untold: AtomicU32,
}

/// State and counters of the target; part of the [`Header`].
#[repr(C, align(128))]
pub struct Target {
    /// Process id, as seen by the target.
    pub pid: AtomicU32,
    /// Number of program images with tracing in this arena. Each `exec` begins a new image.
    pub images: AtomicU32,
    /// Number of `exec` calls about to be made.
    pub exec_begun: AtomicU32,
    /// Number of `exec` calls that failed and returned.
    pub exec_failed: AtomicU32,
    /// Bits of [`target_flag`].
    pub flags: AtomicU32,
    /// Why tracing ended: a value of [`end_cause`].
    pub end_cause: AtomicU32,
    /// The highest slot index ever taken, plus 1.
    pub slots_high: AtomicU32,
    /// How often a thread's table of stacks was full and was emptied.
    pub stacks_forgotten: AtomicU32,
    /// Bytes mapped by the collector for itself, without the arena.
    pub own_bytes: AtomicU64,
    /// Number of allocator calls passed through before the collector was up.
    pub before_start: AtomicU64,
    /// Number of stacks compared with a fresh walk (`HEAPLINE_VERIFY=1`).
    pub verified: AtomicU64,
    /// Number of compared stacks that differed from the fresh walk.
    pub verify_failed: AtomicU64,
    /// Number of call sites of an allocator that the collector cannot intercept.
    pub foreign_places: AtomicU32,
    /// Number of objects loaded past a preloaded collector. The constructors of such an object may
    /// have allocated before the object's calls were redirected to the collector.
    pub unseen_starts: AtomicU32,
}

/// Values of [`Slot::state`], low half. The high half is the generation.
pub mod slot_state {
    /// The slot is in the free list, or about to be. No thread uses the slot.
    pub const FREE: u32 = 0;
    /// A thread writes to the slot.
    pub const ACTIVE: u32 = 1;
    /// A live thread had the slot in an earlier session, and may not know yet that the session is
    /// over. Until the thread knows, it uses the parts of the slot. So only this thread can take
    /// the slot again.
    pub const HELD: u32 = 2;
    /// A thread has taken the slot and is about to make the slot ACTIVE. A session that begins
    /// meanwhile does not change the state.
    pub const CLAIMED: u32 = 3;
}

/// Counters of a thread's calls in a domain. Written only by the thread.
#[repr(C)]
pub struct Calls {
    /// Blocks allocated.
    pub allocs: AtomicU64,
    /// Bytes allocated.
    pub bytes: AtomicU64,
    /// Blocks freed.
    pub frees: AtomicU64,
}

impl Slot {
    /// Takes the slot for a thread that saw `seen` as the slot's state ([`slot_state::FREE`] or
    /// HELD). Returns false when the state has changed: the slot now belongs to another session or
    /// another thread.
    pub fn claim(&self, seen: u64) -> bool {
        let claimed = seen & !0xffff_ffff | u64::from(slot_state::CLAIMED);
        self.state.0.compare_exchange(seen, claimed, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Undoes [`Slot::claim`]: the slot becomes FREE.
    pub fn unclaim(&self) {
        let generation = self.state.0.load(Ordering::Relaxed) & !0xffff_ffff;
        self.state.0.store(generation | u64::from(slot_state::FREE), Ordering::Release);
    }

    /// Returns the low half of a slot's state: a value of [`slot_state`].
    pub const fn kind(state: u64) -> u32 {
        (state & 0xffff_ffff) as u32
    }
}

/// Shared state of a thread's ring. The producer's words and the consumer's words have separate
/// cache lines.
#[repr(C, align(128))]
pub struct Slot {
    /// Number of bytes published since the slot was taken. Release by the producer, Acquire by the
    /// consumer.
    pub head: AtomicU64,
    /// Not 0 while the producer is between stamp and publication of an event.
    pub in_flight: AtomicU32,
    /// Thread id, as seen by the target.
    pub tid: AtomicU32,
    /// [`Target::images`] when the slot was taken. `exec` ends the threads of older images.
    pub image: AtomicU32,
    /// [`Session::number`] when the slot was taken.
    pub session: AtomicU32,
    /// First segment of the ring.
    pub first_segment: AtomicU32,
    /// 1 for a side ring, used by a signal handler that interrupted a hook.
    pub side: AtomicU32,
    /// Counters of all calls by domain, kept while samples are recorded. The counters continue over
    /// threads and sessions.
    pub calls: [Calls; domain::COUNT],
    /// Generation << 32 | [`slot_state`]. The producer stores ACTIVE (Release) after all fields
    /// above. The aggregator stores FREE and a new generation.
    pub state: Line<AtomicU64>,
}

#[cfg(not(loom))]
const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Header>() == PAGE_BYTES);
    assert!(offset_of!(Header, session) == 128);
    assert!(offset_of!(Header, progress) == 256);
    assert!(offset_of!(Header, target) == 384);
    assert!(offset_of!(Header, lost) == 512);
    assert!(offset_of!(Header, free_slots) == 640);
    assert!(offset_of!(Header, free_segments) == 768);
    assert!(offset_of!(Header, mail) == 896);
    assert!(offset_of!(Header, tree) == 1024);
    assert!(size_of::<Slot>() == 256);
    assert!(offset_of!(Slot, state) == 128);
    assert!(SEGMENT_BYTES.is_multiple_of(PAGE_BYTES));
};

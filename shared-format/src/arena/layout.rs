//! What lies where in the header and in a slot.

#[cfg(not(loom))]
use super::{PAGE_BYTES, SEGMENT_BYTES};
use crate::event::domain;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// [`Session::state`]: what the collector is to do.
pub mod state {
    /// Record nothing. An aggregator may take the arena over.
    pub const IDLE: u32 = 0;
    /// Record everything.
    pub const TRACING: u32 = 1;
    /// Record samples: one in [`Session::sample`](super::Session::sample) bytes.
    pub const SAMPLING: u32 = 2;
}

/// [`Target::end_cause`]: why the target stopped tracing by itself. 0 while it has not.
pub mod end_cause {
    /// The aggregator made no progress for a second while a thread waited for room.
    pub const STALLED: u32 = 1;
    /// The aggregator died.
    pub const ORPHANED: u32 = 2;
    /// A panic in the collector.
    pub const PANIC: u32 = 3;
    /// The program switched its time-stamp counter off (`PR_SET_TSC`).
    pub const CLOCK: u32 = 4;
}

/// [`Session::clock`]: what a stamp is.
pub mod clock {
    /// The invariant time-stamp counter, read by `rdtscp`.
    pub const TSC: u32 = 0;
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub const MONOTONIC: u32 = 1;
}

/// [`Session::owner`]: the aggregator will come.
pub const UNCLAIMED: u32 = 0x3fff_ffff;

/// [`Session::tick`]: about to be given to its owner, who must not use it yet.
pub const TICK_PENDING: u64 = 1;

/// [`Target::flags`].
pub mod target_flag {
    /// The target has registered for `MEMBARRIER_CMD_GLOBAL_EXPEDITED`.
    pub const MEMBARRIER: u32 = 1;
    /// The C library has no `_dl_find_object` (glibc before 2.35): the collector stays passive.
    pub const OLD_GLIBC: u32 = 2;
    /// A CPython whose structures the collector does not know: its own blocks are not recorded.
    pub const UNKNOWN_PYTHON: u32 = 4;
    /// A CPython whose new objects in blocks that it had kept are not seen: such blocks stay with their first line.
    pub const UNSEEN_REUSE: u32 = 8;
    /// An injected collector waits for the interpreter's lock, to hook its allocators or to let go of them.
    pub const PYTHON_WAITS: u32 = 16;
    /// The interpreter's allocators are hooked.
    pub const PYTHON_HOOKED: u32 = 32;
    /// A CPython was running when the collector first saw it: its own blocks are not recorded.
    pub const LATE_PYTHON: u32 = 64;
    /// A CPython beside the one whose blocks are recorded has begun: its own blocks are not.
    pub const OTHER_PYTHON: u32 = 128;
}

/// Why an event is missing. The index into [`Header::lost`]; names are what reports show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Loss {
    /// A hook interrupted by a signal handler that allocated, more deeply nested than there are side rings.
    Reentrant = 0,
    /// No slot: more than [`super::MAX_SLOTS`] threads at one time.
    Slots = 1,
    /// The collector could not get memory of its own (`RLIMIT_AS`, no memory).
    Memory = 2,
    /// Events of a thread after the target stopped tracing (stalled, orphaned, panic).
    Ended = 3,
}

impl Loss {
    /// All causes, in the order of their counters.
    pub const ALL: [Loss; 4] = [Loss::Reentrant, Loss::Slots, Loss::Memory, Loss::Ended];

    /// The name under which reports show the cause.
    pub const fn name(self) -> &'static str {
        match self {
            Loss::Reentrant => "reentrant",
            Loss::Slots => "slots",
            Loss::Memory => "memory",
            Loss::Ended => "ended",
        }
    }
}

/// The header. Each group that one side writes has cache lines of its own.
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
    /// Events that are missing, by [`Loss`]; written by the target.
    pub lost: Line<[AtomicU64; 8]>,
    /// Free slots: (tag << 32 | index + 1), 0 in the low half when empty.
    pub free_slots: Line<AtomicU64>,
    /// Free segments, likewise.
    pub free_segments: Line<AtomicU64>,
    /// Answers to the target's questions; written by the aggregator.
    pub mail: Mail,
    /// Where child processes report themselves.
    pub tree: Tree,
}

/// A value on cache lines of its own (two, since the hardware fetches them in pairs).
#[repr(C, align(128))]
pub struct Line<T>(pub T);

/// See [`Header::identity`].
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
    /// Unused, 0.
    pub reserved: AtomicU32,
    /// Size of the file.
    pub bytes: AtomicU64,
}

/// See [`Header::session`].
#[repr(C, align(128))]
pub struct Session {
    /// Changes whenever what threads remember is no longer true: a session began or ended, a module was unloaded.
    /// A thread compares it with its own copy at every event, inside its in-flight mark.
    pub epoch: AtomicU32,
    /// [`state`].
    pub state: AtomicU32,
    /// Number of the session, from 1; a new one at each attach.
    pub number: AtomicU32,
    /// [`clock`].
    pub clock: AtomicU32,
    /// Frames kept per traceback.
    pub nframe: AtomicU32,
    /// The aggregator's thread id: a robust futex, so the kernel sets `FUTEX_OWNER_DIED` in it when that dies. 0 for none,
    /// [`UNCLAIMED`] in a session that the target has begun itself.
    pub owner: AtomicU32,
    /// The aggregator's process id, for messages.
    pub owner_pid: AtomicU32,
    /// The slot whose thread may stamp its events with [`Session::tick`].
    pub tick_owner: AtomicU32,
    /// The time of the aggregator's last poll, while only one thread has events; 0, or [`TICK_PENDING`], when all
    /// threads read the clock. Another thread sets it to 0 before its event.
    pub tick: AtomicU64,
    /// Mean distance of samples, in bytes, for the next that a thread draws; 0 in a session that records everything.
    pub sample: AtomicU64,
    /// What the samples' distances begin with.
    pub seed: AtomicU64,
}

/// See [`Header::progress`].
#[repr(C, align(128))]
pub struct Progress {
    /// Increases whenever segments or slots were given back. Futex: producers without room wait for it.
    pub given_back: AtomicU32,
    /// Threads that wait for it now; written by the target.
    pub waiters: AtomicU32,
    /// How often a thread had to wait for room; written by the target.
    pub waits: AtomicU64,
    /// Futex that the target wakes when the pool runs low.
    pub wake: AtomicU32,
    /// Not 0 while the aggregator sleeps on `wake`.
    pub sleeping: AtomicU32,
}

/// A thread in [`Mail::asking`] whose answer takes long.
pub const ASKS_LONG: u32 = 1 << 8;
/// A thread in [`Mail::asking`] that sleeps on [`Mail::answered`].
pub const SLEEPS: u32 = 1 << 16;

/// See [`Header::mail`].
#[repr(C, align(128))]
pub struct Mail {
    /// Number of the query that was answered last. Futex: the target waits for it. Release by the aggregator, after what
    /// it answered.
    pub answered: AtomicU32,
    /// Threads that wait for an answer, [`ASKS_LONG`] for each whose answer takes long, and [`SLEEPS`] for each that sleeps;
    /// written by the target. A thread may die while it waits.
    pub asking: AtomicU32,
    /// Bytes of the text, of which [`super::Arena::mail`] has the next piece.
    pub bytes: AtomicU64,
    /// The answer, where it is numbers.
    pub numbers: [AtomicU64; 2],
}

/// See [`Header::tree`]; [`crate::tree`] says what becomes of it.
#[repr(C, align(128))]
pub struct Tree {
    /// Not 0 while child processes are followed. Release by whoever writes the others, after them.
    pub follows: AtomicU32,
    /// Segments of a child's pool.
    pub segments: AtomicU32,
    /// Name of the aggregator's socket.
    pub name: [AtomicU64; 2],
    /// What a message to it must know.
    pub token: [AtomicU64; 2],
    /// This process in the tree.
    pub key: AtomicU64,
    /// Forks of this process so far; written by the target.
    pub forks: AtomicU32,
    /// Children that could not report themselves, or were not let; written by them and by the target.
    pub untold: AtomicU32,
}

/// See [`Header::target`].
#[repr(C, align(128))]
pub struct Target {
    /// Process id as the target sees it.
    pub pid: AtomicU32,
    /// Program images that have started tracing in this arena, counted by `exec`.
    pub images: AtomicU32,
    /// `exec` calls that were about to be made ...
    pub exec_begun: AtomicU32,
    /// ... and that failed and returned.
    pub exec_failed: AtomicU32,
    /// [`target_flag`].
    pub flags: AtomicU32,
    /// [`end_cause`].
    pub end_cause: AtomicU32,
    /// One more than the highest slot index ever taken.
    pub slots_high: AtomicU32,
    /// How often a thread's table of stacks was full and forgotten.
    pub stacks_forgotten: AtomicU32,
    /// Bytes that the collector mapped for itself, without the arena.
    pub own_bytes: AtomicU64,
    /// Calls that were passed through before the collector was up.
    pub before_start: AtomicU64,
    /// Stacks that were compared with a fresh walk (`HEAPLINE_VERIFY=1`) ...
    pub verified: AtomicU64,
    /// ... and that differed.
    pub verify_failed: AtomicU64,
    /// Places that call an allocator which the collector cannot stand in front of.
    pub foreign_places: AtomicU32,
    /// Objects that were loaded past a preloaded collector, and whose constructors may have allocated before their calls
    /// were led to it.
    pub unseen_starts: AtomicU32,
}

/// [`Slot::state`], low half; the high half is the generation.
pub mod slot_state {
    /// In the free list, or about to be: nobody knows of it.
    pub const FREE: u32 = 0;
    /// A thread writes to it.
    pub const ACTIVE: u32 = 1;
    /// A thread that lives had it in an earlier session, and may not know yet that this is over: until it does, it uses
    /// what belongs to the slot. So it alone can take it again.
    pub const HELD: u32 = 2;
    /// A thread has taken it and is about to make it ACTIVE. No session that begins meanwhile changes it.
    pub const CLAIMED: u32 = 3;
}

/// What a thread has done in a domain. Written by it alone.
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
    /// Takes the slot, which was seen in this state ([`slot_state::FREE`] or HELD). False when it is another session's by now,
    /// or another thread's.
    pub fn claim(&self, seen: u64) -> bool {
        let claimed = seen & !0xffff_ffff | u64::from(slot_state::CLAIMED);
        self.state.0.compare_exchange(seen, claimed, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Undoes [`Slot::claim`]: it is nobody's.
    pub fn unclaim(&self) {
        let generation = self.state.0.load(Ordering::Relaxed) & !0xffff_ffff;
        self.state.0.store(generation | u64::from(slot_state::FREE), Ordering::Release);
    }

    /// What the slot is ([`slot_state`]), of all its state.
    pub const fn kind(state: u64) -> u32 {
        (state & 0xffff_ffff) as u32
    }
}

/// One thread's end of its ring. The producer's words and the consumer's are on lines of their own.
#[repr(C, align(128))]
pub struct Slot {
    /// Bytes published since the slot was taken. Release by the producer, Acquire by the consumer.
    pub head: AtomicU64,
    /// Not 0 while the producer is between its stamp and its publication.
    pub in_flight: AtomicU32,
    /// The thread id, as the target sees it.
    pub tid: AtomicU32,
    /// [`Target::images`] when the slot was taken: `exec` ends the threads of older images.
    pub image: AtomicU32,
    /// [`Session::number`] when the slot was taken.
    pub session: AtomicU32,
    /// The ring's first segment.
    pub first_segment: AtomicU32,
    /// 1 when it is the side ring for a signal handler that interrupted a hook.
    pub side: AtomicU32,
    /// While samples are recorded: all calls, by domain. They go on over threads and sessions.
    pub calls: [Calls; domain::COUNT],
    /// Generation << 32 | [`slot_state`]. ACTIVE is stored by the producer (Release) after all of the above; FREE and
    /// a new generation by the aggregator.
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

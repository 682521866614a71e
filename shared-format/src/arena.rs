//! The arena: one memory file per target, mapped by both sides.
//!
//! ```text
//! offset 0        +--------------------------------------------------------------+
//!                 | Header (one page): identity, session, progress, losses       |
//! slots_offset    +--------------------------------------------------------------+
//!                 | Slot 0 | Slot 1 | ...            256 bytes each, one a thread |
//! links_offset    +--------------------------------------------------------------+
//!                 | u32 per slot: free list; then u32 per segment: free list or,  |
//!                 | while a ring holds the segment, its successor in that ring    |
//! pool_offset     +--------------------------------------------------------------+
//!                 | Segment 0 | Segment 1 | ...      8 KiB each, of any ring      |
//!                 +--------------------------------------------------------------+
//! ```
//!
//! A ring is a chain of segments taken from one pool, not an area of its own: a thread that writes little holds one
//! segment, a thread in a burst takes as many as it needs, the sum never passes the pool (`--max-target-memory`), and
//! the target needs neither the descriptor nor another `mmap` after its start. The pool is a stack, so the segments
//! in use are the ones that are warm in the cache.
//!
//! The file is sized once and sealed against shrinking and growing. All state is atomic: the other side may write
//! any word at any time, and a hostile target may write anything at all.

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use core::ptr::NonNull;

/// First eight bytes of an arena.
pub const MAGIC: u64 = u64::from_le_bytes(*b"HEAPLARN");
/// Version of everything in this file, in `ring` and in `event`. Both sides must have the same.
pub const VERSION: u32 = 1;
/// Page size that the layout is aligned to.
pub const PAGE_BYTES: usize = 4096;
/// Size of a ring's segment. A record never spans two.
#[cfg(not(loom))]
pub const SEGMENT_BYTES: usize = 8192;
/// Small in the model test, so that loom can explore it.
#[cfg(loom)]
pub const SEGMENT_BYTES: usize = 64;
/// The same in words.
pub const SEGMENT_WORDS: usize = SEGMENT_BYTES / 8;
/// Threads that can be traced at one time.
pub const MAX_SLOTS: u32 = 4096;
/// Smallest pool: with fewer segments two busy threads could wait for each other's last one.
pub const MIN_SEGMENTS: u32 = if cfg!(loom) { 2 } else { 64 };
/// Largest pool, 16 GiB.
pub const MAX_SEGMENTS: u32 = 1 << 21;
/// Name of the memory file, as it is seen in `/proc/PID/fd` and `/proc/PID/maps`.
pub const MEMFD_NAME: &str = "heapline-arena";
/// Environment variable that hands the arena to a collector that starts: `FD:DEV:INO`, decimal.
pub const ENV_ARENA: &str = "HEAPLINE_ARENA";
/// Environment variable that switches a collector off entirely when it is `1`.
pub const ENV_DISABLE: &str = "HEAPLINE_DISABLE";

/// [`Header::state`]: what the collector is to do.
pub mod state {
    /// Record nothing. An aggregator may take the arena over.
    pub const IDLE: u32 = 0;
    /// Record everything.
    pub const TRACING: u32 = 1;
}

/// [`Header::end_cause`]: why the target stopped tracing by itself. 0 while it has not.
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

/// [`Header::clock`]: what a stamp is.
pub mod clock {
    /// The invariant time-stamp counter, read by `rdtscp`.
    pub const TSC: u32 = 0;
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub const MONOTONIC: u32 = 1;
}

/// [`Header::target_flags`].
pub mod target_flag {
    /// The target has registered for `MEMBARRIER_CMD_GLOBAL_EXPEDITED`.
    pub const MEMBARRIER: u32 = 1;
    /// The C library has no `_dl_find_object` (glibc before 2.35): the collector stays passive.
    pub const OLD_GLIBC: u32 = 2;
}

/// Why an event is missing. The index into [`Header::lost`]; names are what reports show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Loss {
    /// A hook interrupted by a signal handler that allocated, more deeply nested than there are side rings.
    Reentrant = 0,
    /// No slot: more than [`MAX_SLOTS`] threads at one time.
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
}

/// A value on cache lines of its own (two, since the hardware fetches them in pairs).
#[repr(C, align(128))]
pub struct Line<T>(pub T);

/// See [`Header::identity`].
#[repr(C, align(128))]
pub struct Identity {
    /// [`MAGIC`], stored last.
    pub magic: AtomicU64,
    /// [`VERSION`].
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
    /// The aggregator's thread id: a robust futex, so the kernel sets `FUTEX_OWNER_DIED` in it when that dies.
    pub owner: AtomicU32,
    /// The aggregator's process id, for messages.
    pub owner_pid: AtomicU32,
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
    /// Unused, 0.
    pub reserved: AtomicU32,
    /// Bytes that the collector mapped for itself, without the arena.
    pub own_bytes: AtomicU64,
    /// Calls that were passed through before the collector was up.
    pub before_start: AtomicU64,
    /// Stacks that were compared with a fresh walk (`HEAPLINE_VERIFY=1`) ...
    pub verified: AtomicU64,
    /// ... and that differed.
    pub verify_failed: AtomicU64,
}

/// [`Slot::state`], low half; the high half is the generation.
pub mod slot_state {
    /// In the free list.
    pub const FREE: u32 = 0;
    /// A thread writes to it.
    pub const ACTIVE: u32 = 1;
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
    assert!(size_of::<Slot>() == 256);
    assert!(offset_of!(Slot, state) == 128);
    assert!(SEGMENT_BYTES.is_multiple_of(PAGE_BYTES));
};

/// Sizes and offsets of an arena, computed in one place from its two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Number of slots, 1 to [`MAX_SLOTS`].
    pub slots: u32,
    /// Number of segments, [`MIN_SEGMENTS`] to [`MAX_SEGMENTS`].
    pub segments: u32,
}

impl Geometry {
    /// The geometry whose pool takes `max_bytes` of ring memory.
    pub const fn for_memory(max_bytes: u64) -> Geometry {
        let segments = max_bytes / SEGMENT_BYTES as u64;
        let segments = if segments < MIN_SEGMENTS as u64 {
            MIN_SEGMENTS
        } else if segments > MAX_SEGMENTS as u64 {
            MAX_SEGMENTS
        } else {
            #[expect(clippy::cast_possible_truncation, reason = "at most MAX_SEGMENTS")]
            let n = segments as u32;
            n
        };
        Geometry { slots: MAX_SLOTS, segments }
    }

    /// Whether both numbers are in their ranges.
    pub const fn is_valid(self) -> bool {
        self.slots >= 1
            && self.slots <= MAX_SLOTS
            && self.segments >= MIN_SEGMENTS
            && self.segments <= MAX_SEGMENTS
    }

    /// Offset of the first slot.
    pub const fn slots_offset(self) -> usize {
        PAGE_BYTES
    }

    /// Offset of the links.
    pub const fn links_offset(self) -> usize {
        self.slots_offset() + self.slots as usize * size_of::<Slot>()
    }

    /// Offset of the pool.
    pub const fn pool_offset(self) -> usize {
        (self.links_offset() + (self.slots as usize + self.segments as usize) * 4).next_multiple_of(SEGMENT_BYTES)
    }

    /// Size of the file.
    pub const fn bytes(self) -> usize {
        self.pool_offset() + self.segments as usize * SEGMENT_BYTES
    }
}

/// Why a piece of memory is no arena that this build can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArenaError {
    /// Too small for a header.
    TooSmall {
        /// Bytes found.
        bytes: usize,
    },
    /// The magic is another.
    NotAnArena,
    /// Written by another version.
    Version {
        /// The version in the header.
        found: u32,
        /// [`VERSION`].
        wanted: u32,
    },
    /// Numbers that contradict each other or the size.
    Geometry,
}

impl core::fmt::Display for ArenaError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            ArenaError::TooSmall { bytes } => write!(f, "the arena has only {bytes} bytes"),
            ArenaError::NotAnArena => f.write_str("the memory file is no Heapline arena"),
            ArenaError::Version { found, wanted } => write!(
                f,
                "the arena has format version {found}, this program knows version {wanted}: \
                 use the aggregator that belongs to the collector in the process"
            ),
            ArenaError::Geometry => f.write_str("the arena's header contradicts its size"),
        }
    }
}

impl core::error::Error for ArenaError {}

/// A mapped arena whose geometry was validated once and is from then on taken from here, never from the header.
#[derive(Clone, Copy)]
pub struct Arena {
    header: NonNull<Header>,
    slots: NonNull<Slot>,
    links: NonNull<AtomicU32>,
    pool: NonNull<AtomicU64>,
    geometry: Geometry,
}

// SAFETY: everything behind the pointers is atomic, and the mapping outlives the value (see the constructors).
unsafe impl Send for Arena {}
// SAFETY: as for Send.
unsafe impl Sync for Arena {}

impl Arena {
    /// Lays an arena over zeroed memory and publishes its identity.
    ///
    /// # Safety
    /// 1. `base` is aligned to a page and valid for reads and writes of `geometry.bytes()` zero bytes.
    /// 2. It stays mapped for as long as the value or a copy of it is used.
    /// 3. Nobody else uses it before this returns.
    ///
    /// # Panics
    /// When the geometry is not valid.
    pub unsafe fn create(base: NonNull<u8>, geometry: Geometry) -> Arena {
        assert!(geometry.is_valid(), "geometry out of range");
        // SAFETY: the caller's promises 1 and 2.
        let arena = unsafe { Arena::over(base, geometry) };
        let identity = &arena.header().identity;
        identity.version.store(VERSION, Ordering::Relaxed);
        identity.slots.store(geometry.slots, Ordering::Relaxed);
        identity.segments.store(geometry.segments, Ordering::Relaxed);
        identity.bytes.store(geometry.bytes() as u64, Ordering::Relaxed);
        identity.magic.store(MAGIC, Ordering::Release);
        arena
    }

    /// Validates what another process calls an arena.
    ///
    /// # Safety
    /// 1. `base` is aligned to a page and valid for reads and writes of `bytes` bytes.
    /// 2. It stays mapped and does not shrink (seals) for as long as the value or a copy of it is used.
    pub unsafe fn open(base: NonNull<u8>, bytes: usize) -> Result<Arena, ArenaError> {
        if bytes < PAGE_BYTES {
            return Err(ArenaError::TooSmall { bytes });
        }
        // SAFETY: promise 1, and a header is one page of atomics, for which every bit pattern is valid.
        let identity = unsafe { &(*base.as_ptr().cast::<Header>()).identity };
        if identity.magic.load(Ordering::Acquire) != MAGIC {
            return Err(ArenaError::NotAnArena);
        }
        let found = identity.version.load(Ordering::Relaxed);
        if found != VERSION {
            return Err(ArenaError::Version { found, wanted: VERSION });
        }
        let geometry = Geometry {
            slots: identity.slots.load(Ordering::Relaxed),
            segments: identity.segments.load(Ordering::Relaxed),
        };
        let claimed = identity.bytes.load(Ordering::Relaxed);
        if !geometry.is_valid() || geometry.bytes() != bytes || claimed != bytes as u64 {
            return Err(ArenaError::Geometry);
        }
        // SAFETY: promises 1 and 2, with the geometry checked against `bytes`.
        Ok(unsafe { Arena::over(base, geometry) })
    }

    /// # Safety
    /// `base` is aligned to a page and maps `geometry.bytes()` bytes for as long as the value is used.
    unsafe fn over(base: NonNull<u8>, geometry: Geometry) -> Arena {
        // SAFETY: the offsets lie inside `geometry.bytes()`, and are multiples of the types' alignments.
        unsafe {
            Arena {
                header: base.cast(),
                slots: base.add(geometry.slots_offset()).cast(),
                links: base.add(geometry.links_offset()).cast(),
                pool: base.add(geometry.pool_offset()).cast(),
                geometry,
            }
        }
    }

    /// An arena over parts that were allocated apart, for the model test: loom's atomics have another layout.
    ///
    /// # Safety
    /// 1. The parts are as large as the geometry says: slots, then `slots + segments` links, then the pool's words.
    /// 2. They outlive the value.
    #[cfg(loom)]
    pub unsafe fn from_parts(
        header: NonNull<Header>,
        slots: NonNull<Slot>,
        links: NonNull<AtomicU32>,
        pool: NonNull<AtomicU64>,
        geometry: Geometry,
    ) -> Arena {
        Arena { header, slots, links, pool, geometry }
    }

    /// The validated geometry.
    #[inline(always)]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The header.
    #[inline(always)]
    pub fn header(&self) -> &Header {
        // SAFETY: the constructors' promise: mapped for as long as self, all atomics.
        unsafe { self.header.as_ref() }
    }

    /// Slot `index`, or none past the geometry.
    #[inline]
    pub fn slot(&self, index: u32) -> Option<&Slot> {
        // SAFETY: index < slots, and the constructors promise that many slots.
        (index < self.geometry.slots).then(|| unsafe { self.slots.add(index as usize).as_ref() })
    }

    /// The link of segment `index`: its successor in a ring, or in the free list.
    #[inline]
    pub fn segment_link(&self, index: u32) -> Option<&AtomicU32> {
        let i = self.geometry.slots as usize + index as usize;
        // SAFETY: index < segments, and there are slots + segments links.
        (index < self.geometry.segments).then(|| unsafe { self.links.add(i).as_ref() })
    }

    /// The words of segment `index`.
    #[inline]
    pub fn segment(&self, index: u32) -> Option<&[AtomicU64]> {
        (index < self.geometry.segments).then(|| {
            // SAFETY: index < segments, and the pool has SEGMENT_WORDS words for each.
            unsafe {
                core::slice::from_raw_parts(self.pool.add(index as usize * SEGMENT_WORDS).as_ptr(), SEGMENT_WORDS)
            }
        })
    }

    /// The free list of slots.
    pub fn free_slots(&self) -> FreeList<'_> {
        // SAFETY: the first `slots` links are the slots'.
        let links = unsafe { core::slice::from_raw_parts(self.links.as_ptr(), self.geometry.slots as usize) };
        FreeList { top: &self.header().free_slots.0, links }
    }

    /// The free list of segments.
    pub fn free_segments(&self) -> FreeList<'_> {
        // SAFETY: `segments` links follow the slots'.
        let links = unsafe {
            core::slice::from_raw_parts(
                self.links.add(self.geometry.slots as usize).as_ptr(),
                self.geometry.segments as usize,
            )
        };
        FreeList { top: &self.header().free_segments.0, links }
    }
}

/// A lock-free stack of indices. The aggregator pushes, the target's threads pop.
///
/// The tag in the top word changes with every push and pop, so a pop that was interrupted for long cannot mistake a
/// top that came back for one that never left.
pub struct FreeList<'a> {
    top: &'a AtomicU64,
    links: &'a [AtomicU32],
}

const INDEX_MASK: u64 = 0xffff_ffff;

impl FreeList<'_> {
    /// Takes the index that was pushed last. None when the list is empty, or not to be believed.
    pub fn pop(&self) -> Option<u32> {
        let mut top = self.top.load(Ordering::Acquire);
        loop {
            let index = ((top & INDEX_MASK) as u32).checked_sub(1)?;
            let next = self.links.get(index as usize)?.load(Ordering::Relaxed);
            let new = (top & !INDEX_MASK).wrapping_add(1 << 32) | u64::from(next);
            // Acquire pairs with push's Release: whoever takes an index sees what its giver wrote.
            match self.top.compare_exchange_weak(top, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(index),
                Err(now) => top = now,
            }
        }
    }

    /// Gives an index back. An index outside of the list is ignored.
    pub fn push(&self, index: u32) {
        let Some(link) = self.links.get(index as usize) else { return };
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            let next = (top & INDEX_MASK) as u32;
            link.store(next, Ordering::Relaxed);
            let new = (top & !INDEX_MASK).wrapping_add(1 << 32) | (u64::from(index) + 1);
            match self.top.compare_exchange_weak(top, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// Forgets all entries. Only for whoever owns both ends, before a session.
    pub fn clear(&self) {
        let top = self.top.load(Ordering::Relaxed);
        self.top.store((top & !INDEX_MASK).wrapping_add(1 << 32), Ordering::Release);
    }

    /// Whether nothing is left, at this moment.
    pub fn is_empty(&self) -> bool {
        self.top.load(Ordering::Relaxed) & INDEX_MASK == 0
    }
}

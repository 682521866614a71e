//! The arena: one memory file per target, mapped by both sides.
//!
//! ```text
//! offset 0        +---------------------------------------------------------------+
//!                 | Header (one page): identity, session, progress, losses        |
//! mail_offset     +---------------------------------------------------------------+
//!                 | text of answers, 64 KiB                                       |
//! slots_offset    +---------------------------------------------------------------+
//!                 | Slot 0 | Slot 1 | ...            256 bytes each, one a thread |
//! links_offset    +---------------------------------------------------------------+
//!                 | u32 per slot: free list; then u32 per segment: free list or,  |
//!                 | while a ring holds the segment, its successor in that ring    |
//! pool_offset     +---------------------------------------------------------------+
//!                 | Segment 0 | Segment 1 | ...      8 KiB each, of any ring      |
//!                 +---------------------------------------------------------------+
//! ```
//!
//! A ring is a chain of segments taken from a shared pool, not a private area. Reasons:
//!
//! - A thread with few events holds a single segment. A thread in a burst takes as many as needed.
//! - The sum never exceeds the pool (`--max-target-memory`).
//! - After the start, the target needs neither the descriptor nor another `mmap`.
//! - The pool is a stack, so the used segments are the cache-warm segments.
//!
//! The file is sized once and sealed against shrinking and growing. All state is atomic: the other
//! side may write any word at any time, and a hostile target may write any value.

mod free_list;
mod layout;

pub use free_list::FreeList;
pub use layout::*;

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use core::ptr::NonNull;

/// First eight bytes of an arena.
pub const MAGIC: u64 = u64::from_le_bytes(*b"HEAPLARN");
/// Version of the arena layout, of `ring` and of `event`. Both sides must have the same version.
pub const VERSION: u32 = 9;
/// Page size of the layout: parts of the arena are aligned to pages.
pub const PAGE_BYTES: usize = 4096;
/// Size of a segment, in bytes. A record never spans two segments.
#[cfg(not(loom))]
pub const SEGMENT_BYTES: usize = 8192;
/// Size of a segment, in bytes. Small in the model test, so that loom can explore all states.
#[cfg(loom)]
pub const SEGMENT_BYTES: usize = 64;
/// Size of a segment, in words.
pub const SEGMENT_WORDS: usize = SEGMENT_BYTES / 8;
/// Size of a piece of an answer's text, in bytes ([`crate::query`]).
pub const MAIL_BYTES: usize = 64 << 10;
/// Largest number of threads traced at the same time.
pub const MAX_SLOTS: u32 = 4096;
/// Smallest pool, in segments. With fewer, two busy threads could wait for each other's last
/// segment.
pub const MIN_SEGMENTS: u32 = if cfg!(loom) { 2 } else { 64 };
/// Largest pool, in segments: 16 GiB.
pub const MAX_SEGMENTS: u32 = 1 << 21;
/// Name of the memory file, as shown in `/proc/PID/fd` and `/proc/PID/maps`.
pub const MEMFD_NAME: &str = "heapline-arena";
/// Environment variable that hands the arena to a starting collector: `FD:DEV:INO`, decimal.
pub const ENV_ARENA: &str = "HEAPLINE_ARENA";
/// Environment variable that switches a collector off entirely when set to `1`.
pub const ENV_DISABLE: &str = "HEAPLINE_DISABLE";

/// Name of the ELF note in a program with a built-in collector, with the final zero. The content of
/// the note is [`VERSION`].
pub const NOTE_NAME: [u8; 9] = *b"Heapline\0";
/// Kind of the ELF note named [`NOTE_NAME`].
pub const NOTE_KIND: u32 = 1;
/// Kind of the ELF note, of the same name, in a program that calls the collector (`heapline.h`).
/// The content is the distance from the content to the word for the collector's functions, 64 bits.
pub const CALLS_NOTE_KIND: u32 = 2;

/// Numbers of slots and segments of an arena. All sizes and offsets follow from these two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Number of slots, 1 to [`MAX_SLOTS`].
    pub slots: u32,
    /// Number of segments, [`MIN_SEGMENTS`] to [`MAX_SEGMENTS`].
    pub segments: u32,
}

impl Geometry {
    /// Returns the geometry whose pool takes `max_bytes` of ring memory, within the allowed range.
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

    /// Whether both numbers are in range.
    pub const fn is_valid(self) -> bool {
        self.slots >= 1 && self.slots <= MAX_SLOTS && self.segments >= MIN_SEGMENTS && self.segments <= MAX_SEGMENTS
    }

    /// Offset of the text of answers.
    pub const fn mail_offset(self) -> usize {
        PAGE_BYTES
    }

    /// Offset of the first slot.
    pub const fn slots_offset(self) -> usize {
        self.mail_offset() + MAIL_BYTES
    }

    /// Offset of the links of slots and segments.
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

/// Why a piece of memory is no usable arena for this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArenaError {
    /// The memory is too small for a header.
    TooSmall {
        /// Bytes found.
        bytes: usize,
    },
    /// The magic is wrong.
    NotAnArena,
    /// Another version wrote the arena.
    Version {
        /// The version in the header.
        found: u32,
        /// [`VERSION`].
        wanted: u32,
    },
    /// The numbers contradict each other or the size.
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

/// A mapped arena. The geometry is validated once and kept in this value; the header's numbers are
/// not read again.
#[derive(Clone, Copy)]
pub struct Arena {
    header: NonNull<Header>,
    #[cfg(not(loom))]
    mail: NonNull<AtomicU64>,
    slots: NonNull<Slot>,
    links: NonNull<AtomicU32>,
    pool: NonNull<AtomicU64>,
    geometry: Geometry,
}

// SAFETY: all memory behind the pointers is atomic, and the constructors' callers guarantee that
// the mapping outlives the value.
unsafe impl Send for Arena {}
// SAFETY: all memory behind the pointers is atomic, so threads may share the value.
unsafe impl Sync for Arena {}

impl Arena {
    /// Lays an arena over zeroed memory and publishes the identity.
    ///
    /// # Safety
    /// 1. `base` is aligned to a page and valid for reads and writes of `geometry.bytes()` zero
    ///    bytes.
    /// 2. The memory stays mapped for as long as the value or a copy is used.
    /// 3. Nobody else uses the memory before this function returns.
    ///
    /// # Panics
    /// When the geometry is not valid.
    pub unsafe fn create(base: NonNull<u8>, geometry: Geometry) -> Arena {
        assert!(geometry.is_valid(), "geometry out of range");
        // SAFETY: the caller guarantees obligations 1 and 2, which are those of `over`.
        let arena = unsafe { Arena::over(base, geometry) };
        let identity = &arena.header().identity;
        identity.version.store(VERSION, Ordering::Relaxed);
        identity.slots.store(geometry.slots, Ordering::Relaxed);
        identity.segments.store(geometry.segments, Ordering::Relaxed);
        identity.bytes.store(geometry.bytes() as u64, Ordering::Relaxed);
        identity.magic.store(MAGIC, Ordering::Release);
        arena
    }

    /// Opens an arena made by another process, after validation of the header.
    ///
    /// # Safety
    /// 1. `base` is aligned to a page and valid for reads and writes of `bytes` bytes.
    /// 2. The memory stays mapped and does not shrink (seals) for as long as the value or a copy is
    ///    used.
    pub unsafe fn open(base: NonNull<u8>, bytes: usize) -> Result<Arena, ArenaError> {
        if bytes < PAGE_BYTES {
            return Err(ArenaError::TooSmall { bytes });
        }
        // SAFETY: obligation 1 covers a page, and a header is a page of atomics, for which every
        // bit pattern is valid.
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
        // SAFETY: the caller guarantees obligations 1 and 2, and the geometry agrees with `bytes`.
        Ok(unsafe { Arena::over(base, geometry) })
    }

    /// Computes the pointers to the parts of an arena.
    ///
    /// # Safety
    /// `base` is aligned to a page and maps `geometry.bytes()` bytes for as long as the value is
    /// used.
    unsafe fn over(base: NonNull<u8>, geometry: Geometry) -> Arena {
        // SAFETY: the offsets lie inside `geometry.bytes()`, and are multiples of the alignments of
        // the types.
        unsafe {
            Arena {
                header: base.cast(),
                #[cfg(not(loom))]
                mail: base.add(geometry.mail_offset()).cast(),
                slots: base.add(geometry.slots_offset()).cast(),
                links: base.add(geometry.links_offset()).cast(),
                pool: base.add(geometry.pool_offset()).cast(),
                geometry,
            }
        }
    }

    /// Makes an arena of separately allocated parts, for the model test: loom's atomics have
    /// another layout.
    ///
    /// # Safety
    /// 1. The parts have the sizes given by the geometry: slots, then `slots + segments` links,
    ///    then the words of the pool.
    /// 2. The parts outlive the value.
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

    /// The header of the arena.
    #[inline(always)]
    pub fn header(&self) -> &Header {
        // SAFETY: the constructors guarantee that the header is mapped for as long as `self`; it is
        // all atomics.
        unsafe { self.header.as_ref() }
    }

    /// The text of answers, one piece at a time.
    #[cfg(not(loom))]
    pub fn mail(&self) -> &[AtomicU64] {
        // SAFETY: the constructors guarantee MAIL_BYTES mapped bytes at `mail`.
        unsafe { core::slice::from_raw_parts(self.mail.as_ptr(), MAIL_BYTES / 8) }
    }

    /// Slot `index`. None when the index is beyond the geometry.
    #[inline]
    pub fn slot(&self, index: u32) -> Option<&Slot> {
        // SAFETY: `index < slots`, and the constructors guarantee `slots` slots.
        (index < self.geometry.slots).then(|| unsafe { self.slots.add(index as usize).as_ref() })
    }

    /// Link of segment `index`: the next segment in a ring, or in the free list.
    #[inline]
    pub fn segment_link(&self, index: u32) -> Option<&AtomicU32> {
        let i = self.geometry.slots as usize + index as usize;
        // SAFETY: `index < segments`, and there are `slots + segments` links.
        (index < self.geometry.segments).then(|| unsafe { self.links.add(i).as_ref() })
    }

    /// Words of segment `index`.
    #[inline]
    pub fn segment(&self, index: u32) -> Option<&[AtomicU64]> {
        (index < self.geometry.segments).then(|| {
            // SAFETY: `index < segments`, and the pool has SEGMENT_WORDS words for each segment.
            unsafe {
                core::slice::from_raw_parts(self.pool.add(index as usize * SEGMENT_WORDS).as_ptr(), SEGMENT_WORDS)
            }
        })
    }

    /// The free list of slots.
    pub fn free_slots(&self) -> FreeList<'_> {
        // SAFETY: the first `slots` links belong to the slots.
        let links = unsafe { core::slice::from_raw_parts(self.links.as_ptr(), self.geometry.slots as usize) };
        FreeList { top: &self.header().free_slots.0, links }
    }

    /// The free list of segments.
    pub fn free_segments(&self) -> FreeList<'_> {
        // SAFETY: `segments` links follow the links of the slots.
        let links = unsafe {
            core::slice::from_raw_parts(
                self.links.add(self.geometry.slots as usize).as_ptr(),
                self.geometry.segments as usize,
            )
        };
        FreeList { top: &self.header().free_segments.0, links }
    }
}

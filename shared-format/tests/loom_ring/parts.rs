//! An arena made of loom's atomics. Their layout differs from the file, so each part lies
//! separately on the heap.

use heapline_shared_format::arena::{
    Arena, Calls, Geometry, Header, Identity, Line, Mail, Progress, SEGMENT_WORDS, Session, Slot, Target, Tree,
};
use loom::sync::atomic::{AtomicU32, AtomicU64};
use std::ptr::NonNull;

/// The memory of an arena. It must outlive every copy of [`Parts::arena`]: each model keeps its
/// `Parts` until the end.
pub struct Parts {
    header: Box<Header>,
    slots: Vec<Slot>,
    links: Vec<AtomicU32>,
    pool: Vec<AtomicU64>,
    geometry: Geometry,
}

impl Parts {
    pub fn new(slots: u32, segments: u32) -> Parts {
        Parts {
            header: Box::new(header()),
            slots: (0..slots).map(|_| slot()).collect(),
            links: (0..slots + segments).map(|_| u32_zero()).collect(),
            pool: (0..segments as usize * SEGMENT_WORDS).map(|_| u64_zero()).collect(),
            geometry: Geometry { slots, segments },
        }
    }

    /// Returns the arena, with all segments in the free list.
    pub fn arena(&self) -> Arena {
        // SAFETY: the parts have the sizes of the geometry, and `self` outlives the threads of the
        // models.
        let arena = unsafe {
            Arena::from_parts(
                NonNull::from(&*self.header),
                NonNull::from(&self.slots[0]),
                NonNull::from(&self.links[0]),
                NonNull::from(&self.pool[0]),
                self.geometry,
            )
        };
        (0..self.geometry.segments).rev().for_each(|i| arena.free_segments().push(i));
        arena
    }
}

fn u32_zero() -> AtomicU32 {
    AtomicU32::new(0)
}

fn u64_zero() -> AtomicU64 {
    AtomicU64::new(0)
}

fn calls() -> Calls {
    Calls { allocs: u64_zero(), bytes: u64_zero(), frees: u64_zero() }
}

fn slot() -> Slot {
    Slot {
        head: u64_zero(),
        in_flight: u32_zero(),
        tid: u32_zero(),
        image: u32_zero(),
        session: u32_zero(),
        first_segment: u32_zero(),
        side: u32_zero(),
        calls: [calls(), calls()],
        state: Line(u64_zero()),
    }
}

fn header() -> Header {
    Header {
        identity: Identity {
            magic: u64_zero(),
            version: u32_zero(),
            slots: u32_zero(),
            segments: u32_zero(),
            reserved: u32_zero(),
            bytes: u64_zero(),
        },
        session: Session {
            epoch: u32_zero(),
            state: u32_zero(),
            number: u32_zero(),
            clock: u32_zero(),
            nframe: u32_zero(),
            owner: u32_zero(),
            owner_pid: u32_zero(),
            tick_owner: u32_zero(),
            tick: u64_zero(),
            sample: u64_zero(),
            seed: u64_zero(),
        },
        progress: Progress {
            given_back: u32_zero(),
            waiters: u32_zero(),
            waits: u64_zero(),
            wake: u32_zero(),
            sleeping: u32_zero(),
        },
        target: Target {
            pid: u32_zero(),
            images: u32_zero(),
            exec_begun: u32_zero(),
            exec_failed: u32_zero(),
            flags: u32_zero(),
            end_cause: u32_zero(),
            slots_high: u32_zero(),
            stacks_forgotten: u32_zero(),
            own_bytes: u64_zero(),
            before_start: u64_zero(),
            verified: u64_zero(),
            verify_failed: u64_zero(),
            foreign_places: u32_zero(),
            unseen_starts: u32_zero(),
        },
        lost: Line(std::array::from_fn(|_| u64_zero())),
        free_slots: Line(u64_zero()),
        free_segments: Line(u64_zero()),
        mail: Mail {
            answered: u32_zero(),
            asking: u32_zero(),
            bytes: u64_zero(),
            numbers: std::array::from_fn(|_| u64_zero()),
        },
        tree: Tree {
            follows: u32_zero(),
            segments: u32_zero(),
            name: std::array::from_fn(|_| u64_zero()),
            token: std::array::from_fn(|_| u64_zero()),
            key: u64_zero(),
            forks: u32_zero(),
            untold: u32_zero(),
        },
    }
}

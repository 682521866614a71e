//! The arena's layout to the byte, and all headers that `Arena::open` must refuse.
#![cfg(not(loom))]

mod common;

use common::{Memory, fresh_arena};
use heapline_shared_format::arena::{
    Arena, ArenaError, Geometry, Header, Identity, Loss, MAGIC, MAIL_BYTES, MAX_SEGMENTS, MAX_SLOTS, MIN_SEGMENTS,
    Mail, PAGE_BYTES, Progress, SEGMENT_BYTES, SEGMENT_WORDS, Session, Slot, Target, Tree, VERSION,
};
use std::mem::offset_of;
use std::sync::atomic::Ordering;

const SMALL: Geometry = Geometry { slots: 3, segments: MIN_SEGMENTS };

/// Checks the offsets. The other side relies on them, and may come from another compiler.
#[test]
fn golden_offsets() {
    assert_eq!((size_of::<Header>(), align_of::<Header>()), (4096, 4096));
    let identity = offset_of!(Header, identity);
    assert_eq!(identity + offset_of!(Identity, magic), 0);
    assert_eq!(identity + offset_of!(Identity, version), 8);
    assert_eq!(identity + offset_of!(Identity, slots), 12);
    assert_eq!(identity + offset_of!(Identity, segments), 16);
    assert_eq!(identity + offset_of!(Identity, reserved), 20);
    assert_eq!(identity + offset_of!(Identity, bytes), 24);
    let session = offset_of!(Header, session);
    assert_eq!(session + offset_of!(Session, epoch), 128);
    assert_eq!(session + offset_of!(Session, state), 132);
    assert_eq!(session + offset_of!(Session, number), 136);
    assert_eq!(session + offset_of!(Session, clock), 140);
    assert_eq!(session + offset_of!(Session, nframe), 144);
    assert_eq!(session + offset_of!(Session, owner), 148);
    assert_eq!(session + offset_of!(Session, owner_pid), 152);
    assert_eq!(session + offset_of!(Session, tick_owner), 156);
    assert_eq!(session + offset_of!(Session, tick), 160);
    let progress = offset_of!(Header, progress);
    assert_eq!(progress + offset_of!(Progress, given_back), 256);
    assert_eq!(progress + offset_of!(Progress, waiters), 260);
    assert_eq!(progress + offset_of!(Progress, waits), 264);
    assert_eq!(progress + offset_of!(Progress, wake), 272);
    assert_eq!(progress + offset_of!(Progress, sleeping), 276);
    let target = offset_of!(Header, target);
    assert_eq!(target + offset_of!(Target, pid), 384);
    assert_eq!(target + offset_of!(Target, images), 388);
    assert_eq!(target + offset_of!(Target, exec_begun), 392);
    assert_eq!(target + offset_of!(Target, exec_failed), 396);
    assert_eq!(target + offset_of!(Target, flags), 400);
    assert_eq!(target + offset_of!(Target, end_cause), 404);
    assert_eq!(target + offset_of!(Target, slots_high), 408);
    assert_eq!(target + offset_of!(Target, stacks_forgotten), 412);
    assert_eq!(target + offset_of!(Target, own_bytes), 416);
    assert_eq!(target + offset_of!(Target, before_start), 424);
    assert_eq!(offset_of!(Header, lost), 512);
    assert_eq!(offset_of!(Header, free_slots), 640);
    assert_eq!(offset_of!(Header, free_segments), 768);
    let mail = offset_of!(Header, mail);
    assert_eq!(mail + offset_of!(Mail, answered), 896);
    assert_eq!(mail + offset_of!(Mail, asking), 900);
    assert_eq!(mail + offset_of!(Mail, bytes), 904);
    assert_eq!(mail + offset_of!(Mail, numbers), 912);

    let tree = offset_of!(Header, tree);
    assert_eq!(tree + offset_of!(Tree, follows), 1024);
    assert_eq!(tree + offset_of!(Tree, segments), 1028);
    assert_eq!(tree + offset_of!(Tree, name), 1032);
    assert_eq!(tree + offset_of!(Tree, token), 1048);
    assert_eq!(tree + offset_of!(Tree, key), 1064);
    assert_eq!(tree + offset_of!(Tree, forks), 1072);
    assert_eq!(tree + offset_of!(Tree, untold), 1076);

    assert_eq!((size_of::<Slot>(), align_of::<Slot>()), (256, 128));
    assert_eq!(offset_of!(Slot, head), 0);
    assert_eq!(offset_of!(Slot, in_flight), 8);
    assert_eq!(offset_of!(Slot, tid), 12);
    assert_eq!(offset_of!(Slot, image), 16);
    assert_eq!(offset_of!(Slot, session), 20);
    assert_eq!(offset_of!(Slot, first_segment), 24);
    assert_eq!(offset_of!(Slot, side), 28);
    assert_eq!(offset_of!(Slot, state), 128);
}

#[test]
fn golden_identity() {
    let mut memory = Memory::zeroed(SMALL.bytes());
    // SAFETY: `memory` is page-aligned, zeroed, of the geometry's size, and not used by anybody
    // else.
    unsafe { Arena::create(memory.base(), SMALL) };
    let bytes = memory.bytes();
    assert_eq!(&bytes[..8], b"HEAPLARN");
    assert_eq!(bytes[8..12], 9_u32.to_le_bytes(), "version");
    assert_eq!(bytes[12..16], 3_u32.to_le_bytes(), "slots");
    assert_eq!(bytes[16..20], 64_u32.to_le_bytes(), "segments");
    assert_eq!(bytes[24..32], (73728_u64 + 64 * 8192).to_le_bytes(), "bytes");
    assert_eq!(bytes[32..], vec![0; bytes.len() - 32], "nothing else is written");
}

#[test]
fn the_parts_follow_each_other_without_overlap() {
    for geometry in [
        SMALL,
        Geometry { slots: 1, segments: MIN_SEGMENTS },
        Geometry { slots: MAX_SLOTS, segments: MAX_SEGMENTS },
        Geometry::for_memory(64 << 20),
    ] {
        assert_eq!(geometry.mail_offset(), PAGE_BYTES);
        assert_eq!(geometry.slots_offset(), PAGE_BYTES + MAIL_BYTES);
        assert_eq!(geometry.links_offset(), geometry.slots_offset() + geometry.slots as usize * 256);
        let links_end = geometry.links_offset() + (geometry.slots + geometry.segments) as usize * 4;
        assert!((links_end..links_end + SEGMENT_BYTES).contains(&geometry.pool_offset()));
        assert_eq!(geometry.pool_offset() % SEGMENT_BYTES, 0);
        assert_eq!(geometry.bytes(), geometry.pool_offset() + geometry.segments as usize * SEGMENT_BYTES);
    }
}

#[test]
fn memory_becomes_segments_within_the_limits() {
    assert_eq!(Geometry::for_memory(0), Geometry { slots: MAX_SLOTS, segments: MIN_SEGMENTS });
    assert_eq!(Geometry::for_memory(64 << 20).segments, 8192);
    assert_eq!(Geometry::for_memory((64 << 20) + 8191).segments, 8192);
    assert_eq!(Geometry::for_memory(u64::MAX).segments, MAX_SEGMENTS);
    assert!(!Geometry { slots: 0, segments: MIN_SEGMENTS }.is_valid());
    assert!(!Geometry { slots: MAX_SLOTS + 1, segments: MIN_SEGMENTS }.is_valid());
    assert!(!Geometry { slots: 1, segments: MIN_SEGMENTS - 1 }.is_valid());
    assert!(!Geometry { slots: 1, segments: MAX_SEGMENTS + 1 }.is_valid());
}

#[test]
fn indices_past_the_geometry_give_nothing() {
    let (_memory, arena) = fresh_arena(SMALL);
    assert!(arena.slot(2).is_some() && arena.slot(3).is_none());
    assert!(arena.segment_link(63).is_some() && arena.segment_link(64).is_none());
    assert_eq!(arena.segment(63).map(<[_]>::len), Some(SEGMENT_WORDS));
    assert!(arena.segment(64).is_none() && arena.segment(u32::MAX).is_none());
    assert_eq!(arena.mail().len() * 8, MAIL_BYTES);
    let slot = arena.slot(0).map(std::ptr::from_ref).expect("the first one");
    assert_eq!(arena.mail().as_ptr_range().end as usize, slot as usize, "the text ends where the slots begin");
    assert_eq!(
        arena.segment(63).expect("the last one").as_ptr_range().end as usize,
        arena.header() as *const Header as usize + SMALL.bytes(),
        "the last segment ends where the file ends"
    );
}

/// Opens an arena of `SMALL` with a claimed size of `bytes`, after `spoil` changed the identity.
fn open_spoilt(bytes: usize, spoil: impl FnOnce(&Identity)) -> Result<Geometry, ArenaError> {
    let (memory, arena) = fresh_arena(SMALL);
    spoil(&arena.header().identity);
    // SAFETY: the memory is page-aligned and stays allocated. No test claims more bytes than exist,
    // or passes the geometry check with such a claim.
    unsafe { Arena::open(memory.base(), bytes) }.map(|arena| arena.geometry())
}

#[test]
fn a_good_header_opens_with_the_same_geometry() {
    assert_eq!(open_spoilt(SMALL.bytes(), |_| {}), Ok(SMALL));
}

#[test]
fn every_wrong_header_is_refused() {
    let bytes = SMALL.bytes();
    let set = Ordering::Relaxed;
    assert_eq!(open_spoilt(PAGE_BYTES - 1, |_| {}), Err(ArenaError::TooSmall { bytes: PAGE_BYTES - 1 }));
    assert_eq!(open_spoilt(0, |_| {}), Err(ArenaError::TooSmall { bytes: 0 }));
    assert_eq!(open_spoilt(bytes, |i| i.magic.store(0, set)), Err(ArenaError::NotAnArena));
    assert_eq!(open_spoilt(bytes, |i| i.magic.store(MAGIC + 1, set)), Err(ArenaError::NotAnArena));
    for found in [0, VERSION + 1, u32::MAX] {
        assert_eq!(
            open_spoilt(bytes, |i| i.version.store(found, set)),
            Err(ArenaError::Version { found, wanted: VERSION })
        );
    }
    for slots in [0, 1000, MAX_SLOTS + 1, u32::MAX] {
        assert_eq!(open_spoilt(bytes, |i| i.slots.store(slots, set)), Err(ArenaError::Geometry), "{slots} slots");
    }
    for segments in [0, MIN_SEGMENTS - 1, MIN_SEGMENTS + 1, MAX_SEGMENTS + 1, u32::MAX] {
        assert_eq!(
            open_spoilt(bytes, |i| i.segments.store(segments, set)),
            Err(ArenaError::Geometry),
            "{segments} segments"
        );
    }
    assert_eq!(open_spoilt(bytes - 8, |_| {}), Err(ArenaError::Geometry), "a file cut short");
    assert_eq!(open_spoilt(PAGE_BYTES, |_| {}), Err(ArenaError::Geometry), "a header and nothing else");
    assert_eq!(
        open_spoilt(bytes, |i| i.bytes.store(bytes as u64 + 1, set)),
        Err(ArenaError::Geometry),
        "a size that the header itself contradicts"
    );
}

#[test]
fn errors_say_what_to_do() {
    let version = ArenaError::Version { found: 10, wanted: VERSION }.to_string();
    assert!(version.contains("version 10") && version.contains("version 9"), "{version}");
    assert!(version.contains("use the aggregator that belongs to the collector"), "{version}");
    assert_eq!(ArenaError::TooSmall { bytes: 12 }.to_string(), "the arena has only 12 bytes");
    assert!(!ArenaError::NotAnArena.to_string().contains('\n') && !ArenaError::Geometry.to_string().contains('\n'));
}

#[test]
fn losses_are_numbered_as_they_are_listed() {
    let names = Loss::ALL.map(|loss| (loss as usize, loss.name()));
    assert_eq!(names, [(0, "reentrant"), (1, "slots"), (2, "memory"), (3, "ended")]);
}

#[test]
fn a_free_list_is_a_stack_that_survives_nonsense() {
    let (_memory, arena) = fresh_arena(SMALL);
    let list = arena.free_slots();
    assert_eq!([list.pop(), list.pop(), list.pop(), list.pop()], [Some(0), Some(1), Some(2), None]);
    assert!(list.is_empty());
    list.push(1);
    list.push(3);
    list.push(u32::MAX);
    assert_eq!([list.pop(), list.pop()], [Some(1), None], "an index outside of the list is ignored");

    let top = &arena.header().free_slots.0;
    top.store(4, Ordering::Relaxed);
    assert_eq!(list.pop(), None, "a top outside of the list is not believed");
    list.push(0);
    list.clear();
    assert_eq!(list.pop(), None);
    assert_eq!(arena.free_segments().pop(), Some(0), "the other list is untouched");
}

#[test]
fn a_free_list_changes_its_tag_with_every_step() {
    let (_memory, arena) = fresh_arena(SMALL);
    let top = &arena.header().free_slots.0;
    let before = top.load(Ordering::Relaxed);
    let index = arena.free_slots().pop().expect("three are free");
    arena.free_slots().push(index);
    let after = top.load(Ordering::Relaxed);
    assert_eq!(before & 0xffff_ffff, after & 0xffff_ffff, "the same top ...");
    assert_eq!((after >> 32) - (before >> 32), 2, "... told apart");
    top.store(0xffff_ffff << 32 | 1, Ordering::Relaxed);
    arena.free_slots().pop();
    assert_eq!(top.load(Ordering::Relaxed) >> 32, 0, "the tag wraps");
}

#[test]
fn a_list_that_was_filled_gives_the_lowest_first() {
    let memory = Memory::zeroed(SMALL.bytes());
    // SAFETY: `memory` is page-aligned, zeroed, of the geometry's size, and not used by anybody
    // else.
    let arena = unsafe { Arena::create(memory.base(), SMALL) };
    let free = arena.free_segments();
    for count in [0, 1, 64, 1000] {
        free.fill(count);
        let given: Vec<u32> = std::iter::from_fn(|| free.pop()).collect();
        assert_eq!(given, (0..count.min(64)).collect::<Vec<_>>());
        assert!(free.is_empty());
    }
}

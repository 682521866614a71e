//! Parsers of untrusted bytes, each as a function that takes bytes and returns nothing.
//!
//! A function returns after the bytes were read or refused. A function panics if the parser breaks
//! a promise. Arbitrary bytes are allowed.

mod files;
mod processes;
mod snapshots;
mod table;
mod texts;

pub use files::{elf_notes, elf_program, generated_code, symbols_cache, symbols_elf};
pub use processes::{injected_answers, injected_process};
pub use snapshots::{report, snapshot_payload, snapshot_reader};
pub use table::{code_description, table};
pub use texts::{control_reply, control_request, proc_files};

use heapline_shared_format::arena::{Arena, Geometry, MIN_SEGMENTS, PAGE_BYTES};
use heapline_shared_format::event::{self, Event};
use heapline_shared_format::mapping::{self, Mapping, Pages};
use heapline_shared_format::ring::{Consumer, Ledger};
use heapline_shared_format::tree::{Hello, MAX_HELLO_BYTES, Way};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// Decodes words as copied from a ring by an aggregator. Every record advances, and texts stay
/// within the promised length.
pub fn event_decode(bytes: &[u8]) {
    let words = to_words(bytes);
    decode_all(&words);
}

fn to_words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().expect("chunks of eight"))).collect()
}

fn decode_all(words: &[u64]) {
    let mut rest = words;
    while let Ok((event, n)) = event::decode(rest) {
        assert!((1..=rest.len()).contains(&n), "{event:?} takes {n} of {} words", rest.len());
        match event {
            Event::Module { build_id, path, start, end, .. } => {
                assert!(start <= end);
                assert!(build_id.bytes().count() <= event::MAX_BUILD_ID_BYTES);
                assert!(path.bytes().count() <= event::MAX_PATH_BYTES);
            }
            Event::Code { text, .. } => assert!(text.bytes().count() <= event::MAX_CODE_BYTES),
            Event::Mapping { mapping: Mapping::Remapped { old, new, .. }, .. } => {
                [old, new].into_iter().for_each(check)
            }
            Event::Mapping { mapping: Mapping::Map { pages, .. }, .. } => check(pages),
            Event::Stack { frames, .. } => assert!(frames.len() <= event::MAX_STACK_FRAMES),
            _ => {}
        }
        rest = &rest[n..];
    }
}

fn check(pages: Pages) {
    assert!(pages.start() <= pages.end() && pages.end() <= 1 << event::ADDRESS_BITS, "{pages:?}");
    assert!((pages.start() | pages.end()).is_multiple_of(mapping::PAGE_BYTES), "{pages:?}");
}

/// Opens a memory file of any size as an arena. An accepted arena has the claimed geometry and lies
/// within the file.
pub fn arena_open(bytes: &[u8]) {
    let Some((pages, content)) = bytes.split_first() else { return };
    let size = (1 + usize::from(*pages) * 16) * PAGE_BYTES;
    let layout = Layout::from_size_align(size, PAGE_BYTES).expect("a few pages");
    // SAFETY: the layout's size is at least a page, so not zero.
    let raw = unsafe { alloc_zeroed(layout) };
    let Some(base) = NonNull::new(raw) else { handle_alloc_error(layout) };
    let content = &content[..content.len().min(size)];
    // SAFETY: `base` is page-aligned and points to `size` bytes, used by this function alone and
    // freed at the end of this block. `content` is at most `size` bytes long.
    unsafe {
        base.as_ptr().copy_from_nonoverlapping(content.as_ptr(), content.len());
        if let Ok(arena) = Arena::open(base, size) {
            assert!(arena.geometry().is_valid() && arena.geometry().bytes() == size);
            assert!(arena.slot(arena.geometry().slots).is_none() && arena.segment(arena.geometry().segments).is_none());
            assert!(arena.segment(arena.geometry().segments - 1).is_some());
        }
        dealloc(base.as_ptr(), layout);
    }
}

const GEOMETRY: Geometry = Geometry { slots: 2, segments: MIN_SEGMENTS };

/// Drains an arena of arbitrary content. A drain reads the pool at most once, whatever the arena
/// contains.
///
/// 1. All words behind the arena's header page get the input's words from the third on, repeated.
/// 2. Every slot is drained.
/// 3. A word of the arena is overwritten: the input's first word selects the place, the second is
///    the new value.
/// 4. Every slot is drained again.
pub fn ring_drain(bytes: &[u8]) {
    let words = to_words(bytes);
    let [at, value, pattern @ ..] = words.as_slice() else { return };
    let arena = ScribbledArena::new(pattern);
    for _ in 0..2 {
        for slot in 0..GEOMETRY.slots {
            drain_slot(&arena.arena, slot);
        }
        any_of(arena.words(), *at).store(*value, Ordering::Relaxed);
    }
}

/// Drains the slots of an arena while another thread overwrites words of the arena from the same
/// input.
pub fn ring_drain_while_scribbled(bytes: &[u8]) {
    let pattern = to_words(bytes);
    let arena = ScribbledArena::new(&pattern);
    let pattern = &pattern;
    let scribbler = move |words: &[AtomicU64]| {
        for (at, value) in pattern.iter().zip(pattern.iter().cycle().skip(1)) {
            any_of(words, *at).store(*value, Ordering::Relaxed);
        }
    };
    let words = arena.words();
    std::thread::scope(|scope| {
        let scribbling = scope.spawn(move || scribbler(words));
        while !scribbling.is_finished() {
            (0..GEOMETRY.slots).for_each(|slot| drain_slot(&arena.arena, slot));
        }
    });
}

/// Parses the bytes as a child's hello and as the start data of a program. Writing a parsed value
/// gives the input, or for start data an equal value.
pub fn tree_hello(bytes: &[u8]) {
    if let Ok(hello) = Hello::parse(bytes) {
        assert!(bytes.len() <= MAX_HELLO_BYTES);
        assert_eq!([&hello.head()[..], hello.executable, hello.arguments].concat(), bytes);
    }
    if let Some(way) = Way::parse(bytes) {
        let mut text = [0; heapline_shared_format::tree::WAY_BYTES];
        let n = way.write(&mut text);
        assert_eq!(Way::parse(&text[..n]), Some(way));
    }
}

fn any_of(words: &[AtomicU64], choice: u64) -> &AtomicU64 {
    &words[usize::try_from(choice % words.len() as u64).expect("an index")]
}

fn drain_slot(arena: &Arena, slot: u32) {
    let slot = arena.slot(slot).expect("within the geometry");
    let mut ledger = Bounded { held: vec![false; GEOMETRY.segments as usize] };
    let Ok(mut consumer) = Consumer::open(slot, &mut ledger) else { return };
    let mut copied = Vec::new();
    let copy = |part: &[AtomicU64]| copied.extend(part.iter().map(|w| w.load(Ordering::Relaxed)));
    let drained = consumer.drain(arena, slot, &mut ledger, copy);
    assert!(copied.len() <= arena.geometry().bytes() / 8, "a drain reads the pool once at most");
    if let Ok(bytes) = drained {
        assert_eq!(bytes, copied.len() as u64 * 8);
        assert_eq!(bytes, consumer.position());
    }
    decode_all(&copied);
}

/// A ledger with the aggregator's rule: a segment belongs to one ring at a time.
struct Bounded {
    held: Vec<bool>,
}

impl Ledger for Bounded {
    fn enter(&mut self, segment: u32) -> bool {
        match self.held.get_mut(segment as usize) {
            Some(held) if !*held => {
                *held = true;
                true
            }
            _ => false,
        }
    }

    fn leave(&mut self, segment: u32) {
        assert!(std::mem::take(&mut self.held[segment as usize]), "only what was entered is left");
    }
}

/// An arena with a valid header page and arbitrary words everywhere else.
struct ScribbledArena {
    base: NonNull<u8>,
    arena: Arena,
}

impl ScribbledArena {
    fn layout() -> Layout {
        Layout::from_size_align(GEOMETRY.bytes(), PAGE_BYTES).expect("a small constant size")
    }

    fn new(pattern: &[u64]) -> ScribbledArena {
        // SAFETY: the size of the geometry is a constant greater than zero.
        let raw = unsafe { alloc_zeroed(Self::layout()) };
        let Some(base) = NonNull::new(raw) else { handle_alloc_error(Self::layout()) };
        // SAFETY: `base` points to page-aligned zeroed bytes of the geometry's size, kept until
        // drop.
        let arena = unsafe { Arena::create(base, GEOMETRY) };
        let scribbled = ScribbledArena { base, arena };
        for (at, &value) in scribbled.words().iter().zip(pattern.iter().cycle()) {
            at.store(value, Ordering::Relaxed);
        }
        scribbled
    }

    /// All words behind the header page.
    fn words(&self) -> &[AtomicU64] {
        let n = (GEOMETRY.bytes() - PAGE_BYTES) / 8;
        // SAFETY: the allocation has `n` words behind the first page, and all accesses to these
        // words are atomic.
        unsafe { std::slice::from_raw_parts(self.base.add(PAGE_BYTES).cast::<AtomicU64>().as_ptr(), n) }
    }
}

impl Drop for ScribbledArena {
    fn drop(&mut self) {
        // SAFETY: `new` allocated `base` with this layout, and nobody uses the arena any more.
        unsafe { dealloc(self.base.as_ptr(), Self::layout()) }
    }
}

//! Cost of a record between producer and consumer: an alloc and a free, written and drained.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use heapline_shared_format::arena::{Arena, Geometry, PAGE_BYTES};
use heapline_shared_format::event;
use heapline_shared_format::ring::{Consumer, Ledger, Producer};
use std::alloc::{Layout, alloc_zeroed};
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// Number of pairs written between two drains: about two thirds of the pool.
const PAIRS: usize = 8_192;

/// Makes an arena for the rest of the process.
fn arena() -> Arena {
    let geometry = Geometry::for_memory(512 << 10);
    let layout = Layout::from_size_align(geometry.bytes(), PAGE_BYTES).expect("a small size");
    // SAFETY: the size of the layout is not zero.
    let base = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("memory");
    // SAFETY: `base` has zeroed pages of the geometry's size, never freed.
    let arena = unsafe { Arena::create(base, geometry) };
    (0..geometry.segments).for_each(|i| arena.free_segments().push(i));
    arena
}

struct GiveBack(Arena);

impl Ledger for GiveBack {
    fn enter(&mut self, _: u32) -> bool {
        true
    }
    fn leave(&mut self, segment: u32) {
        self.0.free_segments().push(segment);
    }
}

fn write_pairs(arena: &Arena, producer: &mut Producer) {
    for i in 0..PAIRS as u64 {
        if producer.room() < 5 {
            let segment = arena.free_segments().pop().expect("a drained pool has room for all pairs");
            // SAFETY: the ring is open on this arena, and the segment was just taken from the pool.
            assert!(unsafe { producer.extend(arena, segment) });
        }
        // SAFETY: the segment has room for five words.
        unsafe {
            producer.write(event::alloc(black_box(i), i << 5, 64, 7));
            producer.write(event::free(black_box(i), i << 5));
        }
    }
}

fn ring(c: &mut Criterion) {
    let arena = arena();
    let segment = arena.free_segments().pop().expect("a fresh pool");
    // SAFETY: the arena is never freed, and no other producer uses the slot or the segment.
    let mut producer = unsafe { Producer::open(&arena, 0, segment) }.expect("indices of the arena");
    let slot = arena.slot(0).expect("slot 0");
    let mut ledger = GiveBack(arena);
    let mut consumer = Consumer::open(slot, &mut ledger).expect("an honest producer");
    let mut words: Vec<u64> = Vec::with_capacity(PAIRS * 6);
    let mut group = c.benchmark_group("ring");
    group.throughput(Throughput::Elements(2 * PAIRS as u64));
    group.bench_function("write and drain", |b| {
        b.iter(|| {
            write_pairs(&arena, &mut producer);
            words.clear();
            let copy = |part: &[AtomicU64]| words.extend(part.iter().map(|w| w.load(Ordering::Relaxed)));
            consumer.drain(&arena, slot, &mut ledger, copy).expect("an honest producer");
            black_box(&words);
        });
    });
    group.finish();
}

criterion_group!(benches, ring);
criterion_main!(benches);

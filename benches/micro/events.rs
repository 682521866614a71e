//! Cost of decoding. The aggregator decodes each record once.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use heapline_shared_format::event::{self, Event, decode};
use std::hint::black_box;

const PAIRS: u64 = 10_000;

fn events(c: &mut Criterion) {
    let pair = |i: u64| event::alloc(i, i << 5, 64, 7).into_iter().chain(event::free(i, i << 5));
    let words: Vec<u64> = (0..PAIRS).flat_map(pair).collect();
    let mut group = c.benchmark_group("events");
    group.throughput(Throughput::Elements(2 * PAIRS));
    group.bench_function("decode allocs and frees", |b| {
        b.iter(|| {
            let (mut rest, mut bytes) = (&words[..], 0);
            while let Ok((event, n)) = decode(black_box(rest)) {
                if let Event::Alloc { size, .. } = event {
                    bytes += size;
                }
                rest = &rest[n..];
            }
            assert_eq!(bytes, 64 * PAIRS);
        });
    });
    group.finish();
}

criterion_group!(benches, events);
criterion_main!(benches);

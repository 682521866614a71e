//! Cost of writing, reading and reporting a snapshot of a large program: 50,000 stacks, 200,000
//! groups of live blocks.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use heapline_shared_format::snapshot::{
    Domain, DomainTotals, Frame, LiveGroup, Meta, Node, Snapshot, Stack, StackTotals, Thread, read, write,
};
use heapline_tools::input::tree::Subject;
use heapline_tools::query::report::{Report, Request};
use heapline_tools::query::statistics::By;
use heapline_tools::symbols::Symbolizer;

const STACKS: u32 = 50_000;
const GROUPS_PER_STACK: u32 = 4;

fn meta() -> Meta {
    Meta {
        pid: 1,
        command: "synthetic".into(),
        executable: "/synthetic".into(),
        taken_at: "2026-01-01T00:00:00Z".into(),
        heapline: env!("CARGO_PKG_VERSION").into(),
        nframe: 64,
        ..Meta::default()
    }
}

/// Makes a snapshot with a tree of frames: each stack branches off an earlier stack.
fn synthetic() -> Snapshot {
    let mix = |n: u32| n.wrapping_mul(2_654_435_761);
    let parent = |n: u32| (n > 0).then(|| mix(n) % n);
    let group = |i: u32| {
        let stack = i / GROUPS_PER_STACK;
        let size = u64::from(mix(i) % 4096) / 8 * 8 + u64::from(i % GROUPS_PER_STACK);
        LiveGroup { domain: Domain::Native, stack, thread: 0, size, count: u64::from(mix(i) % 50) + 1 }
    };
    let mut live: Vec<LiveGroup> = (0..STACKS * GROUPS_PER_STACK).map(group).collect();
    live.sort_by_key(|g| (g.stack, g.thread, g.size));
    live.dedup_by_key(|g| (g.stack, g.thread, g.size));
    let (blocks, current) = live.iter().fold((0, 0), |(n, b), g| (n + g.count, b + g.count * g.size));
    let mut sums = vec![(0_u64, 0_u64); STACKS as usize];
    for g in &live {
        let sum = &mut sums[g.stack as usize];
        *sum = (sum.0 + g.count, sum.1 + g.count * g.size);
    }
    let totals = (0..STACKS).zip(sums).map(|(stack, (count, size))| StackTotals {
        domain: Domain::Native,
        stack,
        peak_size: size,
        peak_count: count,
        total_size: size,
        total_count: count,
    });
    let native = DomainTotals {
        domain: Domain::Native,
        current,
        peak: current,
        blocks,
        allocs: blocks,
        frees: 0,
        allocated_bytes: current,
    };
    Snapshot {
        meta: meta(),
        frames: (0..STACKS).map(|n| Frame { address: 0x55_0000_0000 + u64::from(mix(n)), module: None }).collect(),
        nodes: (0..STACKS).map(|n| Node { parent: parent(n), frame: n }).collect(),
        stacks: (0..STACKS).map(|n| Stack { leaf: Some(n), total_nframe: 64, truncated: false }).collect(),
        threads: vec![Thread { tid: 1, name: "main".into(), alive: true }],
        domains: vec![native],
        totals: totals.collect(),
        live,
        ..Snapshot::default()
    }
}

fn snapshots(c: &mut Criterion) {
    let snapshot = synthetic();
    let to_file = || write(&snapshot, Vec::new(), &mut |_| {}).expect("a valid snapshot");
    let file = to_file();
    let mut group = c.benchmark_group("snapshot");
    group.throughput(Throughput::Elements(snapshot.live.len() as u64));
    group.bench_function("write", |b| b.iter(to_file));
    group.bench_function("read", |b| b.iter(|| read(&file[..]).expect("just written")));
    group.finish();
}

/// Measures only grouping and sorting, because no address is in a module. The cost of symbols
/// depends on the files that hold them.
fn reports(c: &mut Criterion) {
    let subject = Subject::process(synthetic());
    let mut group = c.benchmark_group("report");
    group.throughput(Throughput::Elements(subject.head().live.len() as u64));
    for (name, by, cumulative) in
        [("lineno", By::Lineno, false), ("lineno, cumulative", By::Lineno, true), ("traceback", By::Traceback, false)]
    {
        let request = Request { by, cumulative, ..Request::default() };
        group.bench_function(name, |b| {
            b.iter(|| {
                Report::new(request.clone(), &subject, None, &mut Symbolizer::new(Vec::new(), None))
                    .expect("no threads")
                    .total
            });
        });
    }
    group.finish();
}

criterion_group!(benches, snapshots, reports);
criterion_main!(benches);

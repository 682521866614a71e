//! Cost of the aggregator's inner loop: records of rings, merged by stamp, into the live table and
//! the sums.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use heapline_aggregator::history::Recorder;
use heapline_aggregator::history::gauges::Gauges;
use heapline_aggregator::session::arena_map::ArenaMap;
use heapline_aggregator::table::births::Birth;
use heapline_aggregator::table::live::{Block, Live};
use heapline_aggregator::table::order::{Mark, Order};
use heapline_aggregator::table::{Ring, Table};
use heapline_shared_format::event;
use std::hint::black_box;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Number of words of a message from the drain.
const MESSAGE_WORDS: usize = 8192;

/// Random numbers by Marsaglia's xorshift: the same sequence at each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Addresses like an allocator's: 64 bytes apart, the last freed first.
struct Heap {
    free: Vec<u64>,
    next: u64,
}

impl Heap {
    fn alloc(&mut self) -> u64 {
        self.free.pop().unwrap_or_else(|| {
            self.next += 64;
            self.next
        })
    }
}

/// The work of `churn`: frees a random block of `live` blocks, allocates another. Each thread has a
/// ring, sent in messages.
struct Churn {
    table: Table,
    order: Order<Ring>,
    heap: Heap,
    live: Vec<u64>,
    numbers: Numbers,
    stamp: u64,
    threads: u32,
}

impl Churn {
    fn new(live: usize, threads: u32, stacks: u32, resolvers: usize) -> Churn {
        let mut churn = Churn {
            table: Table::new(64, resolvers),
            order: Order::default(),
            heap: Heap { free: Vec::new(), next: 0x7f00_0000_0000 },
            live: Vec::with_capacity(live),
            numbers: Numbers(1),
            stamp: 1,
            threads,
        };
        for thread in 0..threads {
            let ring = churn.table.ring(thread + 1, false);
            churn.order.open(thread, ring);
            let definitions = (0..stacks).flat_map(|id| {
                let head = event::stack_head(2, 0, id, 2, false, false);
                head.into_iter().chain([0x1000, 0x2000 + u64::from(id)])
            });
            churn.push(thread, definitions.collect());
        }
        let mut words = Vec::new();
        for _ in 0..live {
            let address = churn.heap.alloc();
            churn.stamp += 1;
            words.extend(event::alloc(churn.stamp, address, 48, 1));
            churn.live.push(address);
        }
        churn.push(0, words);
        churn.advance();
        churn
    }

    fn push(&mut self, thread: u32, words: Vec<u64>) {
        // Records must not be cut, so messages have any length here.
        self.order.push(thread, words, &mut self.table);
    }

    fn advance(&mut self) {
        let mark = Mark { time: self.stamp, ..Mark::default() };
        self.order.advance(&mark, &mut self.table);
    }

    /// Returns messages with `pairs` frees and allocations, over all threads in turn.
    fn messages(&mut self, pairs: usize, stacks: u32) -> Vec<(u32, Vec<u64>)> {
        let mut open: Vec<Vec<u64>> = vec![Vec::new(); self.threads as usize];
        let mut done = Vec::new();
        for i in 0..pairs {
            let thread = i % open.len();
            let k = usize::try_from(self.numbers.next() >> 20).unwrap_or(0) % self.live.len();
            let words = &mut open[thread];
            self.stamp += 2;
            words.extend(event::free(self.stamp - 1, self.live[k]));
            self.heap.free.push(self.live[k]);
            self.live[k] = self.heap.alloc();
            let stack = u32::try_from(self.numbers.next() >> 40).unwrap_or(0) % stacks;
            words.extend(event::alloc(self.stamp, self.live[k], 48, stack));
            if words.len() > MESSAGE_WORDS {
                done.push((u32::try_from(thread).unwrap_or(0), std::mem::take(words)));
            }
        }
        done.extend((0..).zip(open));
        done
    }
}

fn table(c: &mut Criterion) {
    const PAIRS: usize = 200_000;
    let mut group = c.benchmark_group("table");
    group.throughput(Throughput::Elements(2 * PAIRS as u64)).sample_size(20);
    for (live, threads, stacks, resolvers) in [
        (10_000, 1, 512, 0),
        (10_000, 2, 512, 0),
        (10_000, 8, 512, 0),
        (10_000, 32, 512, 0),
        (10_000, 128, 512, 0),
        (100_000, 1, 512, 0),
        (1_000_000, 1, 512, 0),
        (1_000_000, 1, 512, 1),
        (1_000_000, 1, 512, 2),
        (10_000_000, 1, 512, 0),
        (10_000_000, 1, 512, 1),
        (10_000_000, 1, 512, 2),
        (10_000, 1, 100_000, 0),
    ] {
        let mut churn = Churn::new(live, threads, stacks, resolvers);
        let parameters = format!("{live} live, {threads} rings, {stacks} stacks, {resolvers} resolvers");
        let name = BenchmarkId::new("free and alloc", parameters);
        group.bench_function(name, |b| {
            b.iter_custom(|times| {
                let mut spent = Duration::ZERO;
                for _ in 0..times {
                    let messages = churn.messages(PAIRS, stacks);
                    let begun = std::time::Instant::now();
                    for (thread, words) in messages {
                        churn.push(thread, words);
                    }
                    churn.advance();
                    spent += begun.elapsed();
                    churn.order.spent().for_each(drop);
                }
                spent
            });
        });
        assert_eq!(churn.table.heap().live().len(), live);
        assert_eq!(churn.table.contradictions().total(), 0);
    }
    group.finish();
}

/// Ends of steps of the history, and events between them.
fn history(c: &mut Criterion) {
    let mut group = c.benchmark_group("history");
    group.sample_size(10);
    for stacks in [1_000, 100_000] {
        let mut churn = Churn::new(200_000, 1, stacks, 0);
        let map = Arc::new(ArenaMap::create(1 << 20).expect("an arena"));
        let gauges = Gauges::new(map, Arc::new(OnceLock::new()));
        let mut recorder = Recorder::begin(Duration::ZERO, 16 << 20, gauges, &mut churn.table);
        let mut now = Duration::ZERO;
        // Each stack changes twice, on average.
        let pairs = stacks as usize;
        group.bench_function(BenchmarkId::new("end of a step", format!("{stacks} stacks")), |b| {
            b.iter_custom(|times| {
                let mut spent = Duration::ZERO;
                for _ in 0..times {
                    for (thread, words) in churn.messages(pairs, stacks) {
                        churn.push(thread, words);
                    }
                    churn.advance();
                    churn.order.spent().for_each(drop);
                    now += Duration::from_secs(1);
                    let begun = std::time::Instant::now();
                    recorder.end_step(now, &mut churn.table);
                    spent += begun.elapsed();
                }
                spent
            });
        });
        eprintln!("{stacks} stacks: {} bytes of history for {} s", recorder.bytes(), now.as_secs());
    }
    group.finish();
}

fn live(c: &mut Criterion) {
    const EVENTS: usize = 100_000;
    let mut group = c.benchmark_group("live");
    group.throughput(Throughput::Elements(2 * EVENTS as u64)).sample_size(20);
    for blocks in [1_000_000u64, 10_000_000, 50_000_000] {
        let mut live = Live::default();
        let block = |i: u64| Block {
            address: 0x7f00_0000_0000 + 48 * i,
            size: 40,
            stack: 1,
            thread: 1,
            birth: Birth::default(),
            in_program: false,
        };
        (0..blocks).for_each(|i| assert!(live.insert(block(i)).is_none()));
        eprintln!("{blocks} blocks: {:.1} bytes each", live.bytes() as f64 / blocks as f64);
        let mut numbers = Numbers(7);
        group.bench_function(BenchmarkId::new("remove and insert", blocks), |b| {
            b.iter(|| {
                for _ in 0..EVENTS / 32 {
                    let some: [u64; 32] = std::array::from_fn(|_| numbers.next() % blocks);
                    some.iter().for_each(|&i| live.prefetch(block(i).address));
                    for &i in &some {
                        if let Some(block) = black_box(live.remove(block(i).address)) {
                            live.insert(block);
                        }
                    }
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, table, history, live);
criterion_main!(benches);

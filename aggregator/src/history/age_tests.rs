//! Births and lifetimes beside a naive model, with a clock of its own.

use super::Recorder;
use super::gauges::Gauges;
use crate::session::arena_map::ArenaMap;
use crate::table::births::Births;
use crate::table::lifetimes::Lifetimes;
use crate::table::order::Sink;
use crate::table::{Ring, Table};
use heapline_shared_format::event::{Event, domain};
use heapline_shared_format::query;
use heapline_shared_format::snapshot::{Domain, LIFETIME_BOUNDS};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

const THREADS: usize = 3;

/// A live block of the model.
#[derive(Clone, Debug)]
struct Block {
    id: u64,
    stack: u32,
    /// Begin of the span of birth.
    begin: Duration,
    /// End of the last step before the birth.
    born: Duration,
}

/// All that the model knows of a domain.
#[derive(Clone, Debug, Default)]
struct Model {
    live: BTreeMap<u64, Block>,
    ended: BTreeMap<u32, Lifetimes>,
    /// The block allocated by the last event of each thread.
    last: [Option<u64>; THREADS],
}

struct Bench {
    table: Table,
    rings: Vec<Ring>,
    is_sampled: [bool; THREADS],
    recorder: Recorder,
    now: u64,
    models: [Model; 2],
    ids: u64,
}

fn recorder(now: u64, table: &mut Table) -> Recorder {
    let map = Arc::new(ArenaMap::create(1 << 20).expect("an arena"));
    Recorder::begin(Duration::from_millis(now), 16 << 20, Gauges::new(map, Arc::new(OnceLock::new())), table)
}

fn rings(table: &mut Table) -> Vec<Ring> {
    let ring = |tid| {
        let mut ring = table.ring(tid, false);
        for id in 0..8 {
            let domain = if id < 4 { domain::NATIVE } else { domain::PYTHON };
            let frames = [0x1000, 0x2000 + u64::from(id)];
            let stack = Event::Stack { id, keep: 0, total: 2, truncated: false, more: false, domain, frames: &frames };
            table.apply(&mut ring, stack).expect("a stack");
        }
        ring
    };
    (1..=THREADS as u32).map(ring).collect()
}

impl Bench {
    fn new(codes: usize, resolvers: usize) -> Bench {
        let mut table = Table::new(8, resolvers);
        table.set_births(Births::with_codes(codes));
        let rings = rings(&mut table);
        let recorder = recorder(5, &mut table);
        Bench { table, rings, is_sampled: [false; THREADS], recorder, now: 5, models: Default::default(), ids: 0 }
    }

    fn apply(&mut self, thread: usize, event: Event<'_>) {
        self.table.apply(&mut self.rings[thread], event).expect("no corruption in this test");
    }

    fn begin(&self) -> Duration {
        *self.table.births().begins().last().expect("a span")
    }

    /// Puts a new block into the model. The stack is that of the table.
    fn born(&mut self, thread: usize, is_python: bool, address: u64) {
        self.table.catch_up();
        let domain = if is_python { Domain::Python } else { Domain::Native };
        let (_, heap) = self.table.heaps().find(|&(of, _)| of == domain).expect("a heap");
        let stack = heap.block(address).expect("a block").stack;
        self.ids += 1;
        let (id, begin) = (self.ids, self.begin());
        let model = &mut self.models[usize::from(is_python)];
        model.live.insert(address, Block { id, stack, begin, born: begin });
        model.last[thread] = (!self.is_sampled[thread]).then_some(id);
    }

    /// Ends a block of the model.
    fn ended(&mut self, is_python: bool, address: u64, freed_by: Option<usize>) {
        let now = self.begin();
        let model = &mut self.models[usize::from(is_python)];
        let last = freed_by.and_then(|thread| model.last[thread].take());
        let Some(block) = model.live.remove(&address) else { return };
        let lifetimes = model.ended.entry(block.stack).or_default();
        lifetimes.temporary += u64::from(last == Some(block.id));
        if block.begin == now {
            lifetimes.within_step += 1;
        } else {
            let lived = u64::try_from((now - block.begin).as_millis()).expect("short");
            lifetimes.ended[LIFETIME_BOUNDS.iter().filter(|&&bound| lived >= bound).count()] += 1;
        }
    }

    fn turn(&mut self, turn: &Turn) {
        match *turn {
            Turn::Alloc { thread, address, stack } => {
                self.ended(stack >= 4, address, None);
                self.apply(thread, Event::Alloc { stamp: 0, address, size: 100, stack });
                self.born(thread, stack >= 4, address);
            }
            Turn::Free { thread, address, is_python } => {
                let domain = if is_python { domain::PYTHON } else { domain::NATIVE };
                self.apply(thread, Event::Free { stamp: 0, address, domain });
                self.ended(is_python, address, Some(thread));
            }
            Turn::Temporary { thread, address, stack } => {
                self.turn(&Turn::Alloc { thread, address, stack });
                self.turn(&Turn::Free { thread, address, is_python: stack >= 4 });
            }
            Turn::Realloc { thread, from, to, stack } => {
                let domain = if stack >= 4 { domain::PYTHON } else { domain::NATIVE };
                self.apply(thread, Event::Realloc { stamp: 0, address: from, domain });
                self.models[usize::from(stack >= 4)].last[thread] = None;
                self.apply(thread, Event::Reallocated { stamp: 0, address: to, size: 100, stack });
                self.ended(stack >= 4, from, None);
                self.ended(stack >= 4, to, None);
                self.born(thread, stack >= 4, to);
            }
            Turn::Reuse { thread, address, stack } => {
                if self.models[1].live.contains_key(&address) {
                    self.apply(thread, Event::Reuse { stamp: 0, address, stack });
                    self.models[1].live.remove(&address);
                    self.born(thread, true, address);
                }
            }
            Turn::Sample { thread, is_sampled } => {
                let arguments = [if is_sampled { 4096 } else { 0 }, 0];
                self.apply(thread, Event::Query { stamp: 0, number: 0, asked: query::INTERVAL, arguments });
                self.is_sampled[thread] = is_sampled;
            }
            Turn::Step(after) => {
                self.now += after;
                self.recorder.end_step(Duration::from_millis(self.now), &mut self.table);
                // Where spans were joined, the begin is that of the joined span.
                let begins = self.table.births().begins();
                for block in self.models.iter_mut().flat_map(|model| model.live.values_mut()) {
                    block.begin = begins[begins.partition_point(|&begin| begin <= block.begin) - 1];
                }
            }
            Turn::Clear => {
                self.recorder.before_clear(Duration::from_millis(self.now), &mut self.table);
                self.table.clear_traces();
                self.models.iter_mut().for_each(|model| (model.live, model.ended) = Default::default());
            }
            Turn::Fork => {
                self.now += 1;
                let seed = self.table.inherited();
                self.table.end_copies();
                self.table = seed.grow().expect("a table");
                self.rings = rings(&mut self.table);
                self.is_sampled = [false; THREADS];
                self.recorder = recorder(self.now, &mut self.table);
                self.models.iter_mut().for_each(|model| (model.ended, model.last) = Default::default());
            }
        }
    }

    fn check(&mut self) {
        self.turn(&Turn::Step(1));
        let begins = self.table.births().begins().to_vec();
        for (domain, heap) in self.table.heaps() {
            let model = &self.models[usize::from(domain == Domain::Python)];
            let live = heap.live();
            assert_eq!(live.len(), model.live.len());
            for block in live {
                let known = &model.live[&block.address];
                let span = usize::from(block.birth.code());
                assert_eq!(begins[span], known.begin, "{domain:?} {block:?}");
                assert!(begins[span] <= known.born && begins.get(span + 1).is_none_or(|&end| known.born < end));
            }
            let lifetimes: BTreeMap<u32, Lifetimes> = heap.totals().lifetimes().collect();
            assert_eq!(lifetimes, model.ended, "{domain:?}");
            let ended: u64 = lifetimes.values().map(|row| row.within_step + row.ended.iter().sum::<u64>()).sum();
            assert_eq!(ended, heap.totals().frees(), "each ended block has a lifetime");
        }
    }
}

#[derive(Clone, Debug)]
enum Turn {
    Alloc { thread: usize, address: u64, stack: u32 },
    Free { thread: usize, address: u64, is_python: bool },
    Temporary { thread: usize, address: u64, stack: u32 },
    Realloc { thread: usize, from: u64, to: u64, stack: u32 },
    Reuse { thread: usize, address: u64, stack: u32 },
    Sample { thread: usize, is_sampled: bool },
    Step(u64),
    Clear,
    Fork,
}

fn turn() -> impl Strategy<Value = Turn> {
    let thread = || 0..THREADS;
    // Few addresses, so that other threads get them.
    let address = || prop_oneof![4 => 1..6u64, 1 => 1..40u64].prop_map(|n| n * 16);
    // From milliseconds to days.
    let after = prop_oneof![6 => 1..50u64, 4 => 500..1500u64, 3 => 0..100_000u64, 1 => 0..100_000_000u64];
    prop_oneof![
        20 => (thread(), address(), 0..8u32).prop_map(|(thread, address, stack)| Turn::Alloc { thread, address, stack }),
        20 => (thread(), address(), any::<bool>())
            .prop_map(|(thread, address, is_python)| Turn::Free { thread, address, is_python }),
        4 => (thread(), address(), 0..8u32)
            .prop_map(|(thread, address, stack)| Turn::Temporary { thread, address, stack }),
        4 => (thread(), address(), address(), 0..8u32)
            .prop_map(|(thread, from, to, stack)| Turn::Realloc { thread, from, to, stack }),
        3 => (thread(), address(), 4..8u32).prop_map(|(thread, address, stack)| Turn::Reuse { thread, address, stack }),
        1 => (thread(), any::<bool>()).prop_map(|(thread, is_sampled)| Turn::Sample { thread, is_sampled }),
        12 => after.prop_map(Turn::Step),
        1 => prop_oneof![3 => Just(Turn::Step(1)), 1 => Just(Turn::Clear), 1 => Just(Turn::Fork)],
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// Few codes, so that they are given out anew many times.
    #[test]
    fn births_and_lifetimes_are_those_of_the_naive_model(
        codes in prop_oneof![Just(12usize), Just(40), Just(8192)],
        resolvers in 0..3usize,
        turns in prop::collection::vec(turn(), 1..700),
    ) {
        let mut bench = Bench::new(codes, resolvers);
        turns.iter().for_each(|turn| bench.turn(turn));
        bench.check();
    }
}

/// A month with blocks of all ages, in a table of the real size.
#[test]
fn a_month_of_births_is_known_to_a_part_of_the_age() {
    let mut bench = Bench::new(8192, 0);
    let (mut born, mut second) = (BTreeMap::new(), 0_u64);
    const MONTH: u64 = 30 * 24 * 3600;
    while second < MONTH {
        // Seconds at the end and at the begin, longer steps between: the time of a test is short.
        let after = if (20_000..=MONTH - 20_000).contains(&second) { 20 } else { 1 };
        second += after;
        bench.turn(&Turn::Step(after * 1000));
        if second.is_multiple_of(500) {
            let address = second * 16;
            bench.apply(0, Event::Alloc { stamp: 0, address, size: 100, stack: 1 });
            born.insert(address, Duration::from_millis(bench.now));
        }
    }
    bench.table.catch_up();
    let begins = bench.table.births().begins().to_vec();
    let (now, steps) = (Duration::from_millis(bench.now), begins.len());
    assert!(steps <= 8192, "{steps}");
    let live = bench.table.heap().live();
    assert_eq!(live.len(), born.len());
    for block in live {
        let (time, span) = (born[&block.address], usize::from(block.birth.code()));
        let (begin, end) = (begins[span], begins.get(span + 1).copied().unwrap_or(now));
        assert!(begin <= time && time <= end, "{time:?} is in {begin:?} to {end:?}");
        let (age, width) = (now - time, end - begin);
        // The steps of the history are as wide: 1 s, 10 s, 2 min, 20 min.
        assert!(width <= Duration::from_secs(1).max(age / 59), "{width:?} at an age of {age:?}");
    }
}

//! The recorder beside a naive recorder that keeps everything, with a clock of its own.

use super::Recorder;
use super::gauges::Gauges;
use crate::session::arena_map::ArenaMap;
use crate::table::order::Sink;
use crate::table::{Ring, Table};
use heapline_shared_format::event::{Event, domain};
use heapline_shared_format::mapping::{Mapping, Pages};
use heapline_shared_format::snapshot::history::{Held, Step, USER_MARK};
use heapline_shared_format::snapshot::{Domain, History, Snapshot, write};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// Stacks of the ring: the even ones are native, the odd ones Python's.
const STACKS: u32 = 60;

/// Amounts of a stack or a domain.
type Sums = (u64, u64);

/// All figures at an instant.
#[derive(Clone, Debug, Default, PartialEq)]
struct Instant {
    domains: BTreeMap<Domain, Sums>,
    stacks: BTreeMap<(Domain, u32), Sums>,
    /// Greatest live bytes since the instant before.
    greatest: BTreeMap<Domain, u64>,
    /// Blocks and bytes allocated, and blocks freed, since the instant before.
    counted: BTreeMap<Domain, [u64; 3]>,
}

/// A table with a recorder and a naive recorder.
struct Bench {
    table: Table,
    ring: Ring,
    recorder: Recorder,
    now: u64,
    /// Time of the last mark of the user.
    marked: Option<u64>,
    /// All instants at which a step has ended, by time.
    instants: BTreeMap<u64, Instant>,
    before: BTreeMap<Domain, [u64; 3]>,
    greatest: BTreeMap<Domain, u64>,
    live: Vec<(u64, bool)>,
    next: u64,
    state: u64,
}

fn sums(table: &Table) -> impl Iterator<Item = (Domain, Sums, [u64; 3])> + '_ {
    let heaps = table.heaps().map(|(domain, heap)| (domain, heap.totals()));
    let layers = table.ranges().layers().map(|(domain, layer)| (domain, layer.totals()));
    heaps.chain(layers).map(|(domain, totals)| {
        let (current, total) = (totals.current(), totals.total());
        (domain, (current.size, current.count), [total.count, total.size, totals.frees()])
    })
}

impl Bench {
    fn new(most: usize) -> Bench {
        let mut table = Table::new(8, 0);
        let mut ring = table.ring(1, false);
        for id in 0..STACKS {
            let domain = if id % 2 == 0 { domain::NATIVE } else { domain::PYTHON };
            let frames = [0x1000, 0x2000 + u64::from(id)];
            let stack = Event::Stack { id, keep: 0, total: 2, truncated: false, more: false, domain, frames: &frames };
            table.apply(&mut ring, stack).expect("a stack");
        }
        Bench::of(table, ring, most)
    }

    fn of(mut table: Table, ring: Ring, most: usize) -> Bench {
        let map = Arc::new(ArenaMap::create(1 << 20).expect("an arena"));
        let recorder = Recorder::begin(Duration::ZERO, most, Gauges::new(map, Arc::new(OnceLock::new())), &mut table);
        let mut bench = Bench {
            table,
            ring,
            recorder,
            now: 0,
            marked: None,
            instants: BTreeMap::new(),
            before: BTreeMap::new(),
            greatest: BTreeMap::new(),
            live: Vec::new(),
            next: 0x1000,
            state: 1,
        };
        bench.note();
        bench
    }

    fn random(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % bound
    }

    fn apply(&mut self, event: Event<'_>) {
        self.table.apply(&mut self.ring, event).expect("no corruption in this test");
        self.table.catch_up();
        for (domain, (size, _), _) in sums(&self.table) {
            let greatest = self.greatest.entry(domain).or_default();
            *greatest = size.max(*greatest);
        }
    }

    fn alloc(&mut self, stack: u32, size: u64) {
        self.next += 0x1000;
        self.live.push((self.next, stack.is_multiple_of(2)));
        self.apply(Event::Alloc { stamp: 0, address: self.next, size, stack });
    }

    fn free(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let index = self.random(self.live.len() as u64) as usize;
        let (address, is_native) = self.live.swap_remove(index);
        let domain = if is_native { domain::NATIVE } else { domain::PYTHON };
        self.apply(Event::Free { stamp: 0, address, domain });
    }

    /// Applies a random event. The sizes of a stack's blocks are of its own magnitude.
    fn event(&mut self) {
        match self.random(20) {
            0..=9 => {
                let stack = self.random(u64::from(STACKS)) as u32;
                let size = self.random(1 << (stack % 16));
                self.alloc(stack, size);
            }
            10 => {
                let (start, pages) = (self.random(50) << 12, 1 + self.random(4));
                let pages = Pages::covering(start, pages << 12).expect("pages");
                let (reserved, stack) = (self.random(2) == 0, 2 * self.random(5) as u32);
                self.apply(Event::Mapping { stamp: 0, mapping: Mapping::Map { pages, reserved, stack } });
            }
            _ => self.free(),
        }
    }

    /// Notes all figures of the present instant, at which a step has ended.
    fn note(&mut self) {
        let mut instant = Instant { greatest: std::mem::take(&mut self.greatest), ..Instant::default() };
        for (domain, current, totals) in sums(&self.table) {
            instant.domains.insert(domain, current);
            let greatest = instant.greatest.entry(domain).or_default();
            *greatest = (*greatest).max(current.0);
            self.greatest.insert(domain, current.0);
            let before = self.before.insert(domain, totals).unwrap_or_default();
            let [allocs, bytes, frees] = [0, 1, 2].map(|column| totals[column].wrapping_sub(before[column]));
            instant.counted.insert(domain, [allocs, bytes, frees]);
        }
        let heaps = self.table.heaps().map(|(domain, heap)| (domain, heap.totals().stacks().collect::<Vec<_>>()));
        let layers = self.table.ranges().layers().map(|(domain, layer)| (domain, layer.stacks().collect()));
        for (domain, stacks) in heaps.chain(layers) {
            let stacks =
                stacks.into_iter().map(|(stack, held)| ((domain, stack), (held.current.size, held.current.count)));
            instant.stacks.extend(stacks);
        }
        self.instants
            .entry(self.now)
            .and_modify(|before| {
                for (&domain, &greatest) in &instant.greatest {
                    let sum = before.greatest.entry(domain).or_default();
                    *sum = greatest.max(*sum);
                }
                for (&domain, counted) in &instant.counted {
                    let sum = before.counted.entry(domain).or_default();
                    sum.iter_mut().zip(counted).for_each(|(sum, more)| *sum += more);
                }
                (before.domains, before.stacks) = (instant.domains.clone(), instant.stacks.clone());
            })
            .or_insert(instant);
    }

    /// Sets the time of the next step: the first step alone ends at the begin, and a step at a mark
    /// stays as it is.
    fn set_now(&mut self, now: u64) {
        self.now = now.max(1).max(self.marked.map_or(0, |marked| marked + 1));
    }

    fn end_step(&mut self, after: u64) {
        self.set_now(self.now + after);
        self.recorder.end_step(Duration::from_millis(self.now), &mut self.table);
        self.note();
    }

    fn clear(&mut self) {
        self.set_now(self.now);
        self.recorder.before_clear(Duration::from_millis(self.now), &mut self.table);
        self.note();
        self.table.clear_traces();
        self.live.clear();
        self.before.clear();
        self.greatest.clear();
    }

    fn mark(&mut self, text: &str) {
        // A mark stands behind the last step.
        self.now = self.now.max(self.recorder.end() + 1);
        self.recorder.mark(Duration::from_millis(self.now), USER_MARK, text, &mut self.table);
        self.note();
        self.marked = Some(self.now);
    }

    fn history(&mut self) -> History {
        self.set_now(self.now);
        let taken = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000) + Duration::from_millis(self.now);
        let history = self.recorder.history(Duration::from_millis(self.now), taken, 3600, &mut self.table);
        self.note();
        assert_eq!((history.begun, history.end()), (1_000_000_000_000, self.now));
        history
    }

    /// Compares every step with the naive recorder.
    fn check(&mut self) {
        let history = self.history();
        let mut held: BTreeMap<(Domain, Option<u32>), Held> = BTreeMap::new();
        let mut begin = None;
        for step in &history.steps {
            step.changes.iter().for_each(|change| held.entry(change.key()).or_default().add(&change));
            let naive = self.instants.get(&step.end).expect("a step ends where a step has ended");
            let within = match begin {
                None => self.instants.range(..=step.end),
                Some(begin) => self.instants.range(begin + 1..=step.end),
            };
            for row in &step.domains {
                let sums = naive.domains[&row.domain];
                assert_eq!((row.current, row.blocks), sums, "{:?} at {}", row.domain, step.end);
                let all = held.iter().filter(|((domain, _), _)| *domain == row.domain).map(|(_, held)| held);
                let all = all.fold((0_u64, 0_u64), |(size, count), held| {
                    (size.wrapping_add(held.size), count.wrapping_add(held.count))
                });
                assert_eq!(all, sums, "the stacks of {:?} at {}", row.domain, step.end);
                let greatest = within.clone().filter_map(|(_, instant)| instant.greatest.get(&row.domain)).max();
                assert_eq!(Some(&row.greatest), greatest, "{:?} at {}", row.domain, step.end);
                let counted = within.clone().filter_map(|(_, instant)| instant.counted.get(&row.domain));
                let counted = counted.fold([0; 3], |sum, more| [0, 1, 2].map(|column| sum[column] + more[column]));
                assert_eq!([row.allocs, row.allocated_bytes, row.frees], counted, "{:?} at {}", row.domain, step.end);
            }
            for (&(domain, stack), held) in held.iter().filter(|((_, stack), _)| stack.is_some()) {
                let naive = naive.stacks.get(&(domain, stack.unwrap_or(0))).copied().unwrap_or_default();
                // A stack that the table has forgotten begins anew among the stacks without rows.
                let is_forgotten = self.table.cleared() > 0 && (held.size, held.count) == (0, 0);
                assert!((held.size, held.count) == naive || is_forgotten, "{domain:?} {stack:?} at {}", step.end);
            }
            begin = Some(step.end);
        }
        for mark in history.marks.iter().filter(|mark| mark.kind == USER_MARK) {
            assert!(history.steps.iter().any(|step| step.end == mark.at), "the memory at a mark is known");
        }
    }
}

#[derive(Clone, Debug)]
enum Turn {
    Events(u32),
    Step(u64),
    ResetPeak,
    Clear,
    Mark,
}

fn turn() -> impl Strategy<Value = Turn> {
    let after = prop_oneof![6 => 0..50u64, 6 => 900..1100u64, 3 => 0..30_000u64, 1 => 0..40_000_000u64];
    prop_oneof![
        20 => (1..40u32).prop_map(Turn::Events),
        40 => after.prop_map(Turn::Step),
        2 => Just(Turn::ResetPeak),
        1 => Just(Turn::Clear),
        1 => Just(Turn::Mark),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// The bound is so small for some histories that stacks lose their rows.
    #[test]
    fn a_history_is_that_of_a_recorder_that_keeps_everything(
        most in prop_oneof![Just(8_000usize), Just(40_000), Just(16 << 20)],
        turns in prop::collection::vec(turn(), 1..400),
    ) {
        let mut bench = Bench::new(most);
        for turn in turns {
            match turn {
                Turn::Events(count) => (0..count).for_each(|_| bench.event()),
                Turn::Step(after) => bench.end_step(after),
                Turn::ResetPeak => bench.table.reset_peak(),
                Turn::Clear => bench.clear(),
                Turn::Mark => bench.mark("a"),
            }
            prop_assert!(most < 40_000 || bench.recorder.bytes() <= most + 4096);
        }
        bench.check();
    }
}

/// Width of the steps that are `age` old at the end.
fn width(history: &History, age: u64) -> u64 {
    let step = history.step_at(history.end() - age).expect("a step");
    history.steps[step].end - history.begin_of(step)
}

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

#[test]
fn a_month_is_fine_where_recent_and_coarse_where_old() {
    let mut bench = Bench::new(16 << 20);
    for second in 1..=28 * 24 * 3600_u64 {
        // Seconds at the end, longer steps before: the time of a test is short.
        let left = 28 * 24 * 3600 - second;
        if left > 3 * 3600 && !second.is_multiple_of(10) {
            continue;
        }
        bench.now = (second - 1) * 1000;
        if second.is_multiple_of(60) {
            (0..5).for_each(|_| bench.event());
        }
        let now = bench.now + 1000;
        bench.now = now;
        bench.recorder.end_step(Duration::from_millis(now), &mut bench.table);
        if second == 40_000 {
            bench.mark("deploy");
        }
    }
    let history = bench.history();
    let widths = [MINUTE, 9 * MINUTE, 11 * MINUTE, HOUR, 3 * HOUR, 20 * HOUR, 2 * DAY, 27 * DAY];
    let widths = widths.map(|age| width(&history, age));
    assert_eq!(widths, [1_000, 1_000, 10_000, 10_000, 2 * MINUTE, 2 * MINUTE, 20 * MINUTE, 20 * MINUTE]);
    assert!(history.steps.iter().any(|step| step.end == 40_000_001), "the mark is where it was, behind the last step");
    assert!(history.steps.len() < 4000, "{} steps", history.steps.len());
}

#[test]
fn a_day_of_a_thousand_stacks_fits_with_room() {
    let mut table = Table::new(8, 0);
    let mut ring = table.ring(1, false);
    for id in 0..1000 {
        let frames = [0x1000, 0x2000 + u64::from(id)];
        let domain = domain::NATIVE;
        let stack = Event::Stack { id, keep: 0, total: 2, truncated: false, more: false, domain, frames: &frames };
        table.apply(&mut ring, stack).expect("a stack");
    }
    let mut bench = Bench::of(table, ring, super::DEFAULT_MEMORY as usize);
    let mut addresses = [0_u64; 1000];
    for second in 1..=24 * 3600_u64 {
        // Of a thousand stacks with memory of a magnitude some dozens change in a second.
        for _ in 0..40 {
            let (one, other) = (bench.random(1000), bench.random(1000));
            let stack = one * other / 1000;
            let address = &mut addresses[stack as usize];
            if *address != 0 {
                let free = Event::Free { stamp: 0, address: *address, domain: domain::NATIVE };
                bench.table.apply(&mut bench.ring, free).expect("a free");
            }
            bench.next += 0x1000;
            *address = bench.next;
            let size = 20_000 + bench.random(30_000);
            let alloc = Event::Alloc { stamp: 0, address: bench.next, size, stack: stack as u32 };
            bench.table.apply(&mut bench.ring, alloc).expect("a block");
        }
        bench.now = second * 1000;
        bench.recorder.end_step(Duration::from_millis(bench.now), &mut bench.table);
    }
    let bytes = bench.recorder.bytes();
    let history = bench.history();
    assert!(bytes < 10 << 20, "{bytes} bytes");
    assert_eq!([MINUTE, HOUR, 20 * HOUR].map(|age| width(&history, age)), [1_000, 10_000, 2 * MINUTE]);
    let apart = history.held_at(history.steps.len() - 1).keys().filter(|(_, stack)| stack.is_some()).count();
    assert!(apart > 990, "{apart} stacks have rows of their own");
    let snapshot = Snapshot { history: Some(history), ..Snapshot::default() };
    let file = write(&snapshot, Vec::new(), &mut |_| {}).expect("written").len();
    assert!(file < 6 << 20, "{file} bytes in the file, {bytes} in memory");
}

#[test]
fn a_program_that_has_just_begun_is_seen_in_detail() {
    let mut bench = Bench::new(16 << 20);
    for millis in 1..=70_000 {
        bench.recorder.tick(Duration::from_millis(millis), &mut bench.table);
    }
    bench.now = 70_000;
    let history = bench.history();
    let begins = |from, to| history.steps.iter().filter(|step: &&Step| (from..to).contains(&step.end)).count();
    // A slow machine makes steps longer, and never shorter.
    assert!((200..=600).contains(&begins(1, 6_000)), "{}", begins(1, 6_000));
    assert!((300..=545).contains(&begins(6_000, 60_000)), "{}", begins(6_000, 60_000));
    assert!((8..=12).contains(&begins(60_000, 70_000)), "{}", begins(60_000, 70_000));
}

#[test]
fn a_history_begins_with_the_memory_that_is_there() {
    let mut bench = Bench::new(16 << 20);
    (0..200).for_each(|_| bench.event());
    let Bench { table, ring, .. } = bench;
    let mut child = Bench::of(table, ring, 16 << 20);
    assert!(child.instants[&0].domains[&Domain::Native].0 > 0);
    // What was allocated before belongs to no step of this history.
    (0..50).for_each(|_| child.event());
    child.end_step(5);
    let history = child.history();
    assert_eq!(history.steps[0].end, 0);
    let native = |step: &Step| *step.domain(Domain::Native).expect("native memory");
    assert_eq!(native(&history.steps[0]).current, child.instants[&0].domains[&Domain::Native].0);
    assert_eq!(native(&history.steps[1]).current, child.instants[&5].domains[&Domain::Native].0);
}

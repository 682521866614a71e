use super::*;
use heapline_shared_format::event::{BY_FRAME_POINTER, MAX_STACK_FRAMES, ModuleFlags, module_head, stack_head};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Applies encoded records to a table through one ring per thread.
struct Bench {
    table: Table,
    rings: Vec<Ring>,
    /// Whether the table catches up after each record. Otherwise a test lets the table catch up
    /// before reading it.
    looks_at_each: bool,
}

impl Bench {
    fn new(threads: u32) -> Bench {
        Bench::with_resolvers(threads, 0)
    }

    fn with_resolvers(threads: u32, resolvers: usize) -> Bench {
        let mut table = Table::new(64, resolvers);
        let rings = (0..threads).map(|tid| table.ring(tid, false)).collect();
        let mut bench = Bench { table, rings, looks_at_each: true };
        for thread in 0..threads as usize {
            for id in 0..4 {
                bench.define(thread, id, &[0x1000, 0x2000 + u64::from(id)]);
            }
        }
        bench
    }

    fn apply(&mut self, thread: usize, event: Event<'_>) {
        self.table.apply(&mut self.rings[thread], event).expect("no corruption in this test");
        if self.looks_at_each {
            self.table.catch_up();
        }
    }

    fn define(&mut self, thread: usize, id: u32, frames: &[u64]) {
        let total = frames.len() as u32;
        self.apply(thread, Event::Stack { id, keep: 0, total, truncated: false, more: false, domain: 0, frames });
    }

    fn alloc(&mut self, thread: usize, address: u64, size: u64, stack: u32) {
        self.apply(thread, Event::Alloc { stamp: 0, address, size, stack });
    }

    fn free(&mut self, thread: usize, address: u64) {
        self.apply(thread, Event::Free { stamp: 0, address, domain: 0 });
    }

    fn current(&self) -> (u64, u64) {
        let current = self.table.heap().totals().current();
        (current.size, current.count)
    }

    fn frames(&self, address: u64) -> Vec<u64> {
        let stack = self.table.heap().block(address).expect("a live block").stack;
        self.table.stacks().tree().walk(stack).map(|frame| frame.address).collect()
    }
}

#[test]
fn the_seeds_story_big_peak_reset_small_peak() {
    let mut bench = Bench::new(1);
    bench.alloc(0, 0x10, 100, 0);
    bench.alloc(0, 0x20, 10_000, 1);
    bench.free(0, 0x20);
    let peaks = |bench: &Bench| {
        let totals = bench.table.heap().totals();
        (totals.peak(), totals.stacks().map(|(_, amounts)| amounts.peak.size).collect::<Vec<_>>())
    };
    assert_eq!(peaks(&bench), (10_100, vec![100, 10_000]));
    bench.table.reset_peak();
    assert_eq!(peaks(&bench), (100, vec![100, 0]));
    bench.alloc(0, 0x30, 50, 2);
    bench.free(0, 0x10);
    assert_eq!(peaks(&bench), (150, vec![100, 0, 50]));
    assert_eq!(bench.current(), (50, 1));
}

/// A sample of a hostile target may represent any number of bytes.
#[test]
fn sums_end_at_the_largest_number() {
    let mut bench = Bench::new(1);
    bench.apply(0, Event::Query { stamp: 0, number: 0, asked: query::INTERVAL, arguments: [u64::MAX, 0] });
    for address in [0x10, 0x20] {
        bench.alloc(0, address, 16, 0);
    }
    assert_eq!(bench.current(), (u64::MAX, 2));
    for address in [0x10, 0x20] {
        bench.free(0, address);
    }
    assert_eq!(bench.current(), (0, 0));
    assert_eq!(bench.table.heap().totals().peak(), u64::MAX);
}

#[test]
fn a_realloc_keeps_its_block_until_the_end_record() {
    let mut bench = Bench::new(1);
    bench.alloc(0, 0x10, 100, 0);
    bench.apply(0, Event::Realloc { stamp: 0, address: 0x10, domain: 0 });
    assert_eq!((bench.current(), bench.table.heap().in_realloc()), ((100, 1), 1));
    bench.apply(0, Event::Reallocated { stamp: 0, address: 0x20, size: 300, stack: 1 });
    assert_eq!((bench.current(), bench.table.heap().in_realloc()), ((300, 1), 0));
    assert_eq!(bench.table.heap().totals().peak(), 300, "never both blocks at once");
    assert_eq!(bench.table.heap().totals().frees(), 1);
    bench.apply(0, Event::Realloc { stamp: 0, address: 0x20, domain: 0 });
    bench.apply(0, Event::ReallocEnd { stamp: 0, address: 0x20, freed: false, domain: 0 });
    assert_eq!((bench.current(), bench.table.heap().in_realloc()), ((300, 1), 0));
    bench.apply(0, Event::Realloc { stamp: 0, address: 0x20, domain: 0 });
    bench.apply(0, Event::ReallocEnd { stamp: 0, address: 0x20, freed: true, domain: 0 });
    assert_eq!((bench.current(), bench.table.heap().in_realloc()), ((0, 0), 0));
    assert_eq!(bench.table.contradictions().total(), 0);
}

#[test]
fn another_threads_alloc_at_the_old_address_ends_the_block_in_realloc() {
    let mut bench = Bench::new(2);
    bench.alloc(0, 0x10, 100, 0);
    bench.apply(0, Event::Realloc { stamp: 0, address: 0x10, domain: 0 });
    bench.alloc(1, 0x10, 7, 1);
    assert_eq!(bench.current(), (7, 1));
    // The block of the other thread is inside a realloc when the first realloc ends.
    bench.apply(1, Event::Realloc { stamp: 0, address: 0x10, domain: 0 });
    bench.apply(0, Event::Reallocated { stamp: 0, address: 0x20, size: 300, stack: 1 });
    assert_eq!((bench.current(), bench.table.heap().in_realloc()), ((307, 2), 1));
    bench.apply(1, Event::Reallocated { stamp: 0, address: 0x10, size: 9, stack: 1 });
    assert_eq!((bench.current(), bench.table.heap().in_realloc()), ((309, 2), 0));
    assert_eq!(bench.table.contradictions().total(), 0);
    assert_eq!(bench.table.heap().untracked_frees(), 0);
}

#[test]
fn a_realloc_of_an_older_block_leaves_the_next_owner_of_the_address_alone() {
    let mut bench = Bench::new(2);
    bench.apply(0, Event::Realloc { stamp: 0, address: 0x10, domain: 0 });
    bench.alloc(1, 0x10, 7, 1);
    bench.apply(0, Event::Reallocated { stamp: 0, address: 0x20, size: 300, stack: 1 });
    assert_eq!(bench.current(), (307, 2));
    assert_eq!(bench.table.heap().untracked_frees(), 1);
}

#[test]
fn an_interpreter_seen_from_its_start_frees_blocks_of_before_unremarked() {
    let frees = |change: fn(&mut Table), domain: u8| {
        let mut bench = Bench::new(1);
        change(&mut bench.table);
        bench.apply(0, Event::Free { stamp: 0, address: 0x10, domain });
        bench.table.untracked_frees()
    };
    assert_eq!(frees(|_| {}, domain::PYTHON), 0);
    assert_eq!(frees(|_| {}, domain::NATIVE), 1, "which has no such reason");
    assert_eq!(frees(Table::begins_late, domain::PYTHON), 1);
    assert_eq!(frees(Table::clear_traces, domain::PYTHON), 1);
    assert_eq!(frees(|table| *table = forked(table), domain::PYTHON), 0);
}

#[test]
fn a_free_after_unseen_blocks_is_no_second_one() {
    for (resolvers, is_told) in [(0, false), (0, true), (2, true)] {
        let mut bench = Bench::with_resolvers(1, resolvers);
        let free = Event::Free { stamp: 0, address: 0x10, domain: domain::PYTHON };
        bench.apply(0, Event::Free { stamp: 0, address: 0x10, domain: domain::PYTHON });
        if is_told {
            bench.apply(0, Event::Query { stamp: 0, number: 0, asked: query::UNSEEN, arguments: [0; 2] });
        }
        bench.apply(0, free);
        bench.table.catch_up();
        assert_eq!(bench.table.contradictions().total(), u64::from(!is_told), "{resolvers} resolvers");
    }
}

#[test]
fn contradictions_are_resolved_and_counted() {
    let mut bench = Bench::new(1);
    bench.free(0, 0x10);
    assert_eq!(bench.table.heap().untracked_frees(), 1);
    bench.alloc(0, 0x10, 5, 0);
    bench.alloc(0, 0x10, 6, 0);
    assert_eq!(bench.current(), (6, 1));
    bench.free(0, 0x10);
    bench.free(0, 0x10);
    bench.alloc(0, 0x10, 1, 99);
    let counted = bench.table.contradictions();
    assert_eq!(counted.of(Contradiction::AllocOverLive), 1);
    assert_eq!(counted.of(Contradiction::DoubleFree), 1);
    assert_eq!(counted.of(Contradiction::UnknownStack), 1);
    assert!(bench.frames(0x10).is_empty());
}

#[test]
fn cleared_traces_are_forgotten_silently() {
    let mut bench = Bench::new(1);
    bench.alloc(0, 0x10, 100, 0);
    bench.alloc(0, 0x20, 100, 0);
    bench.apply(0, Event::Realloc { stamp: 0, address: 0x20, domain: 0 });
    bench.table.clear_traces();
    let totals = bench.table.heap().totals();
    assert_eq!((bench.current(), totals.peak(), totals.total().count), ((0, 0), 0, 0));
    bench.free(0, 0x10);
    bench.apply(0, Event::Reallocated { stamp: 0, address: 0x30, size: 4, stack: 1 });
    assert_eq!(bench.current(), (4, 1));
    assert_eq!(bench.table.heap().totals().frees(), 0);
    assert_eq!(bench.table.contradictions().total(), 0);
}

#[test]
fn stacks_are_kept_frames_plus_new_ones_cut_to_the_most_recent() {
    let mut table = Table::new(3, 0);
    let mut ring = table.ring(1, false);
    let mut define = |id, keep, more, frames: &[u64]| {
        let record = Event::Stack { id, keep, total: 70_000, truncated: false, more, domain: 0, frames };
        table.apply(&mut ring, record)
    };
    assert_eq!(define(0, 0, false, &[1, 2, 3, 4]), Ok(()));
    assert_eq!(define(0, 3, true, &[5]), Ok(()));
    assert_eq!(define(1, 4, false, &[6]), Ok(()));
    assert_eq!(define(2, 2, false, &[]), Ok(()));
    assert_eq!(define(3, 9, false, &[]), Err(Corrupt), "more kept than there were");
    assert_eq!(define(1 << 30, 0, false, &[]), Err(Corrupt), "ids are dense");
    let walks = |id| {
        let (stack, _) = ring.definitions.get(id).expect("defined");
        table.stacks().tree().walk(stack).map(|frame| frame.address).collect::<Vec<_>>()
    };
    assert_eq!((walks(0), walks(1), walks(2)), (vec![4, 3, 2], vec![6, 5, 3], vec![2, 1]));
    assert_eq!(table.stacks().tree().stacks[1].total_nframe, u16::MAX);
}

#[test]
fn frames_of_an_unloaded_module_stay_its_own() {
    let mut bench = Bench::new(1);
    let text = [0x6161_6161_6161_6161u64];
    let load = |bench: &mut Bench, path_bytes: usize| {
        let (head, _) = module_head(0, 0x5000..0x6000, 0x5000, ModuleFlags::default(), 0, path_bytes);
        let words: Vec<u64> = head.into_iter().chain(text).collect();
        let (event, _) = heapline_shared_format::event::decode(&words).expect("a record");
        bench.apply(0, event);
    };
    let module_of = |bench: &Bench, address| {
        let stack = bench.table.heap().block(address).expect("live").stack;
        let leaf = bench.table.stacks().tree().walk(stack).next().expect("a frame");
        leaf.module(bench.table.modules()).map(|m| bench.table.modules().objects()[m as usize].path.len())
    };
    bench.define(0, 0, &[0x5800]);
    bench.alloc(0, 0x10, 1, 0);
    load(&mut bench, 3);
    assert_eq!(module_of(&bench, 0x10), Some(3), "a module may be announced after its frames");
    bench.apply(0, Event::Unload { stamp: 0, start: 0x5000 });
    load(&mut bench, 4);
    bench.define(0, 1, &[0x5800]);
    bench.alloc(0, 0x20, 1, 1);
    assert_eq!((module_of(&bench, 0x10), module_of(&bench, 0x20)), (Some(3), Some(4)));
    let frames = bench.table.stacks().tree().frames.len();
    // The first module comes back in the place of the second: the frames are the old frames.
    load(&mut bench, 3);
    bench.define(0, 2, &[0x5800]);
    bench.alloc(0, 0x30, 1, 2);
    assert_eq!((module_of(&bench, 0x20), module_of(&bench, 0x30)), (Some(4), Some(3)));
    assert_eq!(bench.table.stacks().tree().frames.len(), frames, "a plug-in that comes and goes takes no memory");
}

#[test]
fn the_mark_of_a_frame_pointer_is_no_part_of_the_address() {
    let mut bench = Bench::new(1);
    let marked = 0x5800 | BY_FRAME_POINTER;
    bench.define(0, 0, &[0x1000, marked]);
    bench.alloc(0, 0x10, 1, 0);
    assert_eq!(bench.frames(0x10), [0x5800, 0x1000]);
    let (head, _) = module_head(0, 0x5000..0x6000, 0x5000, ModuleFlags::default(), 0, 0);
    let (module, _) = heapline_shared_format::event::decode(&head).expect("a record");
    bench.apply(0, module);
    bench.apply(0, Event::Unload { stamp: 0, start: 0x5000 });
    let frames = bench.table.stacks().tree().frames.clone();
    let found = |address| frames.iter().find(|f| f.address == address).map(|f| (f.by_frame_pointer, f.sealed_to));
    assert_eq!(found(0x1000), Some((false, stacks::NONE)));
    let (by_frame_pointer, sealed_to) = found(0x5800).expect("a frame");
    assert!(by_frame_pointer && sealed_to != stacks::NONE, "the frame is sealed to its module");
    bench.apply(0, module);
    bench.define(0, 1, &[0x1000, marked]);
    assert_eq!(bench.table.stacks().tree().frames.len(), frames.len(), "the module is back, and so is the frame");
}

#[test]
fn a_million_threads_take_the_room_of_those_with_blocks() {
    let mut table = Table::new(8, 0);
    for tid in 0..1_000_000u64 {
        let mut ring = table.ring(tid as u32 % 32_768, false);
        let block = |stamp| Event::Alloc { stamp, address: tid * 16, size: 1, stack: 0 };
        if tid % 100_000 == 0 {
            table.apply(&mut ring, block(tid)).expect("a record");
        }
        table.close(ring);
    }
    assert_eq!(table.heap().live().len(), 10);
    assert!(table.threads().rows().len() <= 11, "{}", table.threads().rows().len());
}

/// State of a naive model for each stack: live (size, count), the same at the peak, total.
type Naive = BTreeMap<u32, [(u64, u64); 3]>;

#[derive(Clone, Debug)]
enum Step {
    Alloc { address: u64, size: u64, stack: u32 },
    Free { address: u64 },
    Realloc { from: u64, to: u64, size: u64, stack: u32 },
    ResetPeak,
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    let address = || (1..24u64).prop_map(|n| n * 16);
    prop_oneof![
        8 => (address(), 0..100u64, 0..4u32).prop_map(|(address, size, stack)| Step::Alloc { address, size, stack }),
        8 => address().prop_map(|address| Step::Free { address }),
        3 => (address(), address(), 0..100u64, 0..4u32)
            .prop_map(|(from, to, size, stack)| Step::Realloc { from, to, size, stack }),
        1 => Just(Step::ResetPeak),
        1 => Just(Step::Clear),
    ]
}

/// A model with all results computed anew after every step.
#[derive(Default)]
struct Model {
    live: BTreeMap<u64, (u64, u32)>,
    totals: BTreeMap<u32, (u64, u64)>,
    peak: u64,
    at_peak: BTreeMap<u32, (u64, u64)>,
}

impl Model {
    fn by_stack(&self) -> BTreeMap<u32, (u64, u64)> {
        let mut sums = BTreeMap::new();
        for &(size, stack) in self.live.values() {
            let sum: &mut (u64, u64) = sums.entry(stack).or_default();
            *sum = (sum.0 + size, sum.1 + 1);
        }
        sums
    }

    fn alloc(&mut self, address: u64, size: u64, stack: u32) {
        self.live.insert(address, (size, stack));
        let total = self.totals.entry(stack).or_default();
        *total = (total.0 + size, total.1 + 1);
        if self.current() > self.peak {
            self.reset_peak();
        }
    }

    fn current(&self) -> u64 {
        self.live.values().map(|&(size, _)| size).sum()
    }

    fn reset_peak(&mut self) {
        self.peak = self.current();
        self.at_peak = self.by_stack();
    }

    fn rows(&self) -> Naive {
        let live = self.by_stack();
        let of = |sums: &BTreeMap<u32, (u64, u64)>, stack| sums.get(stack).copied().unwrap_or_default();
        self.totals
            .iter()
            .map(|(stack, &total)| (*stack, [of(&live, stack), of(&self.at_peak, stack), total]))
            .collect()
    }
}

proptest! {
    #[test]
    fn totals_and_peaks_equal_the_naive_models(
        steps in prop::collection::vec((step(), prop::bool::weighted(0.02)), 0..400),
        looks_at_each in any::<bool>(),
        resolvers in 0..3usize,
    ) {
        let mut bench = Bench::with_resolvers(1, resolvers);
        bench.looks_at_each = looks_at_each;
        let ids: Vec<u32> = (0..4).map(|id| bench.rings[0].definitions.get(id).expect("defined").0).collect();
        let mut model = Model::default();
        for (step, looks) in steps.into_iter().chain([(Step::Free { address: 16 }, true)]) {
            match step {
                Step::Alloc { address, size, stack } => {
                    bench.alloc(0, address, size, stack);
                    model.live.remove(&address);
                    model.alloc(address, size, ids[stack as usize]);
                }
                Step::Free { address } => {
                    bench.free(0, address);
                    model.live.remove(&address);
                }
                Step::Realloc { from, to, size, stack } => {
                    bench.apply(0, Event::Realloc { stamp: 0, address: from, domain: 0 });
                    bench.apply(0, Event::Reallocated { stamp: 0, address: to, size, stack });
                    model.live.remove(&from);
                    model.live.remove(&to);
                    model.alloc(to, size, ids[stack as usize]);
                }
                Step::ResetPeak => {
                    bench.table.reset_peak();
                    model.reset_peak();
                }
                Step::Clear => {
                    bench.table.clear_traces();
                    model = Model::default();
                }
            }
            if !looks && !looks_at_each {
                continue;
            }
            bench.table.catch_up();
            let totals = bench.table.heap().totals();
            let rows: Naive = totals
                .stacks()
                .map(|(stack, amounts)| {
                    let pair = |amount: totals::Amount| (amount.size, amount.count);
                    (stack, [pair(amounts.current), pair(amounts.peak), pair(amounts.total)])
                })
                .collect();
            prop_assert_eq!(rows, model.rows());
            prop_assert_eq!((totals.current().size, totals.peak()), (model.current(), model.peak));
            prop_assert_eq!(bench.table.heap().live().len(), model.live.len());
        }
    }

    #[test]
    fn any_records_end_without_a_panic(
        records in prop::collection::vec((0..3usize, prop::collection::vec(any::<u64>(), 1..12), 0..16u64), 0..200),
    ) {
        let mut bench = Bench::new(3);
        for (thread, mut words, kind) in records {
            words[0] = words[0] & !15 | kind;
            if kind == 6 {
                words[0] &= 0x30_003f;
                if let Some(ids) = words.get_mut(1) {
                    *ids &= 0x7_0000_00ff;
                }
            }
            if let Ok((event, _)) = heapline_shared_format::event::decode(&words) {
                // An error is an answer too.
                let _ = bench.table.apply(&mut bench.rings[thread], event);
            }
        }
        bench.table.catch_up();
        let live: u64 = bench.table.heap().live().iter().map(|block| block.size).sum();
        prop_assert_eq!(bench.current().0, live);
    }
}

#[test]
fn the_deepest_definition_is_bounded() {
    let mut table = Table::new(64, 0);
    let mut ring = table.ring(1, false);
    let frames = [7; MAX_STACK_FRAMES];
    let results = (0..u32::MAX).map(|i| {
        let keep = i * MAX_STACK_FRAMES as u32;
        let head = stack_head(MAX_STACK_FRAMES, keep, 0, 0, false, true);
        let words: Vec<u64> = head.into_iter().chain(frames).collect();
        let (event, _) = heapline_shared_format::event::decode(&words).expect("a record");
        table.apply(&mut ring, event)
    });
    let accepted = results.take_while(Result::is_ok).count();
    assert_eq!(accepted, (1 << 20) / MAX_STACK_FRAMES);
}

/// The program's own tracemalloc and the operator's view, compared with a simple model.
mod program {
    use super::*;
    use heapline_shared_format::event::python_frame;
    use heapline_shared_format::query;
    use std::collections::HashMap;

    #[derive(Clone, Debug)]
    enum Step {
        Alloc { address: u64, size: u64, stack: u32 },
        Free(u64),
        Reuse { address: u64, stack: u32 },
        Track { domain: u32, address: u64, size: u64 },
        Untrack { domain: u32, address: u64 },
        Realloc { old: u64, new: u64, size: u64 },
        Ask(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let address = || (1u64..12).prop_map(|i| 16 * i);
        let (size, domain) = (0u64..1000, 0u32..3);
        prop_oneof![
            4 => (address(), size.clone(), 1u32..4).prop_map(|(address, size, stack)| Step::Alloc { address, size, stack }),
            3 => address().prop_map(Step::Free),
            1 => (address(), 1u32..4).prop_map(|(address, stack)| Step::Reuse { address, stack }),
            1 => (domain.clone(), address(), size.clone())
                .prop_map(|(domain, address, size)| Step::Track { domain, address, size }),
            1 => (domain, address()).prop_map(|(domain, address)| Step::Untrack { domain, address }),
            1 => (address(), address(), size).prop_map(|(old, new, size)| Step::Realloc { old, new, size }),
            2 => prop_oneof![
                Just(query::START),
                Just(query::STOP),
                Just(query::CLEAR),
                Just(query::RESET_PEAK),
                Just(query::HIDE),
                Just(query::SHOW),
            ]
            .prop_map(Step::Ask),
        ]
    }

    #[derive(Default)]
    struct Model {
        /// By domain and address: size, stack, whether the program counts the block.
        blocks: HashMap<(u32, u64), (u64, u32, bool)>,
        traces: bool,
        hides: bool,
        peak: u64,
    }

    impl Model {
        fn put(&mut self, domain: u32, address: u64, size: u64, stack: u32) {
            self.blocks.insert((domain, address), (size, stack, self.traces && !self.hides));
            self.peak = self.peak.max(self.traced());
        }

        fn traced(&self) -> u64 {
            self.blocks.values().filter(|(.., counted)| *counted).map(|(size, ..)| size).sum()
        }

        fn apply(&mut self, step: &Step) {
            match *step {
                Step::Alloc { address, size, stack } => self.put(0, address, size, stack),
                Step::Track { domain, address, size } => self.put(domain, address, size, 1),
                Step::Free(address) | Step::Untrack { domain: 0, address } => drop(self.blocks.remove(&(0, address))),
                Step::Untrack { domain, address } => drop(self.blocks.remove(&(domain, address))),
                Step::Reuse { address, stack } => {
                    self.blocks.entry((0, address)).and_modify(|block| block.1 = stack);
                }
                Step::Realloc { old, new, size } => {
                    self.blocks.remove(&(0, old));
                    self.put(0, new, size, 2);
                }
                Step::Ask(query::RESET_PEAK) => self.peak = self.traced(),
                Step::Ask(query::HIDE) => self.hides = true,
                Step::Ask(query::SHOW) => self.hides = false,
                Step::Ask(asked) => {
                    self.traces = asked == query::START || self.traces && asked == query::CLEAR;
                    if asked != query::START {
                        self.blocks.values_mut().for_each(|block| block.2 = false);
                        self.peak = 0;
                    }
                }
            }
        }
    }

    fn bench() -> Bench {
        let mut bench = Bench::new(1);
        bench.looks_at_each = false;
        for id in 1..4 {
            let frames = [python_frame(id, 7)];
            let stack = Event::Stack {
                id: 10 + id,
                keep: 0,
                total: 1,
                truncated: false,
                more: false,
                domain: domain::PYTHON,
                frames: &frames,
            };
            bench.apply(0, stack);
        }
        bench
    }

    fn ask(bench: &mut Bench, asked: u32, arguments: [u64; 2]) -> Answer {
        bench.apply(0, Event::Query { stamp: 0, number: 9, asked, arguments });
        bench.table.take_answer().expect("an answer").answer
    }

    fn replay(bench: &mut Bench, step: &Step) {
        let stamp = 0;
        match *step {
            Step::Alloc { address, size, stack } => {
                bench.apply(0, Event::Alloc { stamp, address, size, stack: 10 + stack });
            }
            Step::Free(address) => bench.apply(0, Event::Free { stamp, address, domain: domain::PYTHON }),
            Step::Reuse { address, stack } => bench.apply(0, Event::Reuse { stamp, address, stack: 10 + stack }),
            Step::Track { domain, address, size } => {
                bench.apply(0, Event::Track { stamp, owner: Tracked::Domain(domain), address, size, stack: 11 });
            }
            Step::Untrack { domain, address } => {
                bench.apply(0, Event::Untrack { stamp, owner: Tracked::Domain(domain), address })
            }
            Step::Realloc { old, new, size } => {
                bench.apply(0, Event::Realloc { stamp, address: old, domain: domain::PYTHON });
                bench.apply(0, Event::Reallocated { stamp, address: new, size, stack: 12 });
            }
            Step::Ask(asked) => {
                bench.apply(0, Event::Query { stamp, number: 1, asked, arguments: [5, 0] });
                bench.table.take_answer();
            }
        }
    }

    /// Returns domain and size of every trace in a text.
    fn traces(text: &[u8]) -> Vec<(u32, u64)> {
        let words: Vec<u32> = text.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let groups = words[2] as usize;
        let tail = &words[words.len() - groups * query::GROUP_WORDS..];
        let long = |words: &[u32]| u64::from(words[0]) | u64::from(words[1]) << 32;
        let each = tail.chunks_exact(query::GROUP_WORDS);
        let mut all: Vec<(u32, u64)> =
            each.flat_map(|g| std::iter::repeat_n((g[0], long(&g[1..])), long(&g[4..]) as usize)).collect();
        all.sort_unstable();
        assert_eq!(all.len() as u64, long(&words[3..]));
        all
    }

    proptest! {
        #[test]
        fn sees_what_the_simplest_table_sees(steps in prop::collection::vec(step(), 0..300)) {
            let (mut bench, mut model) = (bench(), Model::default());
            for step in &steps {
                replay(&mut bench, step);
                model.apply(step);
            }
            prop_assert_eq!(ask(&mut bench, query::TRACED_MEMORY, [0; 2]), Answer::Sums([model.traced(), model.peak]));
            let Answer::Text(text) = ask(&mut bench, query::TRACES, [0; 2]) else { panic!("no text") };
            let counted = model.blocks.iter().filter(|(_, block)| block.2);
            let mut wanted: Vec<(u32, u64)> = counted.map(|(&(domain, _), &(size, ..))| (domain, size)).collect();
            wanted.sort_unstable();
            prop_assert_eq!(traces(&text), wanted);
            // The operator sees all blocks, and the share of each stack.
            let mut stacks = BTreeMap::<u32, (u64, u64)>::new();
            for (&(domain, _), &(size, stack, _)) in &model.blocks {
                if domain == 0 {
                    let sum = stacks.entry(stack).or_default();
                    *sum = (sum.0 + size, sum.1 + 1);
                }
            }
            let python = bench.table.heaps().find(|(domain, _)| *domain == Domain::Python).map(|(_, heap)| heap);
            let tree = bench.table.stacks().tree();
            let mut ours = BTreeMap::<u32, (u64, u64)>::new();
            for (stack, amounts) in python.into_iter().flat_map(|heap| heap.totals().stacks()) {
                let frame = tree.walk(stack).next().expect("one frame");
                let (code, _) = heapline_shared_format::event::as_python_frame(frame.address).expect("Python's");
                if amounts.current.count > 0 {
                    ours.insert(code, (amounts.current.size, amounts.current.count));
                }
            }
            prop_assert_eq!(ours, stacks);
        }
    }

    #[test]
    fn a_traceback_is_cut_to_the_programs_limit_and_found_by_address() {
        let mut bench = bench();
        let frames: Vec<u64> = (1..=4).map(|code| python_frame(code, 0)).collect();
        let (total, domain) = (4, domain::PYTHON);
        bench.apply(0, Event::Stack { id: 20, keep: 0, total, truncated: false, more: false, domain, frames: &frames });
        ask(&mut bench, query::START, [2, 0]);
        bench.apply(0, Event::Alloc { stamp: 0, address: 64, size: 5, stack: 20 });
        let found = |bench: &mut Bench, address| match ask(bench, query::TRACEBACK, [address, 0]) {
            Answer::Text(text) => u32::from_le_bytes([text[4], text[5], text[6], text[7]]),
            other => panic!("{other:?}"),
        };
        assert_eq!((found(&mut bench, 64), found(&mut bench, 80)), (1, 0));
        let Answer::Text(text) = ask(&mut bench, query::TRACEBACK, [64, 0]) else { panic!("no text") };
        let word = |i: usize| u32::from_le_bytes([text[4 * i], text[4 * i + 1], text[4 * i + 2], text[4 * i + 3]]);
        // Behind the head is one file, `<unknown>`: a length and nine characters.
        let at = query::HEAD_WORDS + 10;
        assert_eq!((word(at), word(at + 1)), (4, 2), "four frames in truth, two told");
    }

    #[test]
    fn what_no_collector_writes_is_refused_or_counted() {
        let mut bench = bench();
        let refused = |bench: &mut Bench, event: Event<'_>| {
            bench.table.apply(&mut bench.rings[0], event).expect_err("corrupt");
        };
        refused(&mut bench, Event::Query { stamp: 0, number: 1, asked: 99, arguments: [0; 2] });
        bench.apply(0, Event::Query { stamp: 0, number: 1, asked: query::TRACES, arguments: [0; 2] });
        // A target that does not wait for the first answer gets no second answer.
        refused(&mut bench, Event::Query { stamp: 0, number: 2, asked: query::TRACES, arguments: [0; 2] });
        bench.table.take_answer();
        refused(&mut bench, Event::Mixed { id: 30, native: 11, python: 0 });
        refused(&mut bench, Event::Mixed { id: 30, native: 0, python: 77 });
        for domain in 1..2000 {
            bench.apply(0, Event::Track { stamp: 0, owner: Tracked::Domain(domain), address: 16, size: 1, stack: 0 });
            bench.apply(0, Event::Untrack { stamp: 0, owner: Tracked::Domain(domain + 5000), address: 16 });
        }
        let tracked = bench.table.heaps().filter(|(domain, _)| matches!(domain, Domain::Track(_))).count();
        assert_eq!(tracked, MAX_TRACKED, "and none for what was only untracked");
        assert!(bench.table.contradictions().of(Contradiction::Full) > 0);
    }
}

/// Returns the table of a child forked at this moment.
fn forked(table: &mut Table) -> Table {
    let seed = table.inherited();
    table.end_copies();
    seed.grow().expect("the parent's table is there")
}

/// Checks the table inherited by a child, with any number of resolvers in the parent.
fn assert_inherited(resolvers: usize) {
    let mut bench = Bench::with_resolvers(2, resolvers);
    bench.alloc(0, 0x10, 100, 0);
    bench.alloc(1, 0x20, 1000, 1);
    bench.alloc(1, 0x30, 7, 2);
    bench.free(1, 0x30);
    bench.apply(1, Event::Realloc { stamp: 0, address: 0x20, domain: 0 });
    let child = forked(&mut bench.table);
    let sums = |table: &Table| {
        let totals = table.heap().totals();
        (totals.current().size, totals.peak(), totals.total().count, totals.frees())
    };
    assert_eq!(sums(&bench.table), (1100, 1107, 3, 1));
    assert_eq!(sums(&child), (1100, 1100, 0, 0), "the peak is what was inherited, and nothing was asked for yet");
    assert_eq!((child.records(), child.heap().in_realloc()), (0, 0), "the other thread's call never ends there");
    let names: Vec<bool> = child.threads().rows().iter().map(|thread| thread.is_alive()).collect();
    assert_eq!(names, [false, false], "its threads are not the parent's");

    // From here on parent and child are independent.
    let mut child = Bench { rings: Vec::new(), table: child, looks_at_each: true };
    child.rings.push(child.table.ring(9, false));
    child.define(0, 0, &[0x1000, 0x2001]);
    assert_eq!(child.frames(0x20), [0x2001, 0x1000], "with its traceback");
    child.free(0, 0x20);
    child.free(0, 0x10);
    child.alloc(0, 0x10, 5, 0);
    assert_eq!(sums(&child.table), (5, 1100, 1, 2));
    assert_eq!(child.table.threads().rows().iter().filter(|thread| thread.is_needed()).count(), 1);
    assert_eq!(child.table.contradictions().total() + child.table.heap().untracked_frees(), 0);
    let peaks: Vec<_> = child.table.heap().totals().stacks().map(|(_, amounts)| amounts.peak.size).collect();
    assert_eq!(peaks.iter().sum::<u64>(), 1100, "what was live at the peak: {peaks:?}");
    assert_eq!(bench.current(), (1100, 2), "nothing of it is the parent's");
    bench.apply(1, Event::Reallocated { stamp: 0, address: 0x40, size: 4, stack: 1 });
    assert_eq!(bench.current(), (104, 2));
}

#[test]
fn a_child_begins_with_what_is_live() {
    assert_inherited(0);
    assert_inherited(2);
}

/// Sums per thread against a naive model, with threads that begin and end.
mod by_thread {
    use super::*;
    use heapline_shared_format::mapping::{Mapping, Pages};
    use totals::{Amount, Amounts, Totals};

    /// Live, at the peak, in total: bytes and blocks.
    type Sums = [(u64, u64); 3];
    /// Bytes and blocks by thread.
    type Held = BTreeMap<usize, (u64, u64)>;
    /// Sums by domain and key of a thread.
    type ByThread<K> = BTreeMap<(Domain, K), Sums>;

    #[derive(Clone, Debug)]
    enum Step {
        Alloc {
            slot: usize,
            domain: u8,
            address: u64,
            size: u64,
        },
        Free {
            slot: usize,
            domain: u8,
            address: u64,
        },
        Realloc {
            slot: usize,
            from: u64,
            to: u64,
            size: u64,
        },
        Reuse {
            slot: usize,
            address: u64,
        },
        Map {
            slot: usize,
            at: u64,
            pages: u64,
        },
        /// The thread of a ring is called so, and ends. Another thread begins.
        Next {
            slot: usize,
            name: usize,
        },
        ResetPeak,
        Clear,
        /// The test goes on with the table of a forked child.
        Fork,
    }

    const NAMES: [&str; 4] = ["worker-1", "worker-22", "io", "7"];
    const SLOTS: usize = 3;
    const PAGE: u64 = 4096;

    fn step() -> impl Strategy<Value = Step> {
        let address = || (1..12u64).prop_map(|n| n * 16);
        prop_oneof![
            8 => (0..SLOTS, 0..2u8, address(), 0..100u64)
                .prop_map(|(slot, domain, address, size)| Step::Alloc { slot, domain, address, size }),
            8 => (0..SLOTS, 0..2u8, address()).prop_map(|(slot, domain, address)| Step::Free { slot, domain, address }),
            2 => (0..SLOTS, address(), address(), 0..100u64)
                .prop_map(|(slot, from, to, size)| Step::Realloc { slot, from, to, size }),
            2 => (0..SLOTS, address()).prop_map(|(slot, address)| Step::Reuse { slot, address }),
            2 => (0..SLOTS, 0..6u64, 1..4u64).prop_map(|(slot, at, pages)| Step::Map { slot, at, pages }),
            4 => (0..SLOTS, 0..NAMES.len()).prop_map(|(slot, name)| Step::Next { slot, name }),
            1 => Just(Step::ResetPeak),
            1 => Just(Step::Clear),
            1 => Just(Step::Fork),
        ]
    }

    /// A model with threads that are never given up. All results are computed anew after each step.
    struct Model {
        /// Thread of each ring, as a number of a name.
        slots: [usize; SLOTS],
        names: Vec<&'static str>,
        /// Live blocks by domain and address. A mapped page is a block.
        live: BTreeMap<(Domain, u64), (u64, usize)>,
        totals: BTreeMap<(Domain, usize), (u64, u64)>,
        /// The peak, and the amounts of the threads at the peak.
        peaks: BTreeMap<Domain, (u64, Held)>,
    }

    impl Model {
        fn new() -> Model {
            let (live, totals, peaks) = Default::default();
            Model { slots: std::array::from_fn(|slot| slot), names: vec![""; SLOTS], live, totals, peaks }
        }

        fn current(&self, domain: Domain) -> Held {
            let mut sums = Held::new();
            for (_, &(size, thread)) in self.live.iter().filter(|((of, _), _)| *of == domain) {
                let sum = sums.entry(thread).or_default();
                *sum = (sum.0 + size, sum.1 + 1);
            }
            sums
        }

        fn reset_peak(&mut self, domain: Domain) {
            let now = self.current(domain);
            self.peaks.insert(domain, (now.values().map(|sum| sum.0).sum(), now));
        }

        fn alloc(&mut self, slot: usize, domain: Domain, address: u64, size: u64) {
            let thread = self.slots[slot];
            self.live.insert((domain, address), (size, thread));
            let total = self.totals.entry((domain, thread)).or_default();
            *total = (total.0 + size, total.1 + 1);
            self.look(domain);
        }

        /// Notices a new peak.
        fn look(&mut self, domain: Domain) {
            let current: u64 = self.current(domain).values().map(|sum| sum.0).sum();
            if current > self.peaks.get(&domain).map_or(0, |peak| peak.0) {
                self.reset_peak(domain);
            }
        }

        fn next(&mut self, slot: usize) {
            self.slots[slot] = self.names.len();
            self.names.push("");
        }

        /// Returns the sums of all threads.
        fn rows(&self) -> ByThread<usize> {
            let mut rows = ByThread::<usize>::new();
            for domain in [Domain::Native, Domain::Python, Domain::Mmap] {
                let now = self.current(domain);
                let none = (0, Held::new());
                let (_, peak) = self.peaks.get(&domain).unwrap_or(&none);
                for thread in 0..self.names.len() {
                    let of = |sums: &Held| sums.get(&thread).copied().unwrap_or_default();
                    let total = self.totals.get(&(domain, thread)).copied().unwrap_or_default();
                    rows.insert((domain, thread), [of(&now), of(peak), total]);
                }
            }
            rows
        }
    }

    /// Adds rows with the same key up, and leaves empty rows out. Ranges of pages are compared by
    /// their bytes.
    fn added<K: Ord>(rows: impl Iterator<Item = ((Domain, K), Sums)>) -> ByThread<K> {
        let mut sums = ByThread::<K>::new();
        for ((domain, key), row) in rows {
            let sum = sums.entry((domain, key)).or_default();
            for (sum, (size, count)) in sum.iter_mut().zip(row) {
                *sum = (sum.0 + size, sum.1 + if domain == Domain::Mmap { 0 } else { count });
            }
        }
        sums.retain(|_, sums| *sums != Sums::default());
        sums
    }

    fn layers(table: &Table) -> Vec<(Domain, &Totals)> {
        let heaps = table.heaps().map(|(domain, heap)| (domain, heap.totals()));
        heaps.chain(table.ranges().layers().map(|(domain, layer)| (domain, layer.totals()))).collect()
    }

    fn pairs(amounts: Amounts) -> Sums {
        [amounts.current, amounts.peak, amounts.total].map(|Amount { size, count }| (size, count))
    }

    fn pattern(name: &str) -> String {
        name.replace("22", "*").replace(['1', '7'], "*")
    }

    /// A table with a ring for each thread that lives.
    struct Rings {
        table: Table,
        rings: Vec<Ring>,
        tid: u32,
    }

    impl Rings {
        fn new(table: Table) -> Rings {
            let mut rings = Rings { table, rings: Vec::new(), tid: 0 };
            for _ in 0..SLOTS {
                let ring = rings.begin();
                rings.rings.push(ring);
            }
            rings
        }

        fn begin(&mut self) -> Ring {
            self.tid += 1;
            let mut ring = self.table.ring(self.tid, false);
            for domain in 0..2u8 {
                let id = u32::from(domain);
                let frames = &[0x1000 + u64::from(id)];
                let stack = Event::Stack { id, keep: 0, total: 1, truncated: false, more: false, domain, frames };
                self.table.apply(&mut ring, stack).expect("a definition");
            }
            ring
        }

        fn apply(&mut self, slot: usize, event: Event<'_>) {
            self.table.apply(&mut self.rings[slot], event).expect("a record");
        }

        /// Ends the thread of a ring, and begins another.
        fn next(&mut self, slot: usize, name: &str) {
            let thread = self.rings[slot].thread;
            self.table.threads_mut().name(thread, name.to_owned());
            let ended = self.rings.remove(slot);
            self.table.close(ended);
            let ring = self.begin();
            self.rings.insert(slot, ring);
        }

        fn replay(&mut self, step: &Step) {
            match *step {
                Step::Alloc { slot, domain, address, size } => {
                    self.apply(slot, Event::Alloc { stamp: 0, address, size, stack: domain.into() });
                }
                Step::Free { slot, domain, address } => self.apply(slot, Event::Free { stamp: 0, address, domain }),
                Step::Realloc { slot, from, to, size } => {
                    self.apply(slot, Event::Realloc { stamp: 0, address: from, domain: 0 });
                    self.apply(slot, Event::Reallocated { stamp: 0, address: to, size, stack: 0 });
                }
                Step::Reuse { slot, address } => self.apply(slot, Event::Reuse { stamp: 0, address, stack: 1 }),
                Step::Map { slot, at, pages } => {
                    let pages = Pages::covering(at * PAGE, pages * PAGE).expect("whole pages");
                    let mapping = Mapping::Map { pages, reserved: false, stack: 0 };
                    self.apply(slot, Event::Mapping { stamp: 0, mapping });
                }
                Step::Next { slot, name } => self.next(slot, NAMES[name]),
                Step::ResetPeak => self.table.reset_peak(),
                Step::Clear => self.table.clear_traces(),
                Step::Fork => {
                    // The ended threads of the parent keep their names in the child.
                    let child = forked(&mut self.table);
                    let tid = self.tid;
                    *self = Rings { tid, ..Rings::new(child) };
                }
            }
        }
    }

    impl Model {
        fn replay(&mut self, step: &Step) {
            let of = |domain| if domain == 0 { Domain::Native } else { Domain::Python };
            match *step {
                Step::Alloc { slot, domain, address, size } => {
                    self.live.remove(&(of(domain), address));
                    self.alloc(slot, of(domain), address, size);
                }
                Step::Free { domain, address, .. } => drop(self.live.remove(&(of(domain), address))),
                Step::Realloc { slot, from, to, size } => {
                    self.live.remove(&(Domain::Native, from));
                    self.live.remove(&(Domain::Native, to));
                    self.alloc(slot, Domain::Native, to, size);
                }
                Step::Reuse { slot, address } => {
                    let thread = self.slots[slot];
                    if let Some(block) = self.live.get_mut(&(Domain::Python, address)) {
                        block.1 = thread;
                    }
                }
                Step::Map { slot, at, pages } => {
                    let (domain, thread) = (Domain::Mmap, self.slots[slot]);
                    self.live.extend((at..at + pages).map(|page| ((domain, page), (PAGE, thread))));
                    let total = self.totals.entry((domain, thread)).or_default();
                    *total = (total.0 + pages * PAGE, total.1 + 1);
                    self.look(domain);
                }
                Step::Next { slot, name } => {
                    let thread = self.slots[slot];
                    self.names[thread] = NAMES[name];
                    self.next(slot);
                }
                Step::ResetPeak => {
                    [Domain::Native, Domain::Python, Domain::Mmap].into_iter().for_each(|of| self.reset_peak(of));
                }
                Step::Clear => {
                    self.live.clear();
                    self.totals.clear();
                    self.peaks.clear();
                }
                Step::Fork => {
                    self.totals.clear();
                    self.replay(&Step::ResetPeak);
                    (0..SLOTS).for_each(|slot| self.next(slot));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_amount_is_lost_when_threads_end(
            steps in prop::collection::vec((step(), prop::bool::weighted(0.1)), 0..300),
            resolvers in 0..3usize,
        ) {
            let (mut rings, mut model) = (Rings::new(Table::new(64, resolvers)), Model::new());
            for (step, looks) in steps.into_iter().chain([(Step::ResetPeak, true)]) {
                rings.replay(&step);
                model.replay(&step);
                if !looks {
                    continue;
                }
                rings.table.catch_up();
                let threads = rings.table.threads();
                let rows = layers(&rings.table).into_iter().flat_map(|(domain, totals)| {
                    let name = |thread: u32| pattern(&threads.rows()[thread as usize].name);
                    let own = totals.threads().map(move |(thread, amounts)| ((domain, name(thread)), pairs(amounts)));
                    let ended = |row: u32| threads.ended()[row as usize].name.clone();
                    own.chain(totals.ended().map(move |(row, amounts)| ((domain, ended(row)), pairs(amounts))))
                });
                let wanted = model.rows().into_iter();
                let wanted = wanted.map(|((domain, thread), sums)| ((domain, pattern(model.names[thread])), sums));
                prop_assert_eq!(added(rows), added(wanted), "by name");

                // A living thread has a row of its own.
                let slot_of = |thread: u32| rings.rings.iter().position(|ring| ring.thread == thread);
                let living = layers(&rings.table).into_iter().flat_map(|(domain, totals)| {
                    totals.threads().filter_map(move |(thread, sums)| Some(((domain, slot_of(thread)?), pairs(sums))))
                });
                let wanted = model.rows().into_iter().filter_map(|((domain, thread), sums)| {
                    Some(((domain, model.slots.iter().position(|&of| of == thread)?), sums))
                });
                prop_assert_eq!(added(living), added(wanted), "by living thread");
            }
        }
    }

    #[test]
    fn samples_count_as_the_blocks_that_they_stand_for() {
        let mut rings = Rings::new(Table::new(64, 0));
        rings.apply(0, Event::Query { stamp: 0, number: 0, asked: query::INTERVAL, arguments: [1 << 20, 0] });
        for (address, size) in [(0x10, 16), (0x20, 16), (0x30, 1 << 30)] {
            rings.apply(0, Event::Alloc { stamp: 0, address, size, stack: 0 });
        }
        let amounts = |rings: &mut Rings| {
            rings.table.catch_up();
            let (_, amounts) = rings.table.heap().totals().threads().next().expect("a thread");
            (amounts.current, amounts.peak, amounts.total)
        };
        // A block of 16 bytes is a sample once in 65,536.5 times, and a block of 1 GiB always.
        let size = 2 * weight::bytes(16, 1 << 20) + (1 << 30);
        let three = Amount { size, count: 131_074 };
        assert_eq!(amounts(&mut rings), (three, three, three));
        let mut child = Rings::new(forked(&mut rings.table));
        rings.apply(1, Event::Free { stamp: 0, address: 0x20, domain: 0 });
        let two = Amount { size: size - weight::bytes(16, 1 << 20), count: 65_538 };
        assert_eq!(amounts(&mut rings), (two, three, three));
        child.apply(0, Event::Free { stamp: 0, address: 0x30, domain: 0 });
        let small = Amount { size: size - (1 << 30), count: 131_073 };
        assert_eq!(amounts(&mut child), (small, three, Amount::default()));
    }
}
